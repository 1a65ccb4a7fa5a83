"""What a disk refuses: a full one, a quota, a limit on sizes, a read-only or failing one.

Python names the path of a file that cannot be opened, but not of one that cannot be written to, and
libraries in other languages raise errors of their own.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from imagen_jax.devices.memory import size_text

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (*FULL, errno.EROFS, errno.EIO)
FREE = " free"


def disk_refusal(
    error: BaseException | None, path: str | os.PathLike, needed: int = 0
) -> OSError | None:
    """What the disk refused to whoever wrote `path`, as an OSError that names a file and, of a full
    disk, the bytes that are free (and `needed`, if known); None where `error` is about something
    else.

    It is looked for in what `error` was raised from, too, and in the words of errors that are no
    OSErrors: safetensors and Orbax pass on the system's.
    """
    while error is not None:
        name, number = os.fspath(path), None
        if isinstance(error, OSError):
            # A copy's second name is that of the file that is written.
            name = os.fspath(error.filename2 or error.filename or path)
            number = error.errno if error.errno in REFUSED else None
            if number is not None and FREE in (error.strerror or ""):
                return error
        else:
            number = next((each for each in REFUSED if os.strerror(each) in str(error)), None)
        if number is not None:
            return OSError(number, os.strerror(number) + _space(number, name, needed), name)
        error = error.__cause__ or error.__context__
    return None


def _space(number: int, path: str, needed: int) -> str:
    """What is free now: soon the half-written file may be gone."""
    if number not in FULL:
        return ""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = f"{size_text(shutil.disk_usage(place).free)}{FREE}"
    return f" ({free}, {size_text(needed)} needed)" if needed else f" ({free})"


@contextlib.contextmanager
def disk_errors(
    path: str | os.PathLike, needed: int = 0, names: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Raises what the disk refuses to whoever writes `path` as an OSError that names a file.

    Args:
        needed: bytes to be written, where that is known.
        names: of temporary files, and of those that they will become.
    """
    try:
        yield
    except Exception as error:
        found = disk_refusal(error, path, needed)
        if found is None or found is error:
            raise
        found.filename = names.get(found.filename, found.filename)
        raise found from error


def describe(error: OSError) -> str:
    """The error in words, of what a disk refuses in a line that begins with the path."""
    if error.errno not in REFUSED or error.filename is None:
        return str(error)
    return f"{os.fspath(error.filename)}: {error.strerror}"
