"""Activations by name."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution's function of x (arXiv 1606.08415, eq. 1), in float32 inside.

    By erf, as PyTorch has it, for which XLA has one rational function; jax's own goes by erfc,
    which has two branches with an exponential: 2.7 times as long on a CPU, and too much for XLA to
    fuse into the sums of a norm's gradient on a GPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(math.sqrt(0.5) * wide))).astype(x.dtype)


ACTIVATIONS = {"swish": nn.swish, "gelu": gelu}
