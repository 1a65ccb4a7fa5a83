"""Shards: the files of a large image set, on disk or behind a URL, and bytes out of them.

gs://, s3:// and the rest go through fsspec and its plug-ins (gcsfs, s3fs); local files do not.
"""

import dataclasses
import functools
import glob
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from imagen_jax.storage.folders import expand_home
from imagen_jax.storage.wrong_files import START, what_it_is

MOST_NAMES = 1_000_000
NEARBY = 2**16  # bytes between two parts of a file that are cheaper to read than to ask for twice
# What tells a changed file from the one before, by file system.
STAMPS = ("mtime", "LastModified", "updated", "etag", "ETag", "created")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of a set: its path or URL, its size, and a stamp that changes when it is rewritten."""

    path: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.rsplit("/", 1)[-1]

    def open(self) -> Any:
        """The file from its start; it can seek."""
        if not is_remote(self.path):
            return open(self.path, "rb")
        files, path = _file_system(self.path)
        return files.open(path, "rb")

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; fewer where the file ends before."""
        if not is_remote(self.path):
            file = _kept_open(self)  # held by name: other threads may make the cache forget it
            return os.pread(file.fileno(), stop - start, start)
        files, path = _file_system(self.path)
        data = files.cat_file(path, start, stop)
        if len(data) > stop - start:
            raise ValueError(f"{self.path}: its server serves only whole files, not parts of them")
        return data

    def read_parts(self, spans: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
        """The bytes at each (offset, size); what lies close together is read at once."""
        first = min((offset for offset, _ in spans.values()), default=0)
        stop = max((offset + size for offset, size in spans.values()), default=0)
        if stop - first > sum(size for _, size in spans.values()) + NEARBY:
            return {name: self.read(at, at + size) for name, (at, size) in spans.items()}
        data = self.read(first, stop)
        return {name: data[at - first : at - first + size] for name, (at, size) in spans.items()}


def refuse_other_files(shard: Shard) -> None:
    """ValueError where a shard that cannot be read is something else: compressed (then it has no
    random access), a pointer of Git LFS, a page of HTML.
    """
    found = what_it_is(shard.read(0, START), shard.size, ("tar", "text", "empty"))
    if found is not None:
        raise ValueError(f"{shard.path} is {found}")


@functools.lru_cache(maxsize=256)
def _kept_open(shard: Shard) -> Any:
    """The file of a local shard; one that is forgotten closes when its last reader is done."""
    return open(shard.path, "rb", buffering=0)


def is_remote(path: str) -> bool:
    """Whether a path is an address such as gs://bucket/file."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Its credentials are the environment's."""
    scheme = url.partition("://")[0]
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs fsspec: pip install 'imagen_jax[remote]'") from error
    files = fsspec.filesystem(scheme)  # the same one each time
    return files, files._strip_protocol(url)


def find_shards(pattern: str, suffix: str) -> tuple[Shard, ...]:
    """The shards of a pattern in a fixed order.

    Args:
      pattern: a file, a folder (its files that end in `suffix`), or names with {00..99} or {a,b},
        each of which must be there, and with *, ? or [ab], in sorted order.
      suffix: "" stands for TFRecord, which has none: those with "tfrecord" in their name, or all.

    Raises:
      ValueError: there is no such file.
    """
    pattern = expand_home(pattern)
    matches = _remote_matches(pattern) if is_remote(pattern) else _local_matches
    shards = []
    for name in expand_braces(pattern):
        if not (found := matches(name, suffix)):
            raise ValueError(f"there is no file {name}" + f" that ends in {suffix}" * bool(suffix))
        shards += sorted(found, key=lambda shard: shard.path)
    if len({shard.path for shard in shards}) < len(shards):
        raise ValueError(f"{pattern} names a file twice")
    return tuple(shards)


def _local_matches(name: str, suffix: str) -> list[Shard]:
    names = [name]
    if os.path.isdir(name):
        names = _of_folder(glob.glob(f"{glob.escape(name.rstrip('/'))}/*"), suffix)
    elif not os.path.exists(name):
        names = glob.glob(name)
    stats = {name: os.stat(name) for name in names if os.path.isfile(name)}
    return [Shard(name, found.st_size, str(found.st_mtime_ns)) for name, found in stats.items()]


def _of_folder(paths: Iterable[str], suffix: str) -> list[str]:
    """The shards among the files of a folder; statistics and tables may lie beside them."""
    if suffix:
        return [path for path in paths if path.endswith(suffix)]
    return [path for path in paths if "tfrecord" in path.rpartition("/")[2].lower()] or [*paths]


def _remote_matches(url: str) -> Callable[[str, str], list[Shard]]:
    """As `_local_matches`, for names like this URL; each folder is asked for once."""
    files, _ = _file_system(url)

    @functools.cache
    def listed(folder: str) -> dict[str, dict[str, Any]]:
        try:
            infos = files.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {info["name"]: info for info in infos if info["type"] == "file"}

    def named(path: str) -> dict[str, Any] | None:
        if not path.startswith(("http://", "https://")):
            return listed(path.rpartition("/")[0]).get(path)
        try:  # web servers need not list their folders; those that do give a page of links
            info = files.info(path)
        except FileNotFoundError:
            return None
        return None if info["size"] is None or info.get("mimetype") == "text/html" else info

    def matches(name: str, suffix: str) -> list[Shard]:
        path = files._strip_protocol(name).rstrip("/")
        if any(sign in path for sign in "*?["):
            infos = files.glob(path, detail=True).values()
        elif info := named(path):
            infos = [info]
        else:
            infos = [listed(path)[name] for name in _of_folder(listed(path), suffix)]
        return [_remote_shard(files, info) for info in infos if info["type"] == "file"]

    return matches


def _remote_shard(files: Any, info: dict[str, Any]) -> Shard:
    if info["size"] is None:  # of a page of links
        info = files.info(info["name"])
    stamp = repr([str(info[key]) for key in STAMPS if key in info])
    return Shard(files.unstrip_protocol(info["name"]), int(info["size"]), stamp)


def expand_braces(pattern: str) -> list[str]:
    """ "a{00..02}.tar" -> a00.tar, a01.tar, a02.tar; "{a,b}" -> a, b. Several multiply."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    if math.prod(map(len, choices)) > MOST_NAMES:
        raise ValueError(f"{pattern} stands for more than {MOST_NAMES:,} names")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + MOST_NAMES:
            raise ValueError(f"{{{inside}}} must count upward, to {MOST_NAMES:,} names at most")
        padded = found[1].startswith("0") or found[2].startswith("0")
        width = max(len(found[1]), len(found[2])) if padded else 0
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]
