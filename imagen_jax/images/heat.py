"""Heat maps over images."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from imagen_jax.images.image_file import SHEET, GeneratedImage
from imagen_jax.images.provenance import marked, source_of

OPACITY = 0.6  # of the colors over the image


def resize_map(
    values: Float[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """A map upsampled to `size`, (width, height), bilinearly."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def colored(heat: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width 3"]:
    """Colors in [0, 1] of a map in [0, 1]: from blue by green and yellow to red."""
    distance = 4 * heat[..., None] - np.array([3.0, 2.0, 1.0])
    return np.clip(1.5 - np.abs(distance), 0, 1)


def overlay(
    image: Image.Image, values: Float[np.ndarray, "rows columns"], opacity: float = OPACITY
) -> GeneratedImage:
    """A map of any size and scale over an image: its lowest value blue, its highest red. Files of
    it say that it is no image of a set, and where the image comes from.
    """
    values = resize_map(values, image.size)
    span = float(np.ptp(values))
    heat = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    pixels = np.asarray(image.convert("RGB"), np.float32)
    mixed = (1 - opacity) * pixels + opacity * 255 * colored(heat)
    made = GeneratedImage.of(Image.fromarray(np.round(mixed).astype(np.uint8)))
    made.info |= SHEET
    source = source_of(image)
    return made if source is None else marked(made, source)
