"""Thresholding: how x0 is kept in [-1, 1] while sampling (arXiv 2205.11487, section 2.3)."""

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import per_example
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.typing import Images


def static_threshold(x0: Images) -> Images:
    """Clips to [-1, 1] (arXiv 2205.11487, section 2.3)."""
    return jnp.clip(x0, -1.0, 1.0)


def dynamic_threshold(x0: Images, sampling: Sampling) -> Images:
    """Clips each image to [-s, s] and divides by s: a percentile of its |x0|, at least 1.

    arXiv 2205.11487, section 2.3; the cap is DeepFloyd IF's.
    """
    magnitudes = jnp.abs(x0).reshape(x0.shape[0], -1)
    percentile = jnp.broadcast_to(jnp.asarray(sampling.percentile, jnp.float32), x0.shape[:1])
    scale = jax.vmap(jnp.percentile)(magnitudes, percentile)
    scale = per_example(jnp.clip(scale, 1.0, sampling.cap), x0)
    return jnp.clip(x0 / scale, -1.0, 1.0)


THRESHOLDS = {
    "none": lambda x0, sampling: x0,
    "static": lambda x0, sampling: static_threshold(x0),
    "dynamic": dynamic_threshold,
}
