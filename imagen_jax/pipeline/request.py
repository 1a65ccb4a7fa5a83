"""What callers of a pipeline say, checked and brought into one form."""

import os
import secrets
from collections.abc import Iterable, Sequence
from math import gcd, lcm, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from imagen_jax import models
from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage
from imagen_jax.diffusion.sampling import is_number
from imagen_jax.images.decoding import decode, to_rgb
from imagen_jax.images.pixels import to_float

LARGEST_SEED = 2**32 - 1
MAX_PIXELS = 2**26  # of an image from outside
WIDEST = 8  # an image's longer side, at most, for each pixel of the shorter
AspectRatio = str | float | int | tuple[float | int, ...]
ImageInput = Image.Image | np.ndarray | str | os.PathLike


class Subjects(NamedTuple):
    """What to paint: prompts, labels or neither, and what guidance leads away from."""

    prompts: list[str] | None
    labels: list[int] | None
    negative_prompt: str | None = None

    @property
    def count(self) -> int:
        return len(self.prompts or self.labels or [None])


def check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1: {value!r}.")
    return int(value)


def check_seed(seed: int | None) -> int:
    """The seed, or a new one."""
    if seed is None:
        return secrets.randbelow(LARGEST_SEED + 1)
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}: {seed!r}.")
    return int(seed)


def read_subjects(
    cascade: Cascade,
    name: str,
    prompt: str | Sequence[str] | None,
    label: int | Sequence[int] | None,
    negative_prompt: str | None,
) -> Subjects:
    """Prompts and labels as lists, as far as the model's stages read any."""
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise ValueError(f"negative_prompt is one string for all images, not {negative_prompt!r}.")
    kinds = {stage.conditioning for stage in cascade.stages}
    if "text" in kinds:
        if prompt is None:
            raise ValueError(f"{name!r} paints prompts: give one.")
        if cascade.encoder is None:
            raise ValueError(
                f"{name!r} reads text, but came without a text encoder: load it together with the "
                "model that has its encoder, load_model([that one, this one])."
            )
    elif prompt is not None:
        raise ValueError(f"{name!r} reads no text, but a prompt was given: {prompt!r}.")
    if "label" in kinds:
        if label is None:
            raise ValueError(f"{name!r} paints classes: give label=.")
    elif label is not None:
        raise ValueError(f"{name!r} knows no classes, but label={label!r} was given.")
    knows_empty = cascade.encoder is not None and cascade.encoder.null == "empty"
    prompts = None if prompt is None else _prompts(prompt, knows_empty)
    labels = None if label is None else _labels(cascade, label)
    if prompts and labels and len(prompts) != len(labels):
        raise ValueError(f"{len(prompts)} prompts but {len(labels)} labels.")
    if negative_prompt is None or not negative_prompt.strip():
        return Subjects(prompts, labels)
    if cascade.encoder is None:
        raise ValueError(f"{name!r} reads no text, so no negative_prompt either.")
    return Subjects(prompts, labels, negative_prompt)


