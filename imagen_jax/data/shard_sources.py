"""Sharded image sets by random access: webdataset tars, TFRecord and ArrayRecord files."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import records, tar_index
from imagen_jax.data.filters import make_filters
from imagen_jax.data.index import Index, index_folder, read_index
from imagen_jax.data.shards import Shard, find_shards, is_remote, local_folder
from imagen_jax.data.sources import CONDITIONINGS, SPLITS, BrokenExample, check_choice, is_heldout
from imagen_jax.images import decoding

NEARBY = 2**16  # bytes between two members that are cheaper to read than to ask for twice
NEEDED = ("image", "json")  # what must be sound in every example, whatever is read of it

Fields = Mapping[str, str]  # role -> the name of its member, field or feature
# (shard, spans, fields, roles) -> {"image": bytes, "captions": ..., "label": ...} as asked for
Read = Callable[[Shard, np.ndarray, Fields, tuple[str, ...]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """Examples that lie in shards, found by an index and read one by one.

    rows: those of the index that pass the filters and the split. cover: the side of the square that
    images will be made to cover, so that large JPEGs are decoded faster; None decodes them whole.
    with_images: False leaves them out, for who wants captions alone.
    """

    shards: tuple[Shard, ...]
    index: Index
    starts: np.ndarray  # the first row of each shard
    rows: np.ndarray
    read: Read
    fields: Fields
    conditioning: str | None
    max_pixels: int = decoding.MAX_PIXELS
    cover: int | None = None
    with_images: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """(width, height) of each example, 0 where the index does not know."""
        return self.index.sizes[self.rows]

    def shard_of(self, row: int) -> int:
        """The number of the shard in which a row of the index lies."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.rows[index])
        key = self.index.key(row)
        roles = ("image",) * self.with_images + (self.conditioning,) * (
            self.conditioning is not None
        )
        shard = self.shards[self.shard_of(row)]
        try:
            if fault := self.index.fault(row, (*NEEDED, *roles)):
                raise ValueError(fault)
            example = self.read(shard, self.index.spans[row], self.fields, roles)
            if self.with_images:
                data = example["image"]
                example["image"] = decoding.read(data, self.max_pixels, self.cover)
        except ImportError:
            raise
        except Exception as error:  # decoders and file systems raise as many kinds as there are
            raise BrokenExample(key, str(error) or type(error).__name__) from error
        return example | {"key": key}


def _read_tar_example(
    shard: Shard, spans: np.ndarray, fields: Fields, roles: tuple[str, ...]
) -> dict[str, Any]:
    wanted = {role: spans[("image", "text", "label").index(role)] for role in roles}
    for role, (_, size) in wanted.items():
        if not size and role != "image":
            raise ValueError(f"has no {role}: there is no .{fields[role]}, or it is empty")
    found = _read_spans(shard, {role: (int(at), int(size)) for role, (at, size) in wanted.items()})
    example = {}
    if "image" in roles:
        example["image"] = found["image"]
    if "text" in roles:
        example["captions"] = tar_index.parse_text(found["text"], fields["text"])
    if "label" in roles:
        example["label"] = tar_index.parse_label(found["label"], fields["label"])
    return example


