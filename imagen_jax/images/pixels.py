"""Pixels: sizes (resized, cropped) and ranges (uint8, floats in [-1, 1])."""

from typing import Any

import numpy as np
from PIL import Image


def size_of(image: np.ndarray | Image.Image) -> tuple[int, int]:
    """(width, height)."""
    return image.size if isinstance(image, Image.Image) else image.shape[1::-1]


def resize(image: np.ndarray | Image.Image, resolution: int) -> np.ndarray:
    """uint8 [resolution, resolution, 3]: the largest centred square, resized with antialiasing."""
    return resize_and_crop(image, (resolution, resolution))


def resize_and_crop(
    image: np.ndarray | Image.Image,
    size: tuple[int, int],
    crop: tuple[int, int] | None = None,
    at: tuple[float, float] | None = None,
) -> np.ndarray:
    """uint8 [height, width, 3]: resized until it just covers `size`, of which `crop` is cut out.

    A whole factor averages whole pixels, other reductions use Lanczos, and upsampling is bicubic.

    Args:
      size, crop: (width, height); crop None is `size`, so that only the longer side is cut.
      at: where to cut, of all places there are: (x, y) in [0, 1); None is the centre.
    """
    image = to_pil(image)
    crop = crop or size
    if image.size == crop == size:
        return np.asarray(image)
    factor = min(have / wanted for have, wanted in zip(image.size, size, strict=True))
    sides = np.multiply(crop, factor)  # of the piece, in the image's own pixels
    slack = np.maximum(image.size - sides, 0)
    start = slack / 2 if at is None else np.minimum(np.multiply(at, slack + 1), slack)
    box = (*np.floor(start), *np.minimum(np.floor(start) + sides, image.size))
    if factor.is_integer():
        return np.asarray(image.reduce(int(factor), tuple(map(round, box))))
    kernel = Image.Resampling.LANCZOS if factor > 1 else Image.Resampling.BICUBIC
    return np.asarray(image.resize(crop, kernel, box=box))


def clip_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Antialiased bicubic to `side` on the shorter edge, in 8 bits, then the centred square: CLIP's
    (arXiv 2103.00020) as transformers does it.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = int(side * width / short), int(side * height / short)
    resized = Image.fromarray(np.ascontiguousarray(image))
    resized = np.asarray(resized.resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return resized[top : top + side, left : left + side]


def to_float(pixels: Any) -> Any:
    """uint8 0..255, of NumPy or jax -> float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_pil(image: np.ndarray | Image.Image) -> Image.Image:
    """An image as PIL: PIL itself, uint8 or floats in [-1, 1] of [height, width, channels]."""
    if isinstance(image, Image.Image):
        return image
    pixels = image if np.asarray(image).dtype == np.uint8 else to_uint8(image)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] -> uint8 in [0, 255], rounded; what lies outside is clipped."""
    images = np.asarray(images, np.float32)
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
