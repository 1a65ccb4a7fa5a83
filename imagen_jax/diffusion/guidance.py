"""Guidance: how the output that is wanted and the one to be led away from mix.

A function a kind, of one contract: `(wanted, other, weight, sampling)` -> the mix, at one x_t.
Weight 1 gives `wanted` alone. What a kind does from step to step is in `diffusion.guided_steps`.
"""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import per_example
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.typing import Images

Weight = Float[Array, " batch"]
SMALLEST_SQUARE = 1e-20  # what a sum of squares is divided by at least


def guidance_weight(sampling: Sampling, t: Float[Array, " batch"]) -> Weight:
    """The weight that acts at each time: `sampling.guidance` inside the interval, 1 outside."""
    start, stop = sampling.guidance_interval
    return jnp.where((start <= t) & (t <= stop), jnp.asarray(sampling.guidance, jnp.float32), 1.0)


def linear(wanted: Images, other: Images, weight: Weight, sampling: Sampling) -> Images:
    """w wanted + (1 - w) other: classifier-free guidance (arXiv 2205.11487, eq. 2) and
    autoguidance (arXiv 2406.02507, section 4).
    """
    weight = per_example(weight, wanted)
    return weight * wanted + (1.0 - weight) * other


def projected(wanted: Images, other: Images, weight: Weight, sampling: Sampling) -> Images:
    """Adaptive projected guidance: x0 + (w - 1) (orthogonal + eta parallel) (arXiv 2410.02416).

    The update, wanted - other, is cut to the norm `guidance_norm`, then split into its part along
    the wanted x0, which saturates colors, and the rest (section 4; algorithm 1).
    """
    update, limit = wanted - other, sampling.guidance_norm
    limit = per_example(inf if limit is None else limit, wanted)
    update = update * jnp.minimum(1.0, limit / jnp.sqrt(_square(update)))
    parallel = _dot(update, wanted) / _square(wanted) * wanted
    eta = per_example(sampling.guidance_eta, wanted)
    return wanted + (per_example(weight, wanted) - 1.0) * (update + (eta - 1.0) * parallel)


def zero_star(wanted: Images, other: Images, weight: Weight, sampling: Sampling) -> Images:
    """CFG-Zero*: w v + (1 - w) s* v_other, s* = <v, v_other> / |v_other|^2 (arXiv 2503.18886, eq.
    6 to 9).
    """
    return linear(wanted, _dot(wanted, other) / _square(other) * other, weight, sampling)


def _dot(one: Images, other: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.sum(one * other, axis=(1, 2, 3), keepdims=True)


def _square(image: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.maximum(_dot(image, image), SMALLEST_SQUARE)


class Guidance(NamedTuple):
    """A kind of guidance.

    space: the prediction in which it mixes, a key of PREDICTIONS; None for the network's own:
    predictions are linear in each other at one x_t, so a linear mix is the same in all.
    """

    mix: Callable[[Images, Images, Weight, Sampling], Images]
    space: str | None = None


# "auto" leads away from a second, weaker network; the others from the null text or class.
GUIDANCES = {
    "cfg": Guidance(linear),
    "apg": Guidance(projected, "x0"),
    "cfg_zero": Guidance(zero_star, "v"),
    "auto": Guidance(linear),
}


def rescaled(mixed: Images, wanted: Images, amount: Float[Array, "..."] | float) -> Images:
    """`mixed`, brought by `amount` of the way to the standard deviation of `wanted`.

    Both in the network's own prediction, as in arXiv 2305.08891, section 3.4.
    """
    axes = tuple(range(1, mixed.ndim))
    deviation = jnp.std(mixed, axis=axes, keepdims=True)
    aim = jnp.std(wanted, axis=axes, keepdims=True)
    ratio = jnp.where(deviation > 0.0, aim / jnp.maximum(deviation, 1e-20), 1.0)
    return mixed * (1.0 + per_example(amount, mixed) * (ratio - 1.0))


def with_momentum(
    wanted: Images, other: Images, weight: Weight, average: Images, sampling: Sampling
) -> tuple[Images, Images]:
    """(`other` as the average has it, the new average): wanted - other + beta average.

    Reverse momentum (arXiv 2410.02416, section 4.2). An image that is not guided now keeps its
    average, so that it does not depend on the others in its batch.
    """
    guided = per_example(weight, wanted) != 1.0
    beta = per_example(sampling.guidance_momentum, wanted)
    average = jnp.where(guided, wanted - other + beta * average, average)
    return wanted - average, average
