"""Captions embedded ahead of training: ArrayRecord shards that an image set is read with.

A directory holds embeddings.json, which says what the embeddings are of and what they were made
with, and shards of `shard_size` examples each: record i is that of the image set's example i, and
has an embedding for each of its captions. Written by imagen-jax embed_text.
"""

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from imagen_jax.data.captions import Captions
from imagen_jax.data.records import array_records
from imagen_jax.data.sources import Source, broken_as
from imagen_jax.storage.codec import to_dict
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import parse_object, read_dataclass, write_object
from imagen_jax.storage.trees import flatten

MANIFEST = "embeddings.json"
HEADER_SIZE = struct.Struct("<I")
MAX_HEADER_BYTES = 2**20


class Embedding(NamedTuple):
    """One caption's text: its tokens' embeddings, and the length to pad them to."""

    tokens: np.ndarray  # bfloat16 [tokens, width]
    length: int

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(bfloat16 [length, width], with zeros after the last token; bool [length])."""
        values = np.zeros((self.length, self.tokens.shape[1]), ml_dtypes.bfloat16)
        values[: len(self.tokens)] = self.tokens
        return values, np.arange(self.length) < len(self.tokens)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a directory of embeddings holds: `examples` records of captions with at most `length`
    tokens of `width`; `fingerprint`: what made them; `dtype`: of the encoder's weights.
    """

    examples: int
    shard_size: int
    length: int
    width: int
    dtype: str
    fingerprint: Mapping[str, Any]

    def __post_init__(self):
        numbers = self.examples, self.shard_size, self.length, self.width
        if min(numbers) < 1:
            raise ValueError(f"its sizes are {numbers}")

    @property
    def shards(self) -> int:
        """How many files hold the examples."""
        return -(-self.examples // self.shard_size)


def shard_path(directory: Path, manifest: Manifest, number: int) -> Path:
    """The file of shard `number`, counted from 0."""
    return directory / f"embeddings-{number:05d}-of-{manifest.shards:05d}.array_record"


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """The manifest of a directory. ValueError where it is missing or damaged."""
    directory = user_path(directory)
    try:
        return read_dataclass(directory / MANIFEST, "a description of embeddings", Manifest)
    except FileNotFoundError:
        raise ValueError(
            f"there are no embeddings in {directory}: imagen-jax embed_text makes them"
        ) from None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Begins a directory, or checks that one was begun with the same manifest.

    Raises:
        ValueError: its manifest differs; the message names how.
    """
    path = directory / MANIFEST
    if path.exists():
        _check_same(directory, to_dict(read_manifest(directory)), to_dict(manifest))
        return
    write_object(path, to_dict(manifest))


def check_fingerprint(directory: str | os.PathLike, wanted: Mapping[str, Any]) -> None:
    """ValueError names what the embeddings were made with that differs from `wanted`."""
    found = read_manifest(directory).fingerprint
    wanted = to_dict(wanted)
    if wanted.get("weights") is None:  # the config does not say which: they cannot be compared
        wanted = wanted | {"weights": found.get("weights")}
    _check_same(directory, {name: found.get(name) for name in wanted}, wanted)


def _check_same(
    directory: str | os.PathLike, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """ValueError names the first fields by which two mappings differ."""
    there, here = flatten(found), flatten(wanted)
    differing = [
        f"{name} {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise ValueError(
            f"the embeddings in {directory} were made differently: {'; '.join(differing[:5])}"
        )


# ------------------------------------------------------------------------------------- records


def _captions_digest(captions: Captions) -> str:
    texts = json.dumps([text for text, _ in captions])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def pack(key: str, captions: Captions, tokens: Sequence[np.ndarray]) -> bytes:
    """A record: the example's key, a digest of its captions, and the embeddings of each."""
    header = {"key": key, "captions": _captions_digest(captions), "tokens": [*map(len, tokens)]}
    text = json.dumps(header).encode()
    rows = (np.asarray(row, ml_dtypes.bfloat16).tobytes() for row in tokens)
    return b"".join([HEADER_SIZE.pack(len(text)), text, *rows])


def unpack(record: bytes, width: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(header, tokens of each caption). ValueError where it is damaged."""
    (size,) = HEADER_SIZE.unpack_from(record)
    if size > min(MAX_HEADER_BYTES, len(record) - HEADER_SIZE.size):
        raise ValueError(f"its header has {size} bytes")
    start = HEADER_SIZE.size + size
    header = parse_object(record[HEADER_SIZE.size : start])
    values = np.frombuffer(record, ml_dtypes.bfloat16, offset=start)
    counts = header["tokens"]
    if values.size != sum(counts) * width:
        raise ValueError(f"it has {values.size} numbers for {sum(counts)} tokens of {width}")
    return header, np.split(values.reshape(-1, width), np.cumsum(counts)[:-1]) if counts else []


# -------------------------------------------------------------------------------------- source


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedSource:
    """An image set whose examples have an `Embedding` in place of each caption's text.

    Raises BrokenExample for what could not be read when the captions were embedded, and ValueError
    where the image set is another one.
    """

    source: Source
    directory: Path
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sizes(self) -> np.ndarray | None:
        """(width, height) of each example, where the image set knows them."""
        return getattr(self.source, "sizes", None)

    @property
    def weights(self) -> np.ndarray | None:
        """How often each example is drawn, where the image set knows it."""
        return getattr(self.source, "weights", None)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        captions = example["captions"]
        number, place = divmod(index, self.manifest.shard_size)
        path = shard_path(self.directory, self.manifest, number)
        key = f"{path}[{place}]"
        with broken_as(key):
            header, tokens = unpack(array_records(str(path))[place], self.manifest.width)
            made_of = header["key"], header["captions"]
            if not tokens:
                raise ValueError("it could not be read when captions were embedded")
        if made_of != (example["key"], _captions_digest(captions)):
            raise ValueError(
                f"{key} is of {header['key']!r}, but example {index} is {example['key']!r}, or its "
                "captions have changed: embed the captions of this set again"
            )
        embedded = [
            (Embedding(rows, self.manifest.length), weight)
            for rows, (_, weight) in zip(tokens, captions, strict=True)
        ]
        return example | {"captions": embedded}


def read_embedded(source: Source, directory: str | os.PathLike) -> EmbeddedSource:
    """The image set with the embeddings of its captions.

    Raises:
        ValueError: they are of another set, or not all there yet.
    """
    directory = user_path(directory)
    manifest = read_manifest(directory)
    if manifest.examples != len(source):
        raise ValueError(
            f"{directory} has embeddings of {manifest.examples} examples, and the set has "
            f"{len(source)}"
        )
    present = {path.name for path in directory.glob("embeddings-*.array_record")}
    paths = [shard_path(directory, manifest, number) for number in range(manifest.shards)]
    if missing := [path.name for path in paths if path.name not in present]:
        raise ValueError(
            f"{directory} lacks {len(missing)} of {manifest.shards} shards, the first "
            f"{missing[0]}: start imagen-jax embed_text again, it continues where it stopped"
        )
    return EmbeddedSource(source, directory, manifest)
