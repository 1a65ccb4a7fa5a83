"""Room for visitors' files: what they upload and what is made for them."""

import contextlib
import shutil
import time
from pathlib import Path

KEPT_SECONDS = 3600
PREVIEWS, PREVIEW_SECONDS = "unfinished_", 60  # how their folders' names begin; pages read them


def delete_previews(folder: Path) -> None:
    """Deletes the previews of requests before, which pages have read by now."""
    for preview in folder.glob(f"*/{PREVIEWS}*"):
        if time.time() - preview.stat().st_mtime > PREVIEW_SECONDS:
            shutil.rmtree(preview, ignore_errors=True)


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
