"""Denoisers of data whose estimate and probability flow are known exactly, and runs with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from imagen_jax.diffusion.denoiser import Denoised
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, sample_loop
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.schedules import Cosine, DiscreteBeta, Flow, LinearBeta

MEAN, SPREAD = 0.3, 0.5
# Two modes: their shares, means and the standard deviation of both.
SHARES, MEANS, WIDTH = (0.3, 0.7), (-0.6, 0.5), 0.15
COSINE, FLOW = Cosine(), Flow()
ZERO_TERMINAL = Cosine(-np.inf, np.inf)
SCHEDULES = {
    "cosine": COSINE,
    "zero_terminal": ZERO_TERMINAL,
    "linear_beta": LinearBeta(),
    "discrete_beta": DiscreteBeta(),
    "flow": FLOW,
    "shifted_flow": Flow(shift=-4.0),
}


def slowly_but(values, *fast):
    """Parameters of a test, of which only some are run in the fast set."""
    return [each if each in fast else pytest.param(each, marks=pytest.mark.slow) for each in values]


def gaussian_denoiser(schedule, mean=MEAN, spread=SPREAD):
    """E[x0 | x_t] of data N(mean, spread^2)."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha_sigma(schedule.logsnr(t))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return Denoised(mean + gain * (x_t - alpha * mean))

    return denoise


def mixture_denoiser(schedule):
    """E[x0 | x_t] of the two modes: that of each, weighted by how likely it is to have made x_t."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha_sigma(schedule.logsnr(t))
        variance = alpha**2 * WIDTH**2 + sigma**2
        away = [x_t - alpha * mean for mean in MEANS]
        logits = jnp.stack([-(each**2) / (2 * variance) for each in away], -1)
        weights = jax.nn.softmax(logits + jnp.log(jnp.asarray(SHARES)), -1)
        gain = alpha * WIDTH**2 / variance
        estimates = [mean + gain * each for mean, each in zip(MEANS, away, strict=True)]
        return Denoised(jnp.sum(weights * jnp.stack(estimates, -1), -1))

    return denoise


def exact_flow(schedule, x, t, s):
    """Where the probability-flow ODE takes x from time t to time s: it keeps the standardised x."""
    alpha_t, sigma_t = schedule.alpha_sigma(schedule.logsnr(t))
    alpha_s, sigma_s = schedule.alpha_sigma(schedule.logsnr(s))
    deviation_t, deviation_s = (
        jnp.sqrt(alpha**2 * SPREAD**2 + sigma**2)
        for alpha, sigma in ((alpha_t, sigma_t), (alpha_s, sigma_s))
    )
    return alpha_s * MEAN + deviation_s * (x - alpha_t * MEAN) / deviation_t


def exact_mixture_flow(schedule, values, t, s):
    """The same of the mixture, float64: in one dimension the flow keeps quantiles."""

    def distribution(time):
        alpha, sigma = map(float, schedule.alpha_sigma(schedule.logsnr(np.float32(time))))
        spread = np.hypot(alpha * WIDTH, sigma)
        return lambda x: np.dot(SHARES, norm.cdf(x, alpha * np.asarray(MEANS), spread))

    below, after = distribution(t), distribution(s)
    return np.array([brentq(lambda y, q=below(x): after(y) - q, -9, 9, xtol=1e-12) for x in values])


# Noise of 401 draws for 402 images of one value. Drawn beforehand, because a generator inside the
# loop is slow to compile, and always of one shape, so that `run` compiles once a sampler.
TABLE = np.random.default_rng(0).standard_normal((401, 402, 1, 1, 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("name", "schedule", "mixture"))
def compiled_run(name, schedule, grid, table, sampling, mean, spread, mixture=False):
    exact = gaussian_denoiser(schedule, mean, spread)
    return sample_loop(
        SAMPLERS[name], mixture_denoiser(schedule) if mixture else exact, schedule, grid,
        initial_state(table[0], name), lambda index: table[index], sampling,
    )  # fmt: skip


def run(name, schedule, grid, table=TABLE, mean=MEAN, spread=SPREAD, mixture=False, **options):
    """A whole run whose noise(i) is table[i], with the exact denoiser of N(mean, spread^2) or of
    the mixture. options: of Sampling.
    """
    sampling = traced(Sampling(**options))
    table = jnp.asarray(table)
    return compiled_run(name, schedule, grid, table, sampling, mean, spread, mixture=mixture).x
