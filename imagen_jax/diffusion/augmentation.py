"""The low-resolution input of a super-resolution stage: its resizing and its augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.schedules import Cosine, Schedule
from imagen_jax.typing import Images

Resized = Float[Array, "batch new_height new_width channels"]
Size = tuple[int, int] | int  # (height, width), or the side of a square

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
    return add_noise(low_res, eps, schedule.logsnr(level), schedule)


def upsample(images: Images, size: Size, method: str = "bilinear") -> Resized:
    """Resize to the size that the network works at; `method` is a key of UPSAMPLINGS.

    Raises:
        ValueError: a side below 1.
    """
    return UPSAMPLINGS[method](images, _sides(size))


def downsample(images: Images, resolution: int) -> Resized:
    """Resize to resolution x resolution: whole factors average pixels, others are antialiased.

    Data sources resize whole factors by averages too, so a super-resolution stage trains on
    images made the way that the base stage's were.

    Raises:
        ValueError: a resolution below 1.
    """
    size, (batch, height, width, channels) = _sides(resolution), images.shape
    if height % resolution or width % resolution:
        return _bilinear(images, size, antialias=True)
    rows, columns = height // resolution, width // resolution
    blocks = images.reshape(batch, resolution, rows, resolution, columns, channels)
    return jnp.mean(blocks, axis=(2, 4), dtype=jnp.float32)


def _sides(size: Size) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int | np.integer) else tuple(size)
    if min(sides) < 1:
        raise ValueError(f"images cannot be resized to {size}: sides must be at least 1")
    return sides


def _bilinear_align_corners(images: Images, size: tuple[int, int]) -> Resized:
    """Bilinear between the centres of the corner pixels, which stay where they are.

    As torch's `interpolate(mode="bilinear", align_corners=True)`, which DeepFloyd IF uses.
    """
    x = images.astype(jnp.float32)
    for axis, resolution in enumerate(size, start=1):
        length = x.shape[axis]
        stride = np.float32(length - 1) / np.float32(max(resolution - 1, 1))
        position = stride * np.arange(resolution, dtype=np.float32)
        before = np.minimum(position.astype(np.int32), length - 1)
        after = np.minimum(before + 1, length - 1)
        weight = (position - before).reshape([-1 if i == axis else 1 for i in range(4)])
        x = (1.0 - weight) * x.take(before, axis) + weight * x.take(after, axis)
    return x


UPSAMPLINGS = {
    "bilinear": lambda images, size: _bilinear(images, size, antialias=False),
    "bilinear_align_corners": _bilinear_align_corners,
}


def _bilinear(images: Images, size: tuple[int, int], antialias: bool) -> Resized:
    batch, _, _, channels = images.shape
    shape = (batch, *size, channels)
    return jax.image.resize(images.astype(jnp.float32), shape, "bilinear", antialias=antialias)
