"""Flow maps: networks that are told where a step leads to, and so take long steps.

The network sees x_t, t and s, and gives the x0 with which DDIM's step from t lands where the
probability flow is at s (arXiv 2406.07507; 2410.12557). At s = t it is an ordinary denoiser.
"""

import functools

import jax.numpy as jnp

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.process import Path, per_example
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.steps import Noise, Sampler, SamplerState, Step
from imagen_jax.typing import Images, LogSNR

JUMPING = ("ddim", "euler")  # the samplers whose step is a jump


def jump(x_t: Images, x0: Images, logsnr_t: LogSNR, logsnr_s: LogSNR, path: Path) -> Images:
    """x_s of DDIM's step without noise (arXiv 2010.02502, eq. 12), from x_t by an estimate of x0;
    one log-SNR, or one an example.
    """
    kept, added = _jump_scales(x_t, logsnr_t, logsnr_s, path)
    return kept * x_t + added * x0


def jump_x0(x_t: Images, x_s: Images, logsnr_t: LogSNR, logsnr_s: LogSNR, path: Path) -> Images:
    """The x0 with which `jump` leads from x_t to x_s (arXiv 2202.00512, appendix G)."""
    kept, added = _jump_scales(x_t, logsnr_t, logsnr_s, path)
    return (x_s - kept * x_t) / added


def _jump_scales(x_t: Images, logsnr_t: LogSNR, logsnr_s: LogSNR, path: Path) -> tuple:
    (_, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(logsnr_t), path.alpha_sigma(logsnr_s)
    added = -alpha_s * jnp.expm1(0.5 * (logsnr_t - logsnr_s))
    return per_example(sigma_s / sigma_t, x_t), per_example(added, x_t)


def flow_map_sampler(sampler: Sampler) -> Sampler:
    """The sampler, whose denoiser is told where the step leads to."""

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
    ) -> SamplerState:
        return sampler(functools.partial(denoise, s=step.s), state, step, noise, sampling)

    return step
