"""The index of a sharded set: where each example lies and what filters ask about it.

It is made once, a shard at a time, and kept in a folder, so that a shard that is added or changed
is the only one read again. In memory it takes about 90 bytes an example and 4 for each score that
the filters ask for, and twice that while it is put together.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.shards import Shard, is_remote
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.trees import SHOWN_NAMES, name_some

VERSION = 2
THREADS = 16  # a shard behind a URL is waited for, not computed
MOST_FIELDS = 64
DIGEST_BYTES = 16  # before an index on disk: any byte of it that changes is seen
SHARED = ("keys", "spans", "sizes", "lengths")  # columns of shards that are joined as they are
COLUMNS = (*SHARED, "key_ends")
Remark = tuple[int, tuple[str, ...]]  # (how often, the first few names)


@dataclasses.dataclass(frozen=True)
class Row:
    """What an index notes of one example.

    spans: (offset, size) in the shard of each of its members; size 0 where there is none. size:
    (width, height), 0 where it is not known. length: characters of its first caption. fields: its
    numbers by name. faults: {role: why this example cannot be used for it}.
    """

    key: str
    spans: tuple[tuple[int, int], ...]
    size: tuple[int, int] = (0, 0)
    length: int = 0
    fields: Mapping[str, float] = dataclasses.field(default_factory=dict)
    faults: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The columns of the examples of one shard or of many, in order; see `Row`.

    fields: float32 [N] by name, NaN where an example lacks it; only those that were asked for.
    names: of all fields that examples have. faults: {row: {role: reason}}. remarks: what else is to
    be said of the shards, how often it is so, and the first few names.
    """

    keys: np.ndarray  # uint8: the bytes of all keys
    key_ends: np.ndarray  # int64 [N]: where each ends among them
    spans: np.ndarray  # int64 [N, members, 2]
    sizes: np.ndarray  # int32 [N, 2]
    lengths: np.ndarray  # int32 [N]
    fields: dict[str, np.ndarray]
    names: frozenset[str]
    faults: dict[int, dict[str, str]]
    remarks: dict[str, Remark] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.key_ends)

    def fault(self, row: int, roles: Collection[str]) -> str | None:
        """Why an example cannot be used for one of these roles; None where it can."""
        faults = self.faults.get(row, {}).items()
        return next((why for role, why in faults if role in roles), None)

    def key(self, row: int) -> str:
        """The name of an example."""
        start = self.key_ends[row - 1] if row else 0
        return self.keys[start : self.key_ends[row]].tobytes().decode("utf-8", "surrogateescape")


def from_rows(
    rows: Iterable[Row], members: int, remarks: Mapping[str, Sequence[str]] | None = None
) -> Index:
    """The index of one shard. `remarks`: what is to be said of it, and the names it is true of."""
    rows = list(rows)
    keys = [row.key.encode("utf-8", "surrogateescape") for row in rows]
    names = sorted({name for row in rows for name in row.fields})[:MOST_FIELDS]
    return Index(
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
        spans=np.asarray([row.spans for row in rows], np.int64).reshape(len(rows), members, 2),
        sizes=np.asarray([row.size for row in rows], np.int32).reshape(len(rows), 2),
        lengths=np.asarray([row.length for row in rows], np.int32),
        fields={
            name: np.asarray([row.fields.get(name, np.nan) for row in rows], np.float32)
            for name in names
        },
        names=frozenset(names),
        faults={number: dict(row.faults) for number, row in enumerate(rows) if row.faults},
        remarks={
            what: (len(names), tuple(names[:SHOWN_NAMES]))
            for what, names in (remarks or {}).items()
        },
    )


def concatenated(parts: Sequence[Index]) -> Index:
    """The examples of several shards, one after the other."""
    first_rows = np.cumsum([0, *(len(part) for part in parts[:-1])])
    first_bytes = np.cumsum([0, *(len(part.keys) for part in parts[:-1])])
    names = sorted({name for part in parts for name in part.fields})
    unknown = [np.full(len(part), np.nan, np.float32) for part in parts]
    return Index(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in SHARED},
        key_ends=np.concatenate(
            [part.key_ends + first for part, first in zip(parts, first_bytes, strict=True)]
        ),
        fields={
            name: np.concatenate(
                [part.fields.get(name, nan) for part, nan in zip(parts, unknown, strict=True)]
            )
            for name in names
        },
        names=frozenset().union(*(part.names for part in parts)),
        faults={
            int(first) + row: faults
            for part, first in zip(parts, first_rows, strict=True)
            for row, faults in part.faults.items()
        },
        remarks=_summed(part.remarks for part in parts),
    )


def _summed(remarks: Iterable[Mapping[str, Remark]]) -> dict[str, Remark]:
    found: dict[str, Remark] = {}
    for what, (count, names) in itertools.chain.from_iterable(own.items() for own in remarks):
        before, shown = found.get(what, (0, ()))
        found[what] = before + count, (*shown, *names)[:SHOWN_NAMES]
    return found