def _read_spans(shard: Shard, spans: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    """The bytes at (offset, size); what lies close together is read at once."""
    if not spans:
        return {}
    first = min(offset for offset, _ in spans.values())
    stop = max(offset + size for offset, size in spans.values())
    if stop - first <= sum(size for _, size in spans.values()) + NEARBY:
        data = shard.read(first, stop)
        return {name: data[at - first : at - first + size] for name, (at, size) in spans.items()}
    return {name: shard.read(at, at + size) for name, (at, size) in spans.items()}


def _parse_record(record: bytes, fields: Fields, roles: tuple[str, ...]) -> dict[str, Any]:
    values, example = records.parse_example(record), {}
    if "image" in roles:
        example["image"] = records.example_image(values, fields["image"])
    if "text" in roles:
        example["captions"] = records.example_captions(values, fields["text"])
    if "label" in roles:
        example["label"] = records.example_label(values, fields["label"])
    return example


def _read_tfrecord_example(
    shard: Shard, spans: np.ndarray, fields: Fields, roles: tuple[str, ...]
) -> dict[str, Any]:
    span = int(spans[0, 0]), int(spans[0, 1])
    return _parse_record(records.read_tfrecord(shard, span), fields, roles)


def _read_array_record_example(
    shard: Shard, spans: np.ndarray, fields: Fields, roles: tuple[str, ...]
) -> dict[str, Any]:
    record = records.read_array_record(shard, int(spans[0, 0]))
    return _parse_record(record, fields, roles)


@dataclasses.dataclass(frozen=True)
class Format:
    """How examples lie in shards whose names end in `suffix`. options: what else an index is of."""

    suffix: str
    scan: Callable[[Shard], Index]
    options: tuple
    read: Read
    fields: Fields


def record_format(
    kind: str,
    scan: Callable[..., Index],
    read: Read,
    fields: Fields,
    parse: bool,
    suffix: str = "",
) -> Format:
    """How shards of tf.train.Example are read; `parse`: whether the index reads records whole."""
    text = fields["text"]
    scanned = functools.partial(scan, text=text, parse=parse)
    return Format(suffix, scanned, (kind, text, parse), read, fields)


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

    Members of one name up to its first dot are an example: an image (.jpg, .png, .webp and so on)
    and what goes with it.

    Args:
      path: a file, a folder of .tar files, or a pattern such as gs://bucket/{00000..00099}.tar.
      split: "train" and "heldout" divide the examples by a hash of their keys.
      text: extension of the member that is the caption, or "json.caption": a field of the .json.
      label: the same of the class number.
      filters: see `Filters`; widths, heights and scores are those of the .json.
      measure: read the sizes of images whose .json does not have them, while the index is made.
      index_dir: where the index is kept; None is `.imagen_jax_index` beside local shards that can
        be written to, else a folder below ~/.cache.

    Raises:
      ValueError: there are no such shards, or no example is left.
    """
    scan = functools.partial(tar_index.scan_tar, text=text, label=label, measure=measure)
    options = ("tar", text, label, measure)
    fields = {"text": text, "label": label}
    form = Format(".tar", scan, options, _read_tar_example, fields)
    return _make(path, form, split, conditioning, filters, index_dir, max_pixels)


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
      filters: see `Filters`; width, height and scores are features, too.
      measure: index these features also where there are no filters, as buckets need; it reads the
        whole of each record, once.

    The other arguments are those of `read_tar`; a folder stands for the files in it that have
    "tfrecord" in their name, or for all where none has.
    """
    fields = {"image": image, "text": text, "label": label}
    parse = measure or bool(filters)
    form = record_format("tfrecord", records.scan_tfrecord, _read_tfrecord_example, fields, parse)
    return _make(path, form, split, conditioning, filters, index_dir, max_pixels)


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

    Write them with group_size:1, or each read unpacks a whole group.
    """
    if is_remote(str(path)):
        raise ValueError(f"{path}: ArrayRecord is read from disks and mounted buckets alone")
    fields = {"image": image, "text": text, "label": label}
    parse = measure or bool(filters)
    scan, read = records.scan_array_record, _read_array_record_example
    form = record_format("array_record", scan, read, fields, parse, ".array_record")
    return _make(path, form, split, conditioning, filters, index_dir, max_pixels)


def _make(
    path: str | Path,
    form: Format,
    split: str,
    conditioning: str | None,
    filters: Mapping[str, Any] | None,
    index_dir: str | Path | None,
    max_pixels: int,
) -> ShardSource:
    check_choice("split", split, SPLITS)
    check_choice("conditioning", conditioning, CONDITIONINGS)
    chosen = make_filters(filters)
    shards = find_shards(str(path), form.suffix)
    folder = index_folder(local_folder(str(path))) if index_dir is None else Path(index_dir)
    index, counts = read_index(shards, form.scan, form.options, folder.expanduser(), chosen.scores)
    if not len(index):
        raise ValueError(f"{path}: there is no example in its {len(shards)} shards")
    roles = (*NEEDED, conditioning)
    broken = np.asarray([row for row in index.faults if index.fault(row, roles)], np.int64)
    kept = chosen.kept(index, broken)
    if split != "all":
        heldout = np.fromiter((is_heldout(index.key(row)) for row in range(len(index))), bool)
        kept &= heldout == (split == "heldout")
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
    return ShardSource(
        shards, index, starts, rows, form.read, form.fields, conditioning, max_pixels
    )
