"""The variational bound of a discrete schedule, which trains a learned variance.

Each step's term in bits per dimension (arXiv 2102.09672, sections 2.1 and 3.1): the divergence of
the model's step from the posterior q(x_{n-1} | x_n, x0), and for the last step the likelihood of
the image's 8-bit values.
"""

from functools import lru_cache
from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import add_noise, convert, per_example
from imagen_jax.diffusion.schedules import DiscreteBeta

HALF_BIN = 1.0 / 255.0  # half of an 8-bit value, in [-1, 1]


class Posterior(NamedTuple):
    """q(x_{n-1} | x_n, x0) for every n: weight of x0 in its mean, and log variance, float32.

    Step 0, whose variance is 0, has that of step 1. span: from there up to log beta_n.
    """

    x0_weight: np.ndarray
    log_variance: np.ndarray
    span: np.ndarray


@lru_cache
def posterior(schedule: DiscreteBeta) -> Posterior:
    """The table of a schedule, computed in float64 (arXiv 2102.09672, eq. 10 and 11)."""
    betas = schedule.betas().astype(np.float64)
    signal = np.cumprod(1.0 - betas)
    before = np.append(1.0, signal[:-1])
    variance = betas * (1.0 - before) / (1.0 - signal)
    variance[0] = variance[min(1, len(variance) - 1)]
    if not variance[0] > 0.0:
        raise ValueError("the variational bound needs a schedule of at least 2 steps")
    weight = np.sqrt(before) * betas / (1.0 - signal)
    span = np.log(betas) - np.log(variance)
    return Posterior(*(x.astype(np.float32) for x in (weight, np.log(variance), span)))


def variational_bound(
    output: Float[Array, "batch ... outputs"],
    prediction: str,
    x0: Float[Array, "batch ... channels"],
    eps: Float[Array, "batch ... channels"],
    t: Float[Array, " batch"],
    schedule: DiscreteBeta,
) -> Float[Array, " batch"]:
    """The bound's term at the time steps t, bits per dimension, mean over the image.

    Its mean over uniform time steps, times their number, is the whole bound but for the prior's
    constant term. No gradient reaches the first half of `output`, the mean, from here (section
    3.1).

    Args:
        output: the network's at x_t = add_noise(x0, eps, schedule.logsnr(t)); in the second half of
            its channels the place of log variance between the posterior's (-1) and beta's (1).
    """
    mean, place = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    x0, logsnr = x0.astype(jnp.float32), schedule.logsnr(t)
    x_t = add_noise(x0, eps, logsnr)
    guess = convert(jax.lax.stop_gradient(mean), x_t, logsnr, prediction, "x0")

    step = schedule.time_step(t)
    rows = (jnp.asarray(row)[step.astype(jnp.int32)] for row in posterior(schedule))
    x0_weight, lowest, span = (per_example(row, x0) for row in rows)
    above = 0.5 * (place + 1.0) * span
    log_variance = lowest + above
    # The means differ in the estimate of x0 alone: both hold the same share of x_t.
    difference = x0_weight * (x0 - guess)
    squared = jnp.square(difference) * jnp.exp(-log_variance)
    divergence = 0.5 * (above + jnp.expm1(-above) + squared)
    # At step 0 the posterior's mean is x0 itself, and the model's is its guess.
    # Elsewhere the guess may be far from any image, and gradients of its likelihood overflow.
    last = per_example(step, x0) == 0
    guess, log_deviation = jnp.where(last, guess, x0), jnp.where(last, 0.5 * log_variance, 0.0)
    nats = jnp.where(last, -discretized_log_likelihood(x0, guess, log_deviation), divergence)
    return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / log(2.0)


def discretized_log_likelihood(
    x0: Float[Array, "*shape"], mean: Float[Array, "*shape"], log_deviation: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """log probability of 8-bit values under a Gaussian: its integral over each value's bin.

    The outermost bins reach to infinity (arXiv 2006.11239, eq. 13).

    Args:
        x0: multiples of 2 / 255 in [-1, 1].
    """
    scale = jnp.exp(-log_deviation)
    # In the lower tail, where distribution functions keep their digits; a bin has a mirror image.
    centre = -jnp.abs(x0 - mean)
    upper, lower = log_ndtr((centre + HALF_BIN) * scale), log_ndtr((centre - HALF_BIN) * scale)
    inside = upper + jnp.log1p(-jnp.exp(jnp.minimum(lower - upper, -1e-6)))
    darkest = log_ndtr((x0 - mean + HALF_BIN) * scale)
    brightest = log_ndtr((mean - x0 + HALF_BIN) * scale)
    return jnp.where(x0 < -0.999, darkest, jnp.where(x0 > 0.999, brightest, inside))
