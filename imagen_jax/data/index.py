"""The index of a sharded set: where each example lies and what filters ask about it.

It is made once, a shard at a time, and kept in a folder, so that a shard that is added or changed
is the only one read again. In memory it takes about 90 bytes an example and 4 for each score that
the filters ask for, and twice that while it is put together.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import random
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.captions import Captions
from imagen_jax.data.shards import Shard, is_remote
from imagen_jax.storage.atomic import written_whole

VERSION = 1
THREADS = 16  # a shard behind a URL is waited for, not computed
MOST_FIELDS = 64


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

    fields: float32 [N] by name, NaN where an example has none; of those that were asked for. names:
    of all fields that examples have. faults: {row: {role: reason}}.
    """

    keys: np.ndarray  # the bytes of all keys, and where each ends
    key_ends: np.ndarray
    spans: np.ndarray  # int64 [N, members, 2]
    sizes: np.ndarray  # int32 [N, 2]
    lengths: np.ndarray  # int32 [N]
    fields: dict[str, np.ndarray]
    names: frozenset[str]
    faults: dict[int, dict[str, str]]

    def __len__(self) -> int:
        return len(self.key_ends)

    def fault(self, row: int, roles: Collection[str]) -> str | None:
        """Why an example cannot be used for one of these roles; None where it can."""
        faults = self.faults.get(row, {})
        return next((why for role, why in faults.items() if role in roles), None)

    def key(self, row: int) -> str:
        start = self.key_ends[row - 1] if row else 0
        return self.keys[start : self.key_ends[row]].tobytes().decode("utf-8", "surrogateescape")


def from_rows(rows: Iterable[Row], members: int) -> Index:
    """The index of one shard."""
    rows = list(rows)
    keys = [row.key.encode("utf-8", "surrogateescape") for row in rows]
    names = sorted({name for row in rows for name in row.fields})[:MOST_FIELDS]
    missing = float("nan")
    spans = np.asarray([row.spans for row in rows], np.int64).reshape(len(rows), members, 2)
    return Index(
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
        spans=spans,
        sizes=np.asarray([row.size for row in rows], np.int32).reshape(len(rows), 2),
        lengths=np.asarray([row.length for row in rows], np.int32),
        fields={
            name: np.asarray([row.fields.get(name, missing) for row in rows], np.float32)
            for name in names
        },
        names=frozenset(names),
        faults={number: dict(row.faults) for number, row in enumerate(rows) if row.faults},
    )


