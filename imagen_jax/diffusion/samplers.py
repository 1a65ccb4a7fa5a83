"""Samplers: one step function each, one contract, one loop.

A step goes from time t down to time s < t. With lambda = logsnr / 2 = log(alpha / sigma), and
everything written so that alpha_t = 0 (zero terminal SNR) and sigma_s = 0 (clean data) are allowed.
Everything is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.time_grids import TimeGrid
from imagen_jax.typing import Images, Keys

# noise(0) is the initial noise, noise(i + 1) belongs to step i.
Noise = Callable[[Int[Array, ""] | int], Images]


class SamplerState(NamedTuple):
    """What goes from step to step, and what a caller sees between chunks.

    x: the image at the current time. x0: the last denoised estimate (a preview). x0_logsnr: the
    noise level where that estimate was made; -inf before the first step, which multistep samplers
    read as "no history".
    """

    x: Images
    x0: Images
    x0_logsnr: Float[Array, ""]


class Step(NamedTuple):
    """One step of a schedule, from time t down to time s; `to_clean` marks the one that ends at
    s = 0.
    """

    index: Int[Array, ""]
    t: Float[Array, ""]
    s: Float[Array, ""]
    logsnr_t: Float[Array, ""]
    logsnr_s: Float[Array, ""]
    to_clean: Bool[Array, ""]
    schedule: Schedule


Sampler = Callable[[Denoiser, SamplerState, Step, Noise, Sampling], SamplerState]


def ddpm(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """Ancestral step: q(x_s | x_t, x0) with log variance between the posterior's and the forward's.

    Variance sigma~_{s|t}^2 ^ (1 - gamma) * sigma_{t|s}^2 ^ gamma, the sampler of arXiv 2205.11487.
    A learned variance takes gamma's place (arXiv 2102.09672, eq. 15). The step to clean data adds
    no noise (arXiv 2006.11239, algorithm 2).
    """
    x0, fraction = denoise(state.x, step.t)
    fraction = sampling.gamma if fraction is None else fraction
    alpha_t, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    removed = -jnp.expm1(step.logsnr_t - step.logsnr_s)  # 1 - SNR_t / SNR_s
    kept = alpha_t * jnp.square(sigma_s / sigma_t) / alpha_s
    mean = kept * state.x + removed * alpha_s * x0
    log_posterior = jnp.log(jnp.maximum(removed * sigma_s**2, 1e-20))
    log_forward = jnp.log(jnp.maximum(removed * sigma_t**2, 1e-20))
    deviation = jnp.exp(0.5 * ((1.0 - fraction) * log_posterior + fraction * log_forward))
    deviation = jnp.where(step.to_clean, 0.0, deviation)
    return SamplerState(mean + deviation * noise(step.index + 1), x0, step.logsnr_t)


def ddim(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d z, d = eta times the posterior's deviation.

    arXiv 2010.02502, eq. 12 and 16.
    """
    x0 = denoise(state.x, step.t).x0
    alpha_t, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    eps = (state.x - alpha_t * x0) / sigma_t
    log_ratio = step.logsnr_t - step.logsnr_s
    eta = jnp.asarray(sampling.eta, jnp.float32)
    deviation = eta * sigma_s * jnp.sqrt(-jnp.expm1(log_ratio))
    deviation = jnp.where(step.to_clean, 0.0, deviation)
    # sqrt(sigma_s^2 - deviation^2) without the difference, which has few digits in large steps.
    direction = sigma_s * jnp.sqrt((1.0 - eta**2) + eta**2 * jnp.exp(log_ratio))
    x = alpha_s * x0 + direction * eps + deviation * noise(step.index + 1)
    return SamplerState(x, x0, step.logsnr_t)


def dpmpp_2m(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): extrapolates the last two estimates.

    Of first order in the first step, which has no history, and in the step to clean data, where
    lambda leaps to its end.
    """
    x0 = denoise(state.x, step.t).x0
    h = 0.5 * (step.logsnr_s - step.logsnr_t)
    h_before = 0.5 * (step.logsnr_t - state.x0_logsnr)
    usable = jnp.isfinite(h_before) & ~step.to_clean
    weight = jnp.where(usable, 0.5 * h / jnp.where(usable, h_before, 1.0), 0.0)
    extrapolated = x0 + weight * (x0 - state.x0)
    return SamplerState(_exponential_step(state.x, extrapolated, step), x0, step.logsnr_t)


def heun(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """Heun's method: a ddim step, then the same step again with the mean x0 of both ends.

    Two evaluations a step, one in the step to clean data (arXiv 2206.00364, algorithm 1). The
    trapezoid is taken in the exponential, data-prediction form, which is DPM-Solver++(2S) with r =
    1 (arXiv 2211.01095, algorithm 1): in sigma / alpha, as EDM takes it, the first step of a
    variance-preserving schedule is thousands long.
    """
    x0 = denoise(state.x, step.t).x0
    predicted = _exponential_step(state.x, x0, step)

    def corrected() -> Images:
        return _exponential_step(state.x, 0.5 * (x0 + denoise(predicted, step.s).x0), step)

    x = jax.lax.cond(step.to_clean, lambda: predicted, corrected)
    return SamplerState(x, x0, step.logsnr_t)


def _exponential_step(x: Images, x0: Images, step: Step) -> Images:
    """The probability-flow ODE from t to s where x0 is constant (arXiv 2211.01095, section 4)."""
    _, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    removed = -jnp.expm1(0.5 * (step.logsnr_t - step.logsnr_s))
    return (sigma_s / sigma_t) * x + alpha_s * removed * x0


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "heun": heun}


def noise_from_keys(keys: Keys, shape: tuple[int, int, int]) -> Noise:
    """Standard normal noise, each image's from its own key: it does not depend on the batch.

    Args:
        keys: one key an image.
        shape: (height, width, channels).
    """

    def noise(index: Int[Array, ""] | int) -> Images:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)

    return noise


def initial_state(x: Images) -> SamplerState:
    """The state before the first step: `x` is noise, or a noised image at the time of the start."""
    x = x.astype(jnp.float32)
    return SamplerState(x, jnp.zeros_like(x), jnp.float32(-jnp.inf))


def sample_loop(
    sampler: Sampler,
    denoise: Denoiser,
    schedule: Schedule,
    grid: TimeGrid,
    state: SamplerState,
    noise: Noise,
    sampling: Sampling = Sampling(),
) -> SamplerState:
    """Runs steps grid.start ... grid.stop - 1.

    `grid` and the numbers of `sampling` may be traced. Several calls that continue each other's
    state give what one call gives: so callers show progress and previews, and edit on the way.
    """
    times = jnp.asarray(grid.times)
    logsnrs = schedule.logsnr(times)

    def body(index: Int[Array, ""], state: SamplerState) -> SamplerState:
        step = Step(
            index=index,
            t=times[index],
            s=times[index + 1],
            logsnr_t=logsnrs[index],
            logsnr_s=logsnrs[index + 1],
            to_clean=times[index + 1] <= 0.0,
            schedule=schedule,
        )
        return sampler(denoise, state, step, noise, sampling)

    return jax.lax.fori_loop(grid.start, grid.stop, body, state)
