"""Samplers: one step function each, one contract, one loop.

A step goes from time t down to time s < t. With lambda = logsnr / 2 = log(alpha / sigma), and
everything written so that alpha_t = 0 (zero terminal SNR) and sigma_s = 0 (clean data) are allowed.
Everything is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.process import alpha_sigma
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.typing import Images, Keys

# Time grids are padded to this many steps, so that the number of steps is a traced value.
MAX_STEPS = 1024

# noise(0) is the initial noise, noise(i + 1) belongs to step i.
Noise = Callable[[Int[Array, ""] | int], Images]


class TimeGrid(NamedTuple):
    """Decreasing times; step i < num_steps goes from times[i] to times[i + 1]. Padded."""

    times: Float[Array, " padded"]
    num_steps: Int[Array, ""]


class SamplerState(NamedTuple):
    """What goes from step to step, and what a caller sees between chunks.

    x: the image at the current time. x0: the last denoised estimate (a preview). x0_logsnr: the
    noise level where that estimate was made; -inf before the first step, which multistep samplers
    read as "no history".
    """

    x: Images
    x0: Images
    x0_logsnr: Float[Array, ""]


class SamplerOptions(NamedTuple):
    """How random the stochastic samplers are; traced.

    gamma: of ddpm, in [0, 1]: 0 takes the posterior's variance, 1 the forward process's. The paper
    gives no value; 0.3 is our choice. eta: of ddim, in [0, 1]: 0 is deterministic, 1 is ddpm with
    gamma 0.
    """

    gamma: Float[Array, ""] | float = 0.3
    eta: Float[Array, ""] | float = 0.0


DEFAULT_OPTIONS = SamplerOptions()


class Step(NamedTuple):
    """One step, from time t down to time s; `to_clean` marks the one that ends at s = 0."""

    index: Int[Array, ""]
    t: Float[Array, ""]
    s: Float[Array, ""]
    logsnr_t: Float[Array, ""]
    logsnr_s: Float[Array, ""]
    to_clean: Bool[Array, ""]


Sampler = Callable[[Denoiser, SamplerState, Step, Noise, SamplerOptions], SamplerState]


def ddpm(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, options: SamplerOptions
) -> SamplerState:
    """Ancestral step: q(x_s | x_t, x0) with log variance between the posterior's and the forward's.

    Variance sigma~_{s|t}^2 ^ (1 - gamma) * sigma_{t|s}^2 ^ gamma, the sampler of arXiv 2205.11487.
    A learned variance takes gamma's place (arXiv 2102.09672, eq. 15). The step to clean data adds
    no noise (arXiv 2006.11239, algorithm 2).
    """
    x0, fraction = denoise(state.x, step.t)
    fraction = options.gamma if fraction is None else fraction
    alpha_t, sigma_t = alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = alpha_sigma(step.logsnr_s)
    removed = -jnp.expm1(step.logsnr_t - step.logsnr_s)  # 1 - SNR_t / SNR_s
    kept = alpha_t * jnp.square(sigma_s / sigma_t) / alpha_s
    mean = kept * state.x + removed * alpha_s * x0
    log_posterior = jnp.log(jnp.maximum(removed * sigma_s**2, 1e-20))
    log_forward = jnp.log(jnp.maximum(removed * sigma_t**2, 1e-20))
    deviation = jnp.exp(0.5 * ((1.0 - fraction) * log_posterior + fraction * log_forward))
    deviation = jnp.where(step.to_clean, 0.0, deviation)
    return SamplerState(mean + deviation * noise(step.index + 1), x0, step.logsnr_t)


def ddim(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, options: SamplerOptions
) -> SamplerState:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d z, d = eta times the posterior's deviation.

    arXiv 2010.02502, eq. 12 and 16.
    """
    x0 = denoise(state.x, step.t).x0
    alpha_t, sigma_t = alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = alpha_sigma(step.logsnr_s)
    eps = (state.x - alpha_t * x0) / sigma_t
    log_ratio = step.logsnr_t - step.logsnr_s
    eta = jnp.asarray(options.eta, jnp.float32)
    deviation = eta * sigma_s * jnp.sqrt(-jnp.expm1(log_ratio))
    deviation = jnp.where(step.to_clean, 0.0, deviation)
    # sqrt(sigma_s^2 - deviation^2) without the difference, which has few digits in large steps.
    direction = sigma_s * jnp.sqrt((1.0 - eta**2) + eta**2 * jnp.exp(log_ratio))
    x = alpha_s * x0 + direction * eps + deviation * noise(step.index + 1)
    return SamplerState(x, x0, step.logsnr_t)