def _prompts(prompt: str | Sequence[str], may_be_empty: bool) -> list[str]:
    if not isinstance(prompt, str | Iterable):
        raise ValueError(f"A prompt must be a string, or a list of strings: {prompt!r}.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("The list of prompts is empty.")
    for entry in prompts:
        if not isinstance(entry, str):
            raise ValueError(f"A prompt must be a string: {entry!r}.")
        if not entry.strip() and not may_be_empty:
            raise ValueError(f"The prompt is empty: {entry!r}. Say what to paint.")
    return prompts


def _labels(cascade: Cascade, label: int | Sequence[int]) -> list[int]:
    labels = [label] if isinstance(label, int | np.integer) else list(label)
    labels = [int(value) for value in labels]
    if not labels:
        raise ValueError("The list of labels is empty.")
    for stage in cascade.stages:
        classes = getattr(stage.network, "num_classes", None)
        wrong = [v for v in labels if classes is not None and not 0 <= v < classes]
        if stage.conditioning == "label" and wrong:
            raise ValueError(f"label must lie in 0 ... {classes - 1}: {wrong[0]}.")
    return labels


def last_stage(cascade: Cascade, name: str, size: int | None) -> int:
    """The position of the stage that makes images of this size; the last when None."""
    if size is None:
        return len(cascade.stages) - 1
    if size not in cascade.sizes:
        known = ", ".join(map(str, cascade.sizes))
        raise ValueError(f"No stage of {name!r} makes size {size!r}; sizes: {known}.")
    return cascade.sizes.index(size)


def base_size(cascade: Cascade, aspect_ratio: AspectRatio | None) -> tuple[int, int] | None:
    """(height, width) of the base stage for an aspect ratio, width to height; None for a square.

    About as many pixels as the square has; sides that every network of the cascade can halve.
    """
    if aspect_ratio is None:
        return None
    try:
        parts = aspect_ratio.split(":") if isinstance(aspect_ratio, str) else aspect_ratio
        parts = (parts,) if is_number(parts) else parts
        width, height = (*parts, 1) if len(parts) == 1 else parts
        ratio = float(width) / float(height)
    except (TypeError, ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 1 / WIDEST <= ratio <= WIDEST:
        raise ValueError(
            f'aspect_ratio is {aspect_ratio!r}; it must be width to height, such as "16:9" or 1.5, '
            f"between 1:{WIDEST} and {WIDEST}:1."
        )
    side, step = cascade.stages[0].resolution, _common_divisor(cascade.stages)
    return _nearest(side / sqrt(ratio), step), _nearest(side * sqrt(ratio), step)


def upscaled_from(cascade: Cascade, positions: range, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) to shrink an image of `size`, (width, height), to, for these stages.

    The shorter side is the first stage's low resolution; both are what all networks can halve.

    Raises:
        ValueError: the image is too long.
    """
    if max(size) > WIDEST * min(size):
        raise ValueError(
            f"The image is {size[0]}x{size[1]}; what is enlarged must be between 1:{WIDEST} and "
            f"{WIDEST}:1."
        )
    stages = [cascade.stages[position] for position in positions]
    step, scale = _common_divisor(stages), stages[0].low_resolution / min(size)
    width, height = size
    return _nearest(height * scale, step), _nearest(width * scale, step)


def _common_divisor(stages: Sequence[Stage]) -> int:
    """What must divide the sides of the first stage's input, for all networks to halve theirs."""
    step, factor = 1, 1
    for stage in stages:
        factor *= stage.resolution // (stage.low_resolution or stage.resolution)
        reduction = models.reduction(stage.network)
        step = lcm(step, reduction // gcd(reduction, factor))
    return step


def _nearest(length: float, step: int) -> int:
    return max(round(length / step), 1) * step


def read_image(image: ImageInput) -> Image.Image:
    """A caller's image as upright RGB: PIL, a file's path, or an array uint8 [height, width, 3].

    What is transparent becomes white.
    """
    if isinstance(image, str | os.PathLike):
        return Image.fromarray(_decoded(Path(image)))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"An image as an array must be uint8 [height, width, 3], not {image.dtype} "
                f"{list(image.shape)}."
            )
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"An image must be PIL, a path or an array, not {type(image).__name__}.")
    return Image.fromarray(to_rgb(image))


def _decoded(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        return decode(path, MAX_PIXELS)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no whole image that can be read: {error}.") from None


def read_mask(mask: ImageInput, size: tuple[int, int]) -> Image.Image:
    """A mask of an image of this size, (width, height): white where to draw anew."""
    if isinstance(mask, np.ndarray) and mask.ndim in (2, 3) and mask.shape[2:] in ((), (1,)):
        values = mask.reshape(mask.shape[:2])
        if values.dtype != np.uint8:
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError("A mask as an array is bool, 0 to 1, or uint8.")
            values = (values.astype(np.float32) * 255).astype(np.uint8)
        mask = Image.fromarray(values)
    mask = read_image(mask).convert("L")
    if mask.size != size:
        raise ValueError(
            f"The mask is {mask.width}x{mask.height}, the image {size[0]}x{size[1]}: "
            "they must be of one size."
        )
    return mask


def to_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """[1, height, width, 3] in [-1, 1]: the largest centred part of this shape, resized."""
    fitted = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    return to_float(np.asarray(fitted))[None]


def to_binary_mask(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """[1, height, width, 1] of 0 and 1, cut and resized as `to_pixels` does."""
    fitted = ImageOps.fit(mask, size[::-1], Image.Resampling.BOX)
    return (np.asarray(fitted, np.float32)[None, ..., None] >= 127.5).astype(np.float32)
