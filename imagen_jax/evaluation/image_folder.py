"""A folder of images to be measured: what is in it, and how each becomes a square of one size."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.data.captions import normalized
from imagen_jax.data.image_files import find_images
from imagen_jax.data.sources import BrokenExample, Source
from imagen_jax.evaluation.shards import WHOLE
from imagen_jax.images import decoding
from imagen_jax.images.pixels import resize
from imagen_jax.storage.folders import natural_key, user_path


@dataclass
class Preprocessing:
    """How many images needed something to become RGB squares of one size.

    counts: by what was done. broken: names of those that could not be read and were left out.
    """

    size: int
    counts: Counter = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For a report: the size, and what was done to how many images."""
        done = {name: count for name, count in sorted(self.counts.items()) if count}
        return {"size": self.size, **done, "broken": self.broken}


class Chunk(NamedTuple):
    """Consecutive images: those that could be read, and their places among all images.

    start: the place of the first. digest: changes with any byte of their files.
    """

    start: int
    images: np.ndarray  # uint8 [images, size, size, 3]
    rows: list[int]
    digest: str


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and those below it, sorted; see `find_images` for what counts.

    Raises ValueError where there is no such folder, or no image in it.
    """
    found = find_images(folder)
    return [found.folder / name for name in found.images]


def order_by_ids(files: Sequence[Path], ids: Sequence[str]) -> tuple[list[Path], bool]:
    """(the files in the order of the prompts, whether they are named after the prompts' ids).

    Leading zeros do not count. Where the names are not just these ids, the order is that of the
    names, numbers in them by their value: 2.png before 10.png.
    """
    found = {normalized(file.stem).lstrip("0"): file for file in files}
    names = [normalized(name).lstrip("0") for name in ids]
    if len(found) != len(files) or set(found) != set(names):
        return sorted(files, key=lambda file: natural_key(str(file))), False
    return [found[name] for name in names], True


def matching_images(folder: str | Path, files: Sequence[Path], of: Path) -> list[Path]:
    """The images of `folder` that are named like `files` of folder `of`, whatever the suffix.

    Raises ValueError where one has no counterpart.
    """
    folder, of = user_path(folder), user_path(of)

    def name_of(file: Path, below: Path) -> str:
        return normalized(str(file.relative_to(below).with_suffix("")))

    found = {name_of(file, folder): file for file in list_images(folder)}
    names = [name_of(file, of) for file in files]
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{folder} has no image for {len(missing)} of {len(names)}, {missing[0]} first: the "
            "names must be the same."
        )
    return [found[name] for name in names]


@dataclass(frozen=True)
class SourceImages:
    """The images of a data source by index: of TFDS, or arrays in memory."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source[index]["image"]


def common_size(files: Sequence[Path] | SourceImages) -> int:
    """The side of all these images' squares, by the files' headers; of a source, of its first.

    Raises ValueError where they differ; the message says that a size must be given.
    """
    if isinstance(files, SourceImages):
        return min(files[0].shape[:2])
    sizes = Counter()
    for file in files:
        sizes[decoding.size(file)] += 1
    del sizes[0, 0]  # broken: told when it is read
    if not sizes:
        raise ValueError(f"none of the {len(files)} images can be read, {files[0]} first")
    if len(sizes) > 1:
        some = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(3))
        raise ValueError(
            f"the images have {len(sizes)} sizes ({some}): give --size N, and the centred square "
            "of each is resized to N pixels"
        )
    return min(next(iter(sizes)))


def read_image(file: Path | bytes, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 [size, size, 3] of `preprocessing.size`, with what was done to it counted.

    Grey becomes RGB, other color profiles sRGB, what is transparent white, 16 bits 8, what EXIF
    says is turned upright, an animation its first frame; then the largest centred square, resized
    with antialiasing (`images.pixels.resize`). Raises OSError or ValueError where it is broken,
    which names the file where a path is given.
    """
    if isinstance(file, Path):
        try:
            return read_image(file.read_bytes(), preprocessing)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    pixels = decoding.decode(file)
    preprocessing.counts.update(decoding.changes(file))
    return _to_square(pixels, preprocessing)


def _to_square(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    (height, width), size, counts = image.shape[:2], preprocessing.size, preprocessing.counts
    counts["pictures"] += 1
    counts["cropped"] += height != width
    counts["resized"] += min(height, width) > size
    counts["enlarged"] += min(height, width) < size
    return resize(image, size)


def read_chunks(
    items: Sequence[Path] | SourceImages,
    preprocessing: Preprocessing,
    ranges: Iterable[range] | None = None,
    skip_broken: bool | None = False,
) -> Iterator[Chunk]:
    """Images from files or of a source, preprocessed.

    Args:
        ranges: the indices of the images in each chunk; None is all of them.

    Raises ValueError, naming the image, where one is broken and `skip_broken` is false, or None,
    for images of which none may be left out.
    """
    for indices in WHOLE.chunks(len(items)) if ranges is None else ranges:
        images, rows = [], []
        digest = hashlib.sha256(str(preprocessing.size).encode())
        for index in indices:
            try:
                image, data = _read(items[index], preprocessing)
            except BrokenExample as error:
                if not skip_broken:
                    advice = "--skip_broken leaves such images out, and says so in the report"
                    if skip_broken is None:
                        advice = "psnr and ssim leave no image out: mend it, or remove its pair"
                    raise ValueError(f"cannot read {error}; {advice}") from None
                preprocessing.broken.append(error.key)
                continue
            digest.update(hashlib.sha256(data).digest())
            images.append(image)
            rows.append(index)
        shape = (len(images), preprocessing.size, preprocessing.size, 3)
        pixels = np.asarray(images, np.uint8).reshape(shape)
        yield Chunk(indices.start, pixels, rows, digest.hexdigest())


def _read(item: Path | np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, bytes]:
    """(the image as it is measured, the bytes that tell it from others)."""
    if isinstance(item, np.ndarray):
        return _to_square(item, preprocessing), np.ascontiguousarray(item).tobytes()
    data = item.read_bytes()
    try:
        return read_image(data, preprocessing), data
    except (OSError, ValueError) as error:
        raise BrokenExample(str(item), str(error)) from error
