"""Paths as users write them; the folders that a command writes into; the checkpoints in one."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.storage.disk import describe, disk_errors

# Folders of a run's workdir: of checkpoints, and of its averages' snapshots.
CHECKPOINTS, SNAPSHOTS = "checkpoints", "ema"


def user_path(path: str | os.PathLike) -> Path:
    """A path as a user wrote it, with ~ and ~name expanded as a shell does.

    Raises:
        ValueError: it begins with the home of a user who has none (no HOME, an unknown user).
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{os.fspath(path)}: {str(error).rstrip('.')}; give the whole path"
        ) from None


def expand_home(source: str | os.PathLike) -> str | os.PathLike:
    """What may be a path, a name or an address: `user_path` where it begins with ~, else itself."""
    return str(user_path(source)) if os.fspath(source).startswith("~") else source


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people count: 2 before 10, and 02 beside 2."""
    pieces = re.split(r"([0-9]+)", name)  # text and numbers in turn
    return [int(piece) if at % 2 else piece for at, piece in enumerate(pieces)], name


def check_local(path: str | Path, option: str) -> None:
    """ValueError for a bucket's address, which would become a folder of that name here."""
    scheme = next((part for part in Path(path).parts if re.fullmatch(r"[a-z][a-z0-9]+:", part)), "")
    if scheme:
        raise ValueError(
            f"{option} {path}: {scheme}// is not a folder; mount the bucket and give that path"
        )


def make_folder(path: Path, option: str) -> list[Path]:
    """Makes a folder and its parents, writes into it to see that one can, and returns the new ones.

    Raises:
        ValueError: it is a file, a bucket's address, or cannot be written; the message names the
            command's `option`.
    """
    check_local(path, option)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except FileExistsError:
        raise ValueError(f"{option} {path} is a file; give a directory.") from None
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {describe(error)}.") from error
    return new


@contextlib.contextmanager
def output_folder(path: Path, option: str = "--out") -> Iterator[None]:
    """`make_folder`, undone where what follows fails before it has written anything. What the disk
    refuses names a path.
    """
    new = make_folder(path, option)
    try:
        with disk_errors(path):
            yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):  # no longer empty
                folder.rmdir()
        raise


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps that a folder of checkpoints or snapshots has a folder of: without Orbax, slow to
    import.

    Empty where there is no such folder.
    """
    names = (path.name for path in checkpoints.glob("*"))
    return [int(name) for name in names if name.isascii() and name.isdigit()]
