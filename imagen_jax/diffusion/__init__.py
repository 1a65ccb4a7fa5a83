"""Diffusion in continuous time for any network: schedules, losses, samplers. jnp, float32."""

from imagen_jax.diffusion.augmentation import augment, downsample, sample_levels, upsample
from imagen_jax.diffusion.denoiser import (
    THRESHOLDS,
    Denoised,
    Denoiser,
    Guidance,
    Thresholding,
    make_denoiser,
)
from imagen_jax.diffusion.losses import (
    LOSS_WEIGHTS,
    Loss,
    diffusion_loss,
    loss_weight,
    prediction_target,
)
from imagen_jax.diffusion.process import PREDICTIONS, add_noise, alpha_sigma, convert
from imagen_jax.diffusion.samplers import (
    MAX_STEPS,
    SAMPLERS,
    SPACINGS,
    SamplerOptions,
    SamplerState,
    TimeGrid,
    initial_state,
    listed_grid,
    noise_from_keys,
    sample_loop,
    time_grid,
)
from imagen_jax.diffusion.schedules import (
    SCHEDULES,
    Cosine,
    LinearBeta,
    Schedule,
    logsnr_slope,
    resolution_shift,
)

__all__ = [
    "LOSS_WEIGHTS",
    "MAX_STEPS",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "THRESHOLDS",
    "Cosine",
    "Denoised",
    "Denoiser",
    "Guidance",
    "LinearBeta",
    "Loss",
    "SamplerOptions",
    "SamplerState",
    "Schedule",
    "Thresholding",
    "TimeGrid",
    "add_noise",
    "alpha_sigma",
    "augment",
    "convert",
    "diffusion_loss",
    "downsample",
    "initial_state",
    "listed_grid",
    "logsnr_slope",
    "loss_weight",
    "make_denoiser",
    "noise_from_keys",
    "prediction_target",
    "resolution_shift",
    "sample_levels",
    "sample_loop",
    "time_grid",
    "upsample",
]
