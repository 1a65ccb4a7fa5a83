r"""Files that grow line by line, such as metrics.jsonl: each line is in there whole or not at all.

A line is whole when its end, \n, is written. Half a line is what a kill or a full disk leaves
behind; the next line must not be glued to it.
"""

import contextlib
import os
import warnings
from pathlib import Path

from imagen_jax.storage.disk import disk_errors

BLOCK = 2**16


class LineFile:
    """A file to which one process adds lines. Half a line at its end is cut off, with a warning.

    synced: each line is on the disk when `append` returns, even if the power fails then. A killed
    process loses none either way.
    """

    def __init__(self, path: str | os.PathLike, synced: bool = False):
        self.path, self.synced = Path(path), synced
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.path):
            self.file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  (closed by `close`)
            if cut := self._cut():
                warnings.warn(
                    f"{self.path} ended in half a line of {cut} bytes, which is cut off",
                    stacklevel=2,
                )
        self.torn = False  # whether half a line may be at the end

    def append(self, line: str) -> None:
        """Adds a line, given without its end.

        Raises:
            OSError: it cannot be written, on a full disk for example; the file is as it was.
            ValueError: it holds an end of a line, or what UTF-8 cannot hold.
        """
        if "\n" in line:
            raise ValueError(f"a line has an end of a line in it: {line[:80]!r}")
        content = memoryview(f"{line}\n".encode())
        with disk_errors(self.path):
            if self.torn:
                self._cut()
            before, self.torn = os.fstat(self.file.fileno()).st_size, True
            try:
                while content:
                    content = content[self.file.write(content) :]
                if self.synced:
                    os.fsync(self.file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):  # else before the next line
                    self.file.truncate(before)
                    self.torn = False
                raise
            self.torn = False

    def close(self) -> None:
        """Closes the file; an OSError of a full disk is told in words."""
        with disk_errors(self.path):
            self.file.close()

    def _cut(self) -> int:
        """Cuts off what follows the last end of a line; returns its size."""
        size = os.fstat(self.file.fileno()).st_size
        whole = _whole_size(self.file.fileno(), size)
        if whole < size:
            self.file.truncate(whole)
        return size - whole


def _whole_size(file: int, size: int) -> int:
    """The bytes of a file up to its last end of a line."""
    while size:
        start = max(0, size - BLOCK)
        found = os.pread(file, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def read_lines(path: str | os.PathLike) -> list[str]:
    r"""The whole lines of a file, without their ends (\n or \r\n); half a line at the end is left
    out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8; the message names the line.
    """
    *whole, _ = Path(path).read_bytes().split(b"\n")
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is not UTF-8 (byte {error.start})") from None
    return lines