# --------------------------------------------------------------------------- kept on disk


def read_index(
    shards: Sequence[Shard],
    scan: Callable[[Shard], Index],
    options: Any,
    folder: Path | None,
    fields: Collection[str] = (),
) -> tuple[Index, list[int]]:
    """The index of all shards, from `folder` where it is there and fresh, else by `scan`; and how
    many examples each shard has.

    Shards are read in random order, so that processes with one folder share the work. What cannot
    be kept, on a full or read-only disk, is said once and made anew at the next start.

    Args:
      options: whatever else, besides the shards' paths, sizes and times, the index depends on.
      folder: None where there is no place to keep the index.
      fields: the names of those that are wanted in memory; all are kept on disk.
    """
    damaged, unkept, made = [], [], []

    def read(shard: Shard) -> Index:
        path = None if folder is None else _index_path(shard, options, folder)
        try:
            return _load(path, fields)
        except (FileNotFoundError, NotADirectoryError):
            logging.info("indexing %s", shard.path)
        except Exception as error:  # zipfile and numpy raise a dozen kinds for damaged bytes
            damaged.append(f"{shard.path} ({str(error) or type(error).__name__})")
        index = scan(shard)
        made.append(index)
        try:
            _save(index, path)
        except OSError as error:
            unkept.append(error.strerror or str(error))
        wanted = {name: row for name, row in index.fields.items() if name in fields}
        return dataclasses.replace(index, fields=wanted)

    order = random.sample(shards, len(shards))
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, len(shards))) as pool:
        found = dict(zip(order, pool.map(read, order), strict=True))
    if damaged:
        logging.warning(
            "indexed %d shards again, whose index is damaged: %s",
            len(damaged),
            name_some(sorted(damaged)),
        )
    if unkept:
        logging.warning(
            "the index of %d shards cannot be kept in %s (%s), and is made anew at the next start; "
            "set data.index_dir",
            len(unkept),
            folder or "the home folder, of which there is none",
            unkept[0],
        )
    index = concatenated([found[shard] for shard in shards])
    _tell(index, made)
    return index, [len(found[shard]) for shard in shards]


def _tell(index: Index, made: Sequence[Index]) -> None:
    """Says what is odd in shards: once for all of them."""
    faults = [(part.key(row), why) for part in made for row, why in part.faults.items()]
    if faults:
        key, reasons = min(faults)
        logging.warning(
            "%d of %d examples are broken, the first: %s: %s",
            len(faults),
            sum(map(len, made)),
            key,
            "; ".join(reasons.values()),
        )
    for what, (count, names) in index.remarks.items():
        more = ", ..." if count > len(names) else ""
        logging.warning("%d %s: %s%s", count, what, ", ".join(names), more)


def index_folder(path: str) -> Path | None:
    """Where the index of a path, pattern or URL of shards is kept: beside local ones if it is there
    already or can be written, else below ~/.cache. None where there is no home.
    """
    local = Path(path)
    beside = local if local.is_dir() else local.parent
    own = beside / ".imagen_jax_index"
    if not is_remote(path) and (own.is_dir() or os.access(beside, os.W_OK)):
        return own
    try:
        cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    except ValueError:
        return None
    return cache / "imagen_jax" / "index"


def _index_path(shard: Shard, options: Any, folder: Path) -> Path:
    # relative to the index: a set may be moved with it, and two of its shards may have one name
    name = shard.path if is_remote(shard.path) else os.path.relpath(shard.path, folder)
    identity = repr((VERSION, name, shard.size, shard.stamp, options))
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=12)
    return folder / f"{digest.hexdigest()}.index"


def _save(index: Index, path: Path | None) -> None:
    """OSError where it cannot be kept."""
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "there is no folder for it")
    arrays = {name: getattr(index, name) for name in COLUMNS}
    values = np.stack(list(index.fields.values()) or [np.zeros(len(index), np.float32)])
    notes = {"fields": list(index.fields), "faults": index.faults, "remarks": index.remarks}
    data = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays, values=values, notes=data)
    whole = content.getvalue()
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.writelines((_digest(whole), whole))


def _load(path: Path | None, wanted: Collection[str]) -> Index:
    """A kept index; FileNotFoundError where there is none, anything else where it is damaged."""
    if path is None:
        raise FileNotFoundError
    whole = path.read_bytes()
    digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    if digest != _digest(content):
        raise ValueError("its bytes have changed")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        notes, values = json.loads(arrays["notes"].tobytes()), arrays["values"]
        columns = {name: arrays[name] for name in COLUMNS}
    return Index(
        **columns,
        # a copy, or each field would keep the others in memory
        fields={
            name: row.copy()
            for name, row in zip(notes["fields"], values, strict=False)
            if name in wanted
        },
        names=frozenset(notes["fields"]),
        faults={int(row): reasons for row, reasons in notes["faults"].items()},
        remarks={
            what: (number, tuple(names)) for what, (number, names) in notes["remarks"].items()
        },
    )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
