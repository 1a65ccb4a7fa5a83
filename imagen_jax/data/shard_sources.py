"""Sharded image sets by random access: webdataset tars, TFRecord and ArrayRecord files."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import fields, records, tar_index
from imagen_jax.data.filters import make_filters
from imagen_jax.data.index import Index, index_folder, read_index
from imagen_jax.data.shards import Shard, find_shards, is_remote
from imagen_jax.data.sources import (
    SPLITS,
    broken_as,
    check_reading,
    in_split,
    make_example,
)
from imagen_jax.images import decoding
from imagen_jax.storage.folders import user_path

NEEDED = ("image", "json")  # what must be sound in every example, whatever is read of it
WEIGHT = "weight"


@dataclasses.dataclass(frozen=True)
class Format:
    """How examples lie in shards.

    suffix: of the shards among the files of a folder. options: what an index depends on besides
    its shards. names: of the members, fields or features that are "image", "text" and "label".
    scan: the index of a shard. read: (shard, spans, names) to the value of each of these names,
    the bytes of a file for the image.
    """

    suffix: str
    options: tuple
    names: Mapping[str, str]
    scan: Callable[[Shard], Index]
    read: Callable[[Shard, np.ndarray, Mapping[str, str]], dict[str, Any]]


# (suffix, places of the records, the bytes of one)
RECORDS = {
    "tfrecord": ("", records.tfrecord_spans, records.read_tfrecord),
    "array_record": (".array_record", records.array_record_spans, records.read_array_record),
}


def record_format(kind: str, names: Mapping[str, str], parse: bool) -> Format:
    """How shards of tf.train.Example are read; `parse`: whether the index reads records whole."""
    suffix, spans, read = RECORDS[kind]
    return Format(
        suffix=suffix,
        options=(kind, names["text"], parse),
        names=names,
        scan=functools.partial(
            records.scan_records, spans=spans, read=read, text=names["text"], parse=parse
        ),
        read=functools.partial(records.read_example, read=read),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """Examples that lie in shards, found by an index and read one by one.

    rows: those of the index that pass the filters and the split. cover: the side of the square that
    images will be made to cover, so that large JPEGs are decoded faster; None decodes them whole.
    with_images: False leaves images out, for those who read only captions. total: examples of all
    splits that pass the filters.
    """

    shards: tuple[Shard, ...]
    index: Index
    starts: np.ndarray  # the first row of each shard
    rows: np.ndarray
    format: Format
    conditioning: str | None
    max_pixels: int = decoding.MAX_PIXELS
    cover: int | None = None
    with_images: bool = True
    total: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """(width, height) of each example, 0 where the index does not know."""
        return self.index.sizes[self.rows]

    @property
    def weights(self) -> np.ndarray | None:
        """The number `weight` of each example, NaN where it has none; None where none has."""
        weights = self.index.fields.get(WEIGHT)
        return None if weights is None else weights[self.rows]

    def shard_of(self, row: int) -> int:
        """The number of the shard in which a row of the index lies."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.rows[index])
        key = self.index.key(row)
        wanted = {self.conditioning, "image" if self.with_images else None}
        names = {role: name for role, name in self.format.names.items() if role in wanted}
        shard = self.shards[self.shard_of(row)]
        with broken_as(key):
            if fault := self.index.fault(row, (*NEEDED, *names)):
                raise ValueError(fault)
            values = self.format.read(shard, self.index.spans[row], names)
            file, text, label = (values.get(role) for role in ("image", "text", "label"))
            if "image" in names and not isinstance(file, bytes):
                raise ValueError("has no bytes of an image file")
            return make_example(
                key,
                image=decoding.read(file, self.max_pixels, self.cover)
                if "image" in names
                else None,
                captions=fields.to_captions(text, names["text"]) if "text" in names else None,
                label=fields.to_label(label) if "label" in names else None,
            )


def read_tar(
    path: str | Path,
    split: str = "all",
    conditioning: str | None = "text",
    text: str = "txt",
    label: str = "cls",
    filters: Mapping[str, Any] | None = None,
    measure: bool = False,
    index_dir: str | Path | None = None,
    max_pixels: int = decoding.MAX_PIXELS,
) -> ShardSource:
    """Webdataset shards as img2dataset writes them, by random access.

    Members whose names are the same up to their first dot are an example: an image (.jpg, .png,
    .webp and so on) and what goes with it, as webdataset groups them. Of an extension with several
    parts the last decides: photo.v2.jpg is an image of the key "photo". Of several images the first
    plain one (.jpg) counts, else the first. Members without an image, caption and label, such as
    README.md, are no example; a caption or label without its image is a broken one.

    Args:
      path: a file, a folder of .tar files, or a pattern such as gs://bucket/{00000..00099}.tar.
      split: where all shards are named after splits, of which there are several, such as
        train-00000.tar and heldout-00000.tar: those of one; else "train" and "heldout" divide the
        examples by a hash of their keys.
      text: extension of the member that is the caption, or "json.caption": a field of the .json.
      label: the same of the class number.
      filters: see `Filters`; widths, heights and scores are those of the .json.
      measure: read the sizes of images whose .json does not have them, while the index is made.
      index_dir: where the index is kept; None is `.imagen_jax_index` beside local shards that can
        be written to, else a folder below ~/.cache.

    Raises:
      ValueError: there are no such shards, or no example is left.
    """
    names = {"image": "image", "text": text, "label": label}
    form = Format(
        suffix=".tar",
        options=("tar", text, label, measure),
        names=names,
        scan=functools.partial(tar_index.scan_tar, names=names, measure=measure),
        read=tar_index.read_example,
    )
    return _read(path, form, split, conditioning, filters, index_dir, max_pixels)


