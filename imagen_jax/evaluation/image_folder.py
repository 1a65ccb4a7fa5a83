"""A folder of images to be measured: what is in it, and what was done to each before."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from imagen_jax.data.sources import BrokenExample, Source, read_folder
from imagen_jax.images.decoding import decode
from imagen_jax.images.pixels import resize


@dataclass
class Treatment:
    """How many images needed something to become RGB squares of one size.

    counts: by what was done. broken: names of those that could not be read and were left out.
    """

    size: int
    counts: Counter = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size, **dict(sorted(self.counts.items())), "broken": self.broken}


class Part(NamedTuple):
    """Some images in a row: those that could be read, and their places among all of the part.

    digest: changes with any byte of their files.
    """

    images: np.ndarray  # uint8 [images, size, size, 3]
    rows: list[int]
    digest: str


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and those below it, sorted.

    Raises ValueError where there is no such folder, or no image in it.
    """
    source = read_folder(folder, conditioning=None)
    return [Path(folder) / name for name in source.files]


def order_by_ids(files: Sequence[Path], ids: Sequence[str]) -> tuple[list[Path], bool]:
    """(the files in the order of the prompts, whether they are named after the prompts' ids).

    Leading zeros do not count. Where the names are not just these ids, the order is that of the
    names, numbers in them by their value: 2.png before 10.png.
    """
    found = {file.stem.lstrip("0"): file for file in files}
    names = [name.lstrip("0") for name in ids]
    if len(found) != len(files) or set(found) != set(names):
        return sorted(files, key=_number_by_value), False
    return [found[name] for name in names], True


def _number_by_value(file: Path) -> tuple[list[str | int], str]:
    pieces = re.split(r"([0-9]+)", str(file))  # text and numbers in turn
    return [int(piece) if at % 2 else piece for at, piece in enumerate(pieces)], str(file)


def matching_images(folder: str | Path, files: Sequence[Path], of: Path) -> list[Path]:
    """The images of `folder` that are named as `files` of folder `of` are, suffixes apart.

    Raises ValueError where one has no counterpart.
    """
    found = {path.relative_to(folder).with_suffix(""): path for path in list_images(folder)}
    names = [file.relative_to(of).with_suffix("") for file in files]
    missing = [str(name) for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{folder} has no image for {len(missing)} of {len(names)}, {missing[0]} first: the "
            "names must be the same."
        )
    return [found[name] for name in names]


def common_size(files: Sequence[Path]) -> int:
    """The side of all these images' squares, by the files' headers.

    Raises ValueError where they differ; the message says that a size must be given.
    """
    sizes = Counter()
    for file in files:
        try:
            with Image.open(file) as image:
                sizes[image.size] += 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # told when it is read
    if not sizes:
        raise ValueError(f"none of the {len(files)} images can be read, {files[0]} first")
    if len(sizes) > 1:
        some = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(3))
        raise ValueError(
            f"the images have {len(sizes)} sizes ({some}): give --size N, and the centred square "
            "of each is resized to N pixels"
        )
    return min(next(iter(sizes)))


def read_image(file: Path | bytes, treatment: Treatment) -> np.ndarray:
    """uint8 [size, size, 3] of `treatment.size`, with what was done to it counted.

    Grey becomes RGB, what is transparent white, 16 bits 8, what EXIF says is turned upright, an
    animation its first frame; then the largest centred square, resized with antialiasing
    (`images.pixels.resize`). Raises OSError or ValueError where it is broken.
    """
    data = file if isinstance(file, bytes) else file.read_bytes()
    pixels = decode(data)
    with Image.open(io.BytesIO(data)) as opened:
        kind = _kind(opened)
        treatment.counts.update(_what_else(opened))
    return _to_square(pixels, kind, treatment)


def _to_square(image: np.ndarray, kind: str | None, treatment: Treatment) -> np.ndarray:
    treatment.counts["pictures"] += 1
    if kind is not None:
        treatment.counts[kind] += 1
    (height, width), size = image.shape[:2], treatment.size
    if height != width:
        treatment.counts["cropped"] += 1
    if min(height, width) != size:
        treatment.counts["resized" if min(height, width) > size else "enlarged"] += 1
    return resize(image, size)


def _kind(image: Image.Image) -> str | None:
    """What is not plain 8-bit RGB about an image."""
    if image.mode.startswith(("I", "F")):
        return "grey_of_16_bits_or_more"
    if image.has_transparency_data:
        return "transparent_on_white"
    kinds = {"1": "grey", "L": "grey", "P": "palette", "RGB": None}
    return kinds.get(image.mode, f"mode_{image.mode}")


def _what_else(image: Image.Image) -> list[str]:
    """What decoding changed besides the colours."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    return ["turned_upright"] * turned + ["first_of_several_frames"] * _has_more(image)


def _has_more(image: Image.Image) -> bool:
    """Whether anything follows the first frame."""
    try:
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow's readers raise many kinds where a later frame is damaged
        return True


def read_parts(
    files: Sequence[Path],
    treatment: Treatment,
    part_size: int,
    skip_broken: bool | None = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Part]:
    """The images of the files, `part_size` files at a time; for share (i, n) parts i, i + n, ...

    Raises ValueError, naming the file, where one is broken and `skip_broken` is false, or None, for
    images of which none may be left out.
    """

    def read(row: int) -> tuple[np.ndarray, bytes]:
        data = files[row].read_bytes()
        try:
            return read_image(data, treatment), data
        except (OSError, ValueError) as error:
            raise BrokenExample(str(files[row]), str(error)) from error

    return _parts(read, len(files), treatment, part_size, skip_broken, share)


def source_parts(
    source: Source,
    treatment: Treatment,
    part_size: int,
    skip_broken: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Part]:
    """The same of a data source: TFDS, or arrays in memory."""

    def read(row: int) -> tuple[np.ndarray, bytes]:
        image = source[row]["image"]
        return _to_square(image, None, treatment), np.ascontiguousarray(image).tobytes()

    return _parts(read, len(source), treatment, part_size, skip_broken, share)


def _parts(
    read: Callable[[int], tuple[np.ndarray, bytes]],
    total: int,
    treatment: Treatment,
    part_size: int,
    skip_broken: bool | None,
    share: tuple[int, int],
) -> Iterator[Part]:
    index, count = share
    for start in range(index * part_size, total, count * part_size):
        images, rows, digest = [], [], hashlib.sha256(str(treatment.size).encode())
        for row in range(start, min(start + part_size, total)):
            try:
                image, data = read(row)
            except BrokenExample as error:
                if not skip_broken:
                    advice = "--skip_broken leaves such images out, and says so in the report"
                    if skip_broken is None:
                        advice = "psnr and ssim leave no image out: mend it, or remove its pair"
                    raise ValueError(f"cannot read {error}; {advice}") from None
                treatment.broken.append(error.key)
                continue
            digest.update(hashlib.sha256(data).digest())
            images.append(image)
            rows.append(row - start)
        shape = (len(images), treatment.size, treatment.size, 3)
        yield Part(np.asarray(images, np.uint8).reshape(shape), rows, digest.hexdigest())
