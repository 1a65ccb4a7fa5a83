"""Training losses: a squared error of the prediction, weighted by noise level.

What the network outputs and which errors count are independent choices: every weight below is a
weight on the squared error **of eps**, and the error of any prediction is expressed in that one.
A learned variance is trained by the variational bound (`imagen_jax.diffusion.variational`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import PREDICTIONS, Path, prediction_target
from imagen_jax.diffusion.schedules import Schedule, logsnr_slope
from imagen_jax.diffusion.variational import variational_bound
from imagen_jax.storage.codec import require
from imagen_jax.typing import LogSNR

# Weights are taken at this logsnr beyond it, which only zero terminal SNR is: exp(30) is finite.
LARGEST_LOGSNR = 30.0


@dataclass(frozen=True)
class Loss:
    """Which noise levels count how much.

    weight: a key of LOSS_WEIGHTS; it need not be what the network predicts. min_snr_gamma: where
    min-SNR caps the weight of the x0 error. sigmoid_bias: logsnr at the middle of the sigmoid.
    min_scale: where the error of one kind is that of another divided by alpha or sigma, the
    divisor is at least this share of its largest value (arXiv 2511.13720: 0.05, for the error of v
    by a network that predicts x0). vlb_weight: lambda of the hybrid loss, which trains a learned
    variance (arXiv 2102.09672, eq. 16; the paper: 0.001); 0 leaves it untrained.
    """

    weight: str = "eps"
    min_snr_gamma: float = 5.0
    sigmoid_bias: float = -3.0
    min_scale: float = 0.0
    vlb_weight: float = 0.0

    def __post_init__(self) -> None:
        known = tuple(LOSS_WEIGHTS)
        require(
            (self.weight in known, f"unknown loss weight {self.weight!r}; choose one of {known}"),
            (self.min_snr_gamma > 0, f"min_snr_gamma must be positive, got {self.min_snr_gamma}"),
            (0 <= self.min_scale < 1, f"min_scale must be in [0, 1), got {self.min_scale}"),
            (self.vlb_weight >= 0, f"vlb_weight must not be negative, got {self.vlb_weight}"),
        )


def _log_error(kind: str, logsnr: LogSNR, path: Path) -> LogSNR:
    """log of |p - p_hat|, up to what all kinds have in common at this noise level."""
    return jnp.log(jnp.abs(PREDICTIONS[kind](*path.alpha_sigma(logsnr), path)[2]))


def _squared_error(kind: str) -> Callable:
    return lambda logsnr, slope, loss, path: (
        2.0 * (_log_error(kind, logsnr, path) - _log_error("eps", logsnr, path))
    )


# log of the weight on |eps - eps_hat|^2, from (logsnr, -d logsnr / dt, loss, path).
LOSS_WEIGHTS = {
    # The squared error of each kind of prediction, whatever the network predicts: that of eps is
    # the paper's (arXiv 2205.11487, eq. 1; DDPM's simple loss), that of v "SNR + 1" of arXiv
    # 2202.00512 on the paper's path and flow matching's on the flow, that of edm arXiv 2206.00364.
    **{kind: _squared_error(kind) for kind in PREDICTIONS},
    # min(SNR, gamma) |x0 - x0_hat|^2 (arXiv 2303.09556, section 3.4).
    "min_snr": lambda logsnr, slope, loss, path: jnp.minimum(
        0.0, jnp.log(loss.min_snr_gamma) - logsnr
    ),
    # -d logsnr / dt * sigmoid(bias - logsnr) |eps - eps_hat|^2 (arXiv 2303.00848; 2410.19324): the
    # slope is for t drawn evenly; other times of training weigh it by their density.
    "sigmoid": lambda logsnr, slope, loss, path: (
        jnp.log(slope) + jax.nn.log_sigmoid(loss.sigmoid_bias - logsnr)
    ),
}


def loss_weight(
    loss: Loss, prediction: str, t: Float[Array, " batch"], schedule: Schedule
) -> Float[Array, " batch"]:
    """Weight on the squared error of the network's own output that makes it `loss`."""
    logsnr = jnp.clip(schedule.logsnr(t), -LARGEST_LOGSNR, LARGEST_LOGSNR)
    slope = jnp.minimum(logsnr_slope(schedule, t), jnp.exp(LARGEST_LOGSNR))
    log_weight = LOSS_WEIGHTS[loss.weight](logsnr, slope, loss, schedule)
    own = _log_error(prediction, logsnr, schedule)
    if loss.weight != prediction and loss.min_scale:
        scale = schedule.noise_scale if prediction == "x0" else 1.0  # the largest sigma, or alpha
        own = jnp.maximum(own, math.log(loss.min_scale * scale))
    return jnp.exp(log_weight + 2.0 * (_log_error("eps", logsnr, schedule) - own))


def diffusion_loss(
    output: Float[Array, "batch ..."],
    prediction: str,
    x0: Float[Array, "batch ..."],
    eps: Float[Array, "batch ..."],
    t: Float[Array, " batch"],
    schedule: Schedule,
    loss: Loss,
) -> Float[Array, " batch"]:
    """Weighted mean squared error of each example, in float32.

    Args:
        output: the network's output at x_t (`add_noise`); a learned variance in the
            second half of its channels counts where `loss.vlb_weight` is not 0.
        prediction: what that output is, a key of PREDICTIONS.
    """
    bound = 0.0
    if loss.vlb_weight:
        bound = schedule.num_steps * variational_bound(output, prediction, x0, eps, t, schedule)
    output = output[..., : x0.shape[-1]]
    target = prediction_target(prediction, x0, eps, schedule.logsnr(t), schedule)
    error = output.astype(jnp.float32) - target
    squared = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    return loss_weight(loss, prediction, t, schedule) * squared + loss.vlb_weight * bound