def read_tfrecord(
    path: str | Path,
    split: str = "all",
    conditioning: str | None = "text",
    image: str = "image",
    text: str = "text",
    label: str = "label",
    filters: Mapping[str, Any] | None = None,
    measure: bool = False,
    index_dir: str | Path | None = None,
    max_pixels: int = decoding.MAX_PIXELS,
) -> ShardSource:
    """Uncompressed TFRecord files of tf.train.Example, by random access and without TensorFlow.

    Args:
      image, text, label: names of features: the bytes of an image file, one caption or several, a
        class number.
      filters: see `Filters`; width, height and scores are features as well.
      measure: index width, height and scores even without filters, as buckets need them; this
        reads each record whole, once.

    The other arguments are those of `read_tar`; a folder stands for the files in it that have
    "tfrecord" in their name, or for all where none has.
    """
    names = {"image": image, "text": text, "label": label}
    form = record_format("tfrecord", names, parse=measure or bool(filters))
    return _read(path, form, split, conditioning, filters, index_dir, max_pixels)


def read_array_record(
    path: str | Path,
    split: str = "all",
    conditioning: str | None = "text",
    image: str = "image",
    text: str = "text",
    label: str = "label",
    filters: Mapping[str, Any] | None = None,
    measure: bool = False,
    index_dir: str | Path | None = None,
    max_pixels: int = decoding.MAX_PIXELS,
) -> ShardSource:
    """Local ArrayRecord files of tf.train.Example, by random access; arguments of `read_tfrecord`.

    Write them with group_size:1; otherwise each read unpacks a whole group.
    """
    if is_remote(str(path)):
        raise ValueError(f"{path}: ArrayRecord files are read only from disks and mounted buckets")
    names = {"image": image, "text": text, "label": label}
    form = record_format("array_record", names, parse=measure or bool(filters))
    return _read(path, form, split, conditioning, filters, index_dir, max_pixels)


def _read(
    path: str | Path,
    form: Format,
    split: str,
    conditioning: str | None,
    filters: Mapping[str, Any] | None,
    index_dir: str | Path | None,
    max_pixels: int,
) -> ShardSource:
    check_reading(split, conditioning)
    chosen = make_filters(filters)
    pattern = str(path) if is_remote(str(path)) else str(user_path(path))
    shards = find_shards(pattern, form.suffix)
    folder = index_folder(pattern) if index_dir is None else user_path(index_dir)
    wanted = {*chosen.scores, WEIGHT}
    index, counts = read_index(shards, form.scan, form.options, folder, wanted)
    if not len(index):
        raise ValueError(f"{path}: there is no example in its {len(shards)} shards")
    roles = (*NEEDED, conditioning)
    broken = np.asarray([row for row in index.faults if index.fault(row, roles)], np.int64)
    kept = chosen.kept(index, broken)
    total = int(np.count_nonzero(kept))
    if split != "all":
        kept &= _in_split(shards, index, counts, split)
    rows = np.flatnonzero(kept)
    logging.info("%s: %d of %d examples in %d shards", path, len(rows), len(index), len(shards))
    if np.count_nonzero(kept[broken]) == len(rows) < len(index):
        message = f"{path}: none of {len(index)} examples passes its filters and split"
        if len(rows):
            row = int(rows[0])
            first = f"{index.key(row)}: {index.fault(row, roles)}"
            message += f" but {len(rows)} that are broken, the first: {first}"
        raise ValueError(message)
    starts = np.cumsum([0, *counts[:-1]])
    return ShardSource(shards, index, starts, rows, form, conditioning, max_pixels, total=total)


def _in_split(
    shards: Sequence[Shard], index: Index, counts: Sequence[int], split: str
) -> np.ndarray:
    """bool [N]: which examples are in a split, by the names of shards or a hash of the keys."""
    named = [shard.name.partition("-")[0] for shard in shards]
    if len(set(named)) > 1 and set(named) <= set(SPLITS):
        return np.repeat([name == split for name in named], counts)
    return in_split(map(index.key, range(len(index))), split)
