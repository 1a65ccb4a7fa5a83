"""Files that are there whole or not at all: written under another name, then renamed."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagen_jax.storage.disk import disk_errors


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A new, empty file to write to, which takes `path`'s place when the block ends without error.

    Its folder is made where it is missing. The file keeps the mode that the user's umask gives it,
    and its bytes are on the disk before it is renamed. Several processes may write one path.
    """
    with written_together([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def written_together(paths: Sequence[str | os.PathLike], needed: int = 0) -> Iterator[list[Path]]:
    """New files as those of `written_whole`; all are on the disk before the first takes its place.

    They take their places in the order of `paths`. What the disk refuses is an OSError that names
    one of them, whatever the writer makes of it; `needed`: bytes in all, for that message.
    """
    paths = [Path(path) for path in paths]
    suffix = f"{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    temporary = [path.with_name(f".{path.name}.{suffix}") for path in paths]
    names = dict(zip(map(os.fspath, temporary), map(os.fspath, paths), strict=True))
    try:
        with disk_errors(paths[0], needed, names):
            for path in temporary:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            # Some writers, safetensors', change it.
            modes = [path.stat().st_mode for path in temporary]
            yield temporary
            for path, mode in zip(temporary, modes, strict=True):
                path.chmod(mode)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            for path, target in zip(temporary, paths, strict=True):
                os.replace(path, target)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
