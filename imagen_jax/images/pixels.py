"""From an RGB image of any size to the image that a stage trains on."""

from typing import Any

import numpy as np
from PIL import Image


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

    A whole factor is an average of whole pixels; other factors use Lanczos, enlarging bicubic.

    Args:
      size, crop: (width, height); crop None is `size`, so that only the longer side is cut.
      at: where to cut, of all places there are: (x, y) in [0, 1); None is the centre.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    crop = size if crop is None else crop
    if image.size == crop and crop == size:
        return np.asarray(image)
    factor = min(have / wanted for have, wanted in zip(image.size, size, strict=True))
    sides = [wanted * factor for wanted in crop]  # of the piece, in the image's own pixels
    box = [
        _place(max(have - side, 0), None if at is None else at[axis])
        for axis, (have, side) in enumerate(zip(image.size, sides, strict=True))
    ]
    box += [min(b + side, have) for b, side, have in zip(box, sides, image.size, strict=True)]
    if factor.is_integer():
        return np.asarray(image.reduce(int(factor), tuple(map(round, box))))
    kernel = Image.Resampling.LANCZOS if factor > 1 else Image.Resampling.BICUBIC
    return np.asarray(image.resize(crop, kernel, box=tuple(box)))


def _place(slack: float, at: float | None) -> int:
    """Where a piece begins, in whole pixels, that may be moved by `slack`."""
    return int(slack / 2) if at is None else min(int(at * (slack + 1)), int(slack))


def to_float(pixels: Any) -> Any:
    """uint8 0..255, of NumPy or jax -> float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_pil(image: np.ndarray | Image.Image) -> Image.Image:
    """An image as PIL: PIL itself, uint8 [H,W,C], or floats in [-1, 1] [H,W,C]."""
    if isinstance(image, Image.Image):
        return image
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = to_uint8(image)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] -> uint8 in [0, 255], rounded; what lies outside is clipped."""
    images = np.asarray(images, np.float32)
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