def dpmpp_2m(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, options: SamplerOptions
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
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, options: SamplerOptions
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
    _, sigma_t = alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = alpha_sigma(step.logsnr_s)
    removed = -jnp.expm1(0.5 * (step.logsnr_t - step.logsnr_s))
    return (sigma_s / sigma_t) * x + alpha_s * removed * x0


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "heun": heun}


def _uniform_in_logsnr(schedule: Schedule, start: Array, stop: Array, fraction: Array) -> Array:
    logsnr_start, logsnr_stop = (jnp.clip(schedule.logsnr(t), -20.0, 20.0) for t in (start, stop))
    times = schedule.time(logsnr_start + (logsnr_stop - logsnr_start) * fraction)
    return jnp.where(fraction == 0.0, start, jnp.where(fraction == 1.0, stop, times))


# Time at a fraction of the way from start to stop.
SPACINGS = {
    "time": lambda schedule, start, stop, fraction: start * (1.0 - fraction) + stop * fraction,
    "logsnr": _uniform_in_logsnr,
}


def time_grid(
    schedule: Schedule,
    num_steps: Int[Array, ""] | int,
    spacing: str = "time",
    start: Float[Array, ""] | float = 1.0,
    stop: Float[Array, ""] | float = 0.0,
) -> TimeGrid:
    """num_steps steps from time `start` to time `stop`, evenly spaced in time or in logsnr.

    Raises:
        ValueError: unknown spacing, or a number of steps outside 1 ... MAX_STEPS (where it is not
        traced).
    """
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; choose one of {tuple(SPACINGS)}")
    if not isinstance(num_steps, jax.core.Tracer):
        _check_num_steps(int(num_steps))
    num_steps = jnp.asarray(num_steps, jnp.int32)
    fraction = jnp.minimum(jnp.arange(MAX_STEPS + 1) / num_steps, 1.0)
    start, stop = jnp.asarray(start, jnp.float32), jnp.asarray(stop, jnp.float32)
    return TimeGrid(SPACINGS[spacing](schedule, start, stop, fraction), num_steps)


traced_time_grid = jax.jit(time_grid, static_argnums=(0, 2))  # compiled once a schedule and spacing


def listed_grid(times: np.ndarray | list[float] | tuple[float, ...]) -> TimeGrid:
    """A grid of given times, each in [0, 1], from the first to the last.

    Raises:
        ValueError: times that do not decrease, leave [0, 1], or are too many.
    """
    times = np.asarray(times, np.float32)
    _check_num_steps(len(times) - 1)
    if not (np.all(np.diff(times) < 0) and times[0] <= 1 and times[-1] >= 0):
        raise ValueError(f"times must decrease inside [0, 1], got {times.tolist()}")
    padded = np.full(MAX_STEPS + 1, times[-1], np.float32)
    padded[: len(times)] = times
    return TimeGrid(jnp.asarray(padded), jnp.asarray(len(times) - 1, jnp.int32))


def _check_num_steps(num_steps: int) -> None:
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"the number of steps must be between 1 and {MAX_STEPS}, got {num_steps}")


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
    options: SamplerOptions = DEFAULT_OPTIONS,
    start: Int[Array, ""] | int = 0,
    stop: Int[Array, ""] | int | None = None,
) -> SamplerState:
    """Runs steps start ... stop - 1 of the grid (all of them by default).

    `start`, `stop`, `grid` and `options` may be traced. Several calls that continue each other's
    state give what one call gives: so callers show progress and previews, and edit on the way.
    """
    logsnrs = schedule.logsnr(grid.times)
    stop = grid.num_steps if stop is None else jnp.minimum(stop, grid.num_steps)

    def body(index: Int[Array, ""], state: SamplerState) -> SamplerState:
        step = Step(
            index=index,
            t=grid.times[index],
            s=grid.times[index + 1],
            logsnr_t=logsnrs[index],
            logsnr_s=logsnrs[index + 1],
            to_clean=grid.times[index + 1] <= 0.0,
        )
        return sampler(denoise, state, step, noise, options)

    return jax.lax.fori_loop(start, stop, body, state)
