"""Files that are there whole or not at all: written under another name, then renamed."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagen_jax.storage.disk import disk_refusal


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A new, empty file to write to, which takes `path`'s place when the block ends without error.

    Its folder is made where it is missing. The file keeps the mode that the user's umask gives it,
    and its bytes are on the disk before it is renamed. Several processes may write one path.
    """
    with written_together([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def written_together(paths: Sequence[str | os.PathLike]) -> Iterator[list[Path]]:
    """New files as those of `written_whole`; all are on the disk before the first takes its place.

    They take their places in the order of `paths`. What the disk refuses is an OSError that names
    one of them, whatever the writer makes of it.
    """
    paths = [Path(path) for path in paths]
    suffix = f"{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    temporary = [path.with_name(f".{path.name}.{suffix}") for path in paths]
    try:
        for path in temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        modes = [path.stat().st_mode for path in temporary]  # some writers, safetensors', change it
        yield temporary
        for path, mode in zip(temporary, modes, strict=True):
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path, target in zip(temporary, paths, strict=True):
            os.replace(path, target)
    except Exception as error:
        found = disk_refusal(error, paths[0])
        if found is None:
            raise
        # Not by the name that it has meanwhile.
        names = dict(zip(map(os.fspath, temporary), map(os.fspath, paths), strict=True))
        found.filename = names.get(found.filename, found.filename)
        raise found from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
