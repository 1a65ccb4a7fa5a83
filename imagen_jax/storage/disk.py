"""What a disk refuses: a full one, a quota, a limit on sizes, a read-only or failing one.

Python names the path of a file that cannot be opened, but not of one that cannot be written to, and
libraries in other languages raise errors of their own.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (*FULL, errno.EROFS, errno.EIO)


def refusal(error: BaseException | None, path: str | os.PathLike) -> OSError | None:
    """What the disk refused to whoever wrote `path`, as an OSError that names a file; None where
    `error` is about something else.

    It is looked for in what `error` was raised from, too, and in the words of errors that are no
    OSErrors: safetensors and Orbax pass on the system's.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSED:
            return OSError(error.errno, os.strerror(error.errno), error.filename or os.fspath(path))
        for number in () if isinstance(error, OSError) else REFUSED:
            if os.strerror(number) in str(error):
                return OSError(number, os.strerror(number), os.fspath(path))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises what the disk refuses to whoever writes `path` as an OSError that names it."""
    try:
        yield
    except Exception as error:
        found = refusal(error, path)
        if found is None:
            raise
        raise found from error


def describe(error: OSError) -> str:
    """The error in a line that begins with the path; of a full disk, with what is free on it."""
    if error.errno not in REFUSED or error.filename is None:
        return str(error)
    line = f"{os.fspath(error.filename)}: {os.strerror(error.errno)}"
    return f"{line} ({free_space(error.filename)})" if error.errno in FULL else line


def free_space(path: str | os.PathLike) -> str:
    """12.3 MB free: on the disk that holds `path`, or will."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return f"{shutil.disk_usage(place).free / 1e6:,.1f} MB free on the disk of {place}"
