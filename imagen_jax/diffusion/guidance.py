"""Guidance: how the conditional and the unconditional output mix."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import per_example
from imagen_jax.diffusion.sampling import Number, Sampling
from imagen_jax.typing import Images


def guidance_weight(sampling: Sampling, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """The weight that acts at each time: `sampling.guidance` inside the interval, 1 outside."""
    start, stop = sampling.guidance_interval
    return jnp.where((start <= t) & (t <= stop), jnp.asarray(sampling.guidance, jnp.float32), 1.0)


def guide(
    conditional: Images, unconditional: Images, weight: Number, rescale: Number = 0.0
) -> Images:
    """w cond + (1 - w) uncond (arXiv 2205.11487, eq. 2), rescaled to the deviation of cond.

    The kinds of prediction are linear in each other at the same x_t, so the mix may be made in any
    of them; the rescaling is made in the network's own, as in arXiv 2305.08891, section 3.4.
    """
    weight = per_example(weight, conditional)
    rescale = per_example(rescale, conditional)
    mixed = weight * conditional + (1.0 - weight) * unconditional
    axes = tuple(range(1, mixed.ndim))
    deviation = jnp.std(mixed, axis=axes, keepdims=True)
    wanted = jnp.std(conditional, axis=axes, keepdims=True)
    ratio = jnp.where(deviation > 0.0, wanted / jnp.maximum(deviation, 1e-20), 1.0)
    return mixed * (1.0 + rescale * (ratio - 1.0))
