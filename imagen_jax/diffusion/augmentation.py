"""The low-resolution input of a super-resolution stage: its resizing and its augmentation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.schedules import Cosine, Schedule
from imagen_jax.typing import Images

Resized = Float[Array, "batch resolution resolution channels"]

# The paper names no schedule for the augmentation; the one of its base model is our choice.
AUGMENTATION_SCHEDULE = Cosine()


def sample_levels(
    key: Array, batch: int, lowest: float = 0.0, highest: float = 1.0
) -> Float[Array, " batch"]:
    """Levels of a training batch, uniform in [lowest, highest) (arXiv 2205.11487, section 2.4)."""
    return jax.random.uniform(key, (batch,), jnp.float32, lowest, highest)


def augment(
    low_res: Images,
    level: Float[Array, "..."] | float | int,
    eps: Images,
    schedule: Schedule = AUGMENTATION_SCHEDULE,
) -> Images:
    """Variance-preserving noise of strength `level` in [0, 1], the forward process at t = level.

    Noise conditioning augmentation (arXiv 2205.11487, section 2.4).
    """
    return add_noise(low_res, eps, schedule.logsnr(level))


def upsample(images: Images, resolution: int) -> Resized:
    """Bilinear resize to the resolution x resolution that the network works at."""
    return _bilinear(images, resolution, antialias=False)


def downsample(images: Images, resolution: int) -> Resized:
    """Resize to resolution x resolution: whole factors average pixels, others are antialiased.

    Data sources resize whole factors by averages too, so a super-resolution stage trains on
    pictures made the way that the base stage's were.
    """
    batch, height, width, channels = images.shape
    if resolution < 1 or height % resolution or width % resolution:
        return _bilinear(images, resolution, antialias=True)
    rows, columns = height // resolution, width // resolution
    blocks = images.reshape(batch, resolution, rows, resolution, columns, channels)
    return jnp.mean(blocks, axis=(2, 4), dtype=jnp.float32)


def _bilinear(images: Images, resolution: int, antialias: bool) -> Resized:
    if resolution < 1:
        raise ValueError(f"resolution must be at least 1, got {resolution}")
    batch, _, _, channels = images.shape
    shape = (batch, resolution, resolution, channels)
    return jax.image.resize(images.astype(jnp.float32), shape, "bilinear", antialias=antialias)
