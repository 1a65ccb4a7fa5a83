"""Shards: the files of a large picture set, on disk or behind a URL, and bytes out of them.

gs://, s3:// and the rest go through fsspec and its plug-ins (gcsfs, s3fs); local files do not.
"""

import dataclasses
import functools
import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_NAMES = 1_000_000
# What tells a changed file from the one before, by file system.
STAMPS = ("mtime", "LastModified", "updated", "etag", "ETag", "created")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of a set: its path or URL, its bytes, and what changes when it is written anew."""

    path: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def open(self) -> Any:
        """The file from its start; it can seek."""
        if not is_remote(self.path):
            return open(self.path, "rb", buffering=0)
        files, path = _file_system(self.path)
        return files.open(path, "rb")

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; fewer where the file ends before."""
        if not is_remote(self.path):
            with open(self.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), stop - start, start)
        files, path = _file_system(self.path)
        return files.cat_file(path, start, stop)


def is_remote(path: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def local_folder(path: str) -> Path | None:
    """The folder of a local path or pattern; None for a URL."""
    return None if is_remote(path) else Path(path if os.path.isdir(path) else os.path.dirname(path))


@functools.lru_cache(maxsize=64)
def _connection(scheme: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs fsspec: pip install imagen_jax[remote]") from error
    return fsspec.filesystem(scheme)


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Its credentials are the environment's."""
    scheme, _, path = url.partition("://")
    return _connection(scheme), path


def find_shards(pattern: str, suffix: str) -> tuple[Shard, ...]:
    """The shards of a pattern in a fixed order.

    Args:
      pattern: a file, a folder (all files in it that end in `suffix`), or names with {00..99} or
        {a,b}, each of which must be there, and with *, ? or [ab], in sorted order.

    Raises:
      ValueError: there is no such file.
    """
    shards = [shard for name in expand_braces(str(pattern)) for shard in _matches(name, suffix)]
    if len({shard.path for shard in shards}) < len(shards):
        raise ValueError(f"{pattern} names a file twice")
    return tuple(shards)


def _matches(name: str, suffix: str) -> list[Shard]:
    exists, is_folder, matches, describe = (
        _remote_calls(name) if is_remote(name) else _local_calls()
    )
    if any(sign in name for sign in "*?["):
        names = sorted(matches(name))
    elif is_folder(name):
        folder = glob.escape(name.rstrip("/"))
        names = sorted(matches(f"{folder}/*{suffix}"))
    else:
        names = [name] if exists(name) else []
    if not names:
        raise ValueError(f"there is no file {name}" + f"/*{suffix}" * is_folder(name))
    return [describe(name) for name in names]


def _local_calls() -> tuple:
    def describe(name: str) -> Shard:
        found = os.stat(name)
        return Shard(name, found.st_size, str(found.st_mtime_ns))

    return os.path.isfile, os.path.isdir, glob.glob, describe


def _remote_calls(url: str) -> tuple:
    files, _ = _file_system(url)
    scheme = url.partition("://")[0]

    def path(name: str) -> str:
        return name.partition("://")[2]

    def matches(name: str) -> list[str]:
        return [f"{scheme}://{found.lstrip('/')}" for found in files.glob(path(name))]

    def describe(name: str) -> Shard:
        found = files.info(path(name))
        stamp = repr([str(found[key]) for key in STAMPS if key in found])
        return Shard(name, int(found["size"]), stamp)

    return (
        lambda name: files.isfile(path(name)),
        lambda name: files.isdir(path(name)),
        matches,
        describe,
    )


def expand_braces(pattern: str) -> list[str]:
    """ "a{00..02}.tar" -> a00.tar, a01.tar, a02.tar; "{a,b}" -> a, b. Several multiply."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else list(_choices(part)) for i, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST_NAMES:
        raise ValueError(f"{pattern} stands for more than {MOST_NAMES:,} names")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(inside: str) -> Iterator[str]:
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + MOST_NAMES:
            raise ValueError(f"{{{inside}}} must count upward, to {MOST_NAMES:,} names at most")
        padded = found[1].startswith("0") or found[2].startswith("0")
        width = max(len(found[1]), len(found[2])) if padded else 0
        return (f"{number:0{width}d}" for number in range(first, last + 1))
    if "," in inside:
        return iter(inside.split(","))
    return iter([f"{{{inside}}}"])
