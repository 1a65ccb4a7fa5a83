"""True images with captions, which a super-resolution stage is measured on."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.shard_sources import ShardSource, read_tar
from imagen_jax.data.sources import ArraySource, BrokenExample, drawn, read_npz
from imagen_jax.images.pixels import resize


@dataclass(frozen=True, eq=False)
class CaptionedSet:
    """Some images of a set, each with the likeliest of its captions."""

    images: tuple[np.ndarray, ...]  # uint8 [H, W, 3]
    captions: tuple[str, ...]
    path: str
    split: str

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> dict[str, Any]:
        """For a report."""
        return {"path": self.path, "split": self.split, "images": len(self)}

    def at(self, resolution: int) -> np.ndarray:
        """uint8 [images, resolution, resolution, 3]."""
        return np.stack([resize(image, resolution) for image in self.images])


def read_captioned(
    path: str | Path,
    split: str,
    num: int | None = None,
    text: str = "txt",
    left_out: Collection[str] = (),
) -> CaptionedSet:
    """`num` images of an npz file or of webdataset tars, all of them for None.

    They are drawn by their keys: more are the same ones and others.

    Args:
        text: of tars, where the captions are, as of `read_tar`.
        left_out: keys of images that are not wanted.

    Raises ValueError where there is no such file, or it cannot be read.
    """
    npz = str(path).endswith(".npz")
    source = read_npz(path, split) if npz else read_tar(path, split, text=text)
    keys = keys_of(source)
    rows = [row for row, key in enumerate(keys) if key not in left_out]
    rows = drawn(rows, keys.__getitem__)[:num]
    try:
        examples = [source[row] for row in rows]
    except BrokenExample as error:
        raise ValueError(f"cannot read {error} of {path}") from None
    captions = [max(example["captions"], key=lambda pair: pair[1])[0] for example in examples]
    images = tuple(np.asarray(example["image"]) for example in examples)
    return CaptionedSet(images, tuple(captions), str(path), split)


def keys_of(source: ArraySource | ShardSource) -> list[str]:
    """The key of every example, without the name of its shard, and without reading images."""
    if isinstance(source, ArraySource):
        return list(source.keys)
    return [source.index.key(int(row)).partition("/")[2] for row in source.rows]
