"""Out of memory, on a device or on the host: told in one line, with what to change."""

import contextlib
import re
from collections.abc import Iterator

# How XLA says it, at compile time and at run time; a RuntimeError, followed by a dump of buffers.
XLA_SAYS = re.compile(r"out[ _]of[ _]memory|failed to allocate|^RESOURCE_EXHAUSTED.*alloc", re.I)
LONGEST = 160


class OutOfMemory(MemoryError):
    """A device or the host has too little memory. XLA's own words are its `__context__`."""


def shortage(error: BaseException) -> str | None:
    """One line of what did not fit; None where an error is about something else."""
    if isinstance(error, OutOfMemory):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory on the host: {_short(str(error) or 'this process can get no more')}"
    if not isinstance(error, RuntimeError):
        return None
    lines = [line for line in str(error).splitlines() if XLA_SAYS.search(line)]
    return f"out of memory on the device: {_short(lines[0])}" if lines else None


@contextlib.contextmanager
def explained(advice: str) -> Iterator[None]:
    """Too little memory is an OutOfMemory here, which ends with `advice`: what takes the memory,
    with its present values, and what to change.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or (reason := shortage(error)) is None:
            raise
        raise OutOfMemory(f"{reason}. {advice}") from None


def _short(line: str) -> str:
    """XLA's line without its code, with bytes as people read them."""
    line = re.sub(r"^[A-Z_]+: ", "", line.strip())
    line = re.sub(r"\b(\d{4,}) ?(?:bytes|B\b)", lambda found: size_text(int(found[1])), line)
    return line[:LONGEST].rstrip(". ")


def size_text(size: int | float) -> str:
    """Bytes for people: 123.4 kB."""
    unit = "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.1f} {unit}" if unit != "bytes" else f"{size} bytes"
