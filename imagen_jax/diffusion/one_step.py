"""Samplers that look at nothing but the image: ancestral, DDIM, Euler, Heun with churn."""

from math import sqrt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.flow_map import jump
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.steps import Noise, SamplerState, Step, renoise
from imagen_jax.typing import Images

MOST_CHURN = sqrt(2.0) - 1.0  # of a step: it doubles the variance (arXiv 2206.00364, algorithm 2)


def ddpm(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """Ancestral step: q(x_s | x_t, x0) with log variance between the posterior's and the forward's.

    Variance sigma~_{s|t}^2 ^ (1 - gamma) * sigma_{t|s}^2 ^ gamma, the sampler of arXiv 2205.11487.
    A learned variance takes gamma's place (arXiv 2102.09672, eq. 15). The step to clean data adds
    no noise (arXiv 2006.11239, algorithm 2).
    """
    denoised = denoise(state.x, step.t)
    x0 = denoised.x0
    fraction = sampling.gamma if denoised.variance is None else denoised.variance
    alpha_t, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    removed = -jnp.expm1(step.logsnr_t - step.logsnr_s)  # 1 - SNR_t / SNR_s
    kept = alpha_t * jnp.square(sigma_s / sigma_t) / alpha_s
    mean = kept * state.x + removed * alpha_s * x0
    log_posterior = jnp.log(jnp.maximum(removed * sigma_s**2, 1e-20))
    log_forward = jnp.log(jnp.maximum(removed * sigma_t**2, 1e-20))
    deviation = jnp.exp(0.5 * ((1.0 - fraction) * log_posterior + fraction * log_forward))
    deviation = jnp.where(step.to_clean, 0.0, deviation)
    return state.then(mean + deviation * noise(step.index + 1), x0, step.logsnr_t)


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
    return state.then(x, x0, step.logsnr_t)


def euler(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """Euler's method on the probability flow: x_s = x_t + (s - t) v on the unshifted `Flow`.

    On every path it is the step that is exact while x0 stays what it is, so it is ddim with eta 0.
    """
    x0 = denoise(state.x, step.t).x0
    x = jump(state.x, x0, step.logsnr_t, step.logsnr_s, step.schedule)
    return state.then(x, x0, step.logsnr_t)


def heun(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """Heun's method: Euler's step, then the same again with the mean of both ends' velocities.

    Two evaluations a step, one in the step to clean data (arXiv 2206.00364, algorithm 1); with
    `sampling.churn`, from a noise level that is raised before (algorithm 2). On every path the
    trapezoid is that of the flow's velocity eps - x0 over its time sigma / (alpha + sigma), with
    eps and sigma in units of the noise scale, as flow models are sampled (arXiv 2511.13720). In
    EDM's sigma / alpha, the first step of other schedules is thousands long; in alpha / sigma
    (DPM-Solver++(2S)), the last one is.
    """
    x, step = _churned(state.x, step, noise, sampling)
    x0 = denoise(x, step.t).x0
    alpha_t, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    sigma_t, sigma_s = (sigma / step.schedule.noise_scale for sigma in (sigma_t, sigma_s))
    scale_t, scale_s = alpha_t + sigma_t, alpha_s + sigma_s
    x, flow_t, flow_s = x / scale_t, sigma_t / scale_t, sigma_s / scale_s
    velocity = (x - x0) / flow_t
    predicted = x + (flow_s - flow_t) * velocity

    def corrected() -> Images:
        second = (predicted - denoise(scale_s * predicted, step.s).x0) / flow_s
        return x + (flow_s - flow_t) * 0.5 * (velocity + second)

    x = scale_s * jax.lax.cond(step.to_clean, lambda: predicted, corrected)
    return state.then(x, x0, step.logsnr_t)


def _churned(x: Images, step: Step, noise: Noise, sampling: Sampling) -> tuple[Images, Step]:
    """The image with more noise, and the step from there, where sampling.churn is not 0."""
    low, high = sampling.churn_interval
    growth = jnp.minimum(jnp.asarray(sampling.churn, jnp.float32) / sampling.steps, MOST_CHURN)
    logsnr = step.logsnr_t - 2.0 * jnp.log1p(growth)
    logsnr = jnp.maximum(logsnr, step.schedule.logsnr(1.0))
    inside = (step.t >= low) & (step.t <= high)

    def raised() -> tuple[Images, Float[Array, ""], Float[Array, ""]]:
        eps = sampling.churn_noise * noise(step.index + 1)
        noisier = renoise(x, eps, step.logsnr_t, logsnr, step.schedule)
        return noisier, step.schedule.time(logsnr), logsnr

    x, t, logsnr = jax.lax.cond(
        inside & (logsnr < step.logsnr_t), raised, lambda: (x, step.t, step.logsnr_t)
    )
    return x, step._replace(t=t, logsnr_t=logsnr)
