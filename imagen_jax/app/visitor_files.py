"""Room for visitors' files: what they upload and what is made for them."""

import contextlib
import time
from pathlib import Path

KEPT_SECONDS = 3600


def make_room(folder: Path, most: int, seconds: float = KEPT_SECONDS) -> None:
    """Deletes what is older in the visitors' folder.

    Raises:
        ValueError: what is left has more than `most` bytes.
    """
    kept, oldest = 0, time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # folders after what is in them
        with contextlib.suppress(OSError):  # it is gone already, or a folder that is in use
            about = path.lstat()
            if about.st_mtime >= oldest:
                kept += 0 if path.is_dir() else about.st_size
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()
    if kept > most:
        minutes = seconds / 60
        raise ValueError(f"There is no room now: files are deleted after {minutes:g} minutes.")
