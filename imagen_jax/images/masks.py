"""Masks of any kind in one form: what is to be regenerated is white, what is kept is black.

Without transparency brightness counts. Masks that paint programs save have some: then what is
transparent is kept, and brightness counts where it is opaque; or `alpha` says what it means.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.images import colors, decoding

ALPHA = ("transparent", "opaque")  # what is to be regenerated, whatever its brightness
LEVELS = (1, 255, 65535)  # what is white, in whole numbers
NEAR = 0.125  # of black or white
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow has it
ADVICE = (
    "mask_alpha='transparent' regenerates what is transparent, mask_alpha='opaque' the rest, "
    "whatever its color"
)
ImageInput = Image.Image | np.ndarray | str | os.PathLike


def read_mask(
    mask: Any, alpha: str | None = None, max_pixels: int = decoding.MAX_PIXELS
) -> Image.Image:
    """A mask in mode L, upright, of an `ImageInput` or another library's array.

    Arrays are [height, width] or [height, width, 1 to 4], bool, floats in 0...1 or whole numbers.
    Of whole numbers white is 1 where there is none above it, else 255, else 65535.

    Args:
      alpha: None, or what of a mask with transparency is to be regenerated: "transparent" or
        "opaque".

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is broken, or of another form or range; it is transparent in part, and what
        that means is not clear; or all of it is black.
    """
    if alpha not in (None, *ALPHA):
        raise ValueError(f"mask_alpha is {alpha!r}; it must be 'transparent', 'opaque' or None.")

    def convert(image: Image.Image) -> Image.Image:
        deep = colors.is_deep(image)  # in its own range
        values, opacity = (image, colors.alpha_of(image)) if deep else colors.split(image)
        opacity = None if opacity is None else np.asarray(opacity)
        return _to_mask(np.atleast_3d(values), opacity, alpha)

    if isinstance(mask, Image.Image):
        return Image.fromarray(decoding.to_rgb(mask, convert))
    if isinstance(mask, str | os.PathLike):
        return decoding.read(Path(mask), max_pixels, convert=convert)
    if not hasattr(mask, "__array__"):
        raise ValueError(f"it must be PIL, a path or an array, not {type(mask).__name__}")
    values = np.asarray(mask)
    shape, values = list(values.shape), values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4 or not values.size:
        raise ValueError(
            f"its shape is {shape}; it must be [height, width] or with 1 to 4 channels"
        )
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it holds {values.dtype}; it must hold bool, floats or whole numbers")
    channels = values.shape[2]
    opacity = values[..., -1] if channels in (2, 4) else None
    return _to_mask(values[..., : 1 if channels < 3 else 3], opacity, alpha)


def _to_mask(values: np.ndarray, opacity: np.ndarray | None, alpha: str | None) -> Image.Image:
    """values: [height, width, 1 or 3], opacity: [height, width], of any range."""
    opacity = np.ones(values.shape[:2]) if opacity is None else _to_unit(opacity, "opacity")
    partly = opacity.min() < 1
    if alpha is not None and not partly:
        raise ValueError(f"mask_alpha is {alpha!r}, but nothing in the mask is transparent")
    if alpha is not None:
        white, wanted = opacity if alpha == "opaque" else 1 - opacity, alpha
    else:
        white, wanted = _brightness(values, opacity), "opaque and white" if partly else "white"
    if white.max() < 0.5:
        advice = f"; {ADVICE}" if partly else ""
        raise ValueError(
            f"nothing in it is {wanted}, so nothing is to be regenerated (the most is "
            f"{white.max():.0%}){advice}"
        )
    return Image.fromarray(np.floor(white * 255 + 0.5).astype(np.uint8))


def _brightness(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """[height, width] in 0...1 on black; ValueError where most of what is opaque is grey."""
    shown = opacity > 0  # what is transparent may have any color
    values = _to_unit(np.where(shown[..., None], values, 0), "values")
    bright = values @ np.asarray(LUMA if values.shape[2] == 3 else (1,), np.float32)
    grey = np.abs(bright - 0.5) < 0.5 - NEAR
    share = np.average(grey, weights=opacity) if shown.any() else 0
    if opacity.min() < 1 and share > 0.5:
        raise ValueError(
            f"a part of it is transparent, and {share:.0%} of the rest is neither black nor white, "
            f"so what is to be regenerated is not clear; {ADVICE}"
        )
    return bright * opacity


def _to_unit(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers in 0...1, of bool, of floats in 0...1, or of whole numbers up to a level of white."""
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind != "f" or bool((values == np.round(values)).all())
    white = next((level for level in LEVELS if high <= level), None) if whole else 1
    if white is None or not 0 <= low <= high <= white:
        raise ValueError(
            f"its {what} run from {low:g} to {high:g}; they must be bool, floats in 0...1, or "
            f"whole numbers in {' or '.join(f'0...{level}' for level in LEVELS)}"
        )
    return values.astype(np.float32) / white