def concatenated(parts: Sequence[Index]) -> Index:
    """The examples of several shards, one after the other."""
    starts = np.cumsum([0] + [len(part) for part in parts])
    bytes_before = np.cumsum([0] + [len(part.keys) for part in parts])
    names = sorted({name for part in parts for name in part.fields})

    def field(part: Index, name: str) -> np.ndarray:
        return part.fields.get(name, np.full(len(part), np.nan, np.float32))

    return Index(
        keys=np.concatenate([part.keys for part in parts]),
        key_ends=np.concatenate(
            [part.key_ends + before for part, before in zip(parts, bytes_before[:-1], strict=True)]
        ),
        spans=np.concatenate([part.spans for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        fields={name: np.concatenate([field(part, name) for part in parts]) for name in names},
        names=frozenset().union(*(part.names for part in parts)),
        faults={
            int(start) + row: faults
            for part, start in zip(parts, starts[:-1], strict=True)
            for row, faults in part.faults.items()
        },
    )


# ------------------------------------------------------------------------ what a record says


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values of a JSON object."""
    kinds = (int, float)
    found = {}
    for name, value in values.items():
        if isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e300:
            found[name] = float(value)
    return found


def size_of(values: Mapping[str, Any]) -> tuple[int, int]:
    """Its `width` and `height`; 0, 0 where they are missing or no sizes."""
    sides = values.get("width"), values.get("height")
    good = all(type(side) is int and 0 < side < 2**31 for side in sides)
    return sides if good else (0, 0)


def to_captions(value: Any) -> Captions:
    """Captions out of a string, several, or {"text": [...]}, with or without a "weight" each."""
    if isinstance(value, Mapping):
        texts = value["text"]
        weights = value.get("weight", [1.0] * len(texts))
    else:
        texts = [value] if isinstance(value, (str, bytes)) else list(value)
        weights = [1.0] * len(texts)
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    return [(text, float(weight)) for text, weight in zip(texts, weights, strict=True)]


def stripped(captions: Captions) -> Captions:
    """Each caption on one line, without blank ones; ValueError where none is left."""
    captions = [(" ".join(text.split()), weight) for text, weight in captions]
    if not (captions := [(text, weight) for text, weight in captions if text]):
        raise ValueError("its caption is empty")
    return captions


# --------------------------------------------------------------------------- kept on disk


def read_index(
    shards: Sequence[Shard],
    scan: Callable[[Shard], Index],
    options: Any,
    folder: Path,
    fields: Collection[str] = (),
) -> tuple[Index, list[int]]:
    """The index of all shards, from `folder` where it is there and fresh, else by `scan`; and how
    many examples each shard has.

    Shards are taken in random order, so processes that share the folder share the work.

    Args:
      options: whatever else, besides the shards' paths, sizes and times, the index depends on.
      fields: the names of those that are wanted in memory; all are kept on disk.
    """
    _make_folder(folder)
    read = functools.partial(
        _read_or_scan, scan=scan, options=options, folder=folder, fields=fields
    )
    order = random.sample(range(len(shards)), len(shards))
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, len(shards))) as pool:
        found = dict(zip(order, pool.map(read, [shards[i] for i in order]), strict=True))
    parts = [found[number] for number in range(len(shards))]
    return concatenated(parts), [len(part) for part in parts]


def index_folder(beside: Path | None) -> Path:
    """Where an index is kept: beside the data if that can be written, else below ~/.cache."""
    if beside is not None and os.access(beside, os.W_OK):
        return beside / ".imagen_jax_index"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "imagen_jax" / "index"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the index cannot be kept in {folder} ({error.strerror}); set data.index_dir"
        ) from error


def _read_or_scan(
    shard: Shard,
    scan: Callable[[Shard], Index],
    options: Any,
    folder: Path,
    fields: Collection[str],
) -> Index:
    # relative to the index: a set may be moved with it, and two of its shards may have one name
    name = shard.path if is_remote(shard.path) else os.path.relpath(shard.path, folder)
    identity = repr((VERSION, name, shard.size, shard.stamp, options))
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=12)
    path = folder / f"{digest.hexdigest()}.npz"
    try:
        return _load(path, fields)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("made anew: the index of %s is damaged (%s)", shard.name, error)
    logging.info("indexing %s", shard.path)
    index = scan(shard)
    if index.faults:
        first = next(iter(index.faults.items()))
        logging.warning(
            "%s: %d of %d examples are broken, the first: %s: %s",
            shard.path,
            len(index.faults),
            len(index),
            index.key(first[0]),
            "; ".join(first[1].values()),
        )
    _save(index, path)
    wanted = {name: values for name, values in index.fields.items() if name in fields}
    return dataclasses.replace(index, fields=wanted)


def _save(index: Index, path: Path) -> None:
    arrays = {name: getattr(index, name) for name in ("keys", "key_ends", "spans", "sizes")}
    arrays["lengths"] = index.lengths
    arrays["values"] = np.stack(list(index.fields.values()) or [np.zeros(len(index), np.float32)])
    notes = {"fields": list(index.fields), "faults": index.faults}
    arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, wanted: Collection[str]) -> Index:
    with np.load(path, allow_pickle=False) as arrays:
        notes = json.loads(arrays["notes"].tobytes())
        values = arrays["values"]
        columns = {name: arrays[name] for name in ("keys", "key_ends", "spans", "sizes", "lengths")}
    names = notes["fields"]  # a copy, or the row would keep the others in memory
    fields = {name: values[row].copy() for row, name in enumerate(names) if name in wanted}
    faults = {int(row): reasons for row, reasons in notes["faults"].items()}
    if len({len(columns[name]) for name in ("key_ends", "spans", "sizes", "lengths")}) > 1:
        raise ValueError("its columns differ in length")
    return Index(**columns, fields=fields, names=frozenset(names), faults=faults)
