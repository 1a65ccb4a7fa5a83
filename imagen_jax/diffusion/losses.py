"""Training losses: a squared error of the prediction, weighted by noise level.

What the network outputs and which errors count are independent choices: every weight below is a
weight on the squared error **of eps**, and the error of any prediction is expressed in that one.
A learned variance is trained by the variational bound (`imagen_jax.diffusion.variational`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import velocity
from imagen_jax.diffusion.schedules import Schedule, logsnr_slope
from imagen_jax.diffusion.variational import variational_bound
from imagen_jax.storage.codec import require
from imagen_jax.typing import LogSNR

# Weights are taken at this logsnr beyond it, which only zero terminal SNR is: exp(30) is finite.
LARGEST_LOGSNR = 30.0


@dataclass(frozen=True)
class Loss:
    """Which noise levels count how much.

    weight: a key of LOSS_WEIGHTS. min_snr_gamma: where min-SNR caps the weight of the x0 error.
    sigmoid_bias: logsnr at the middle of the sigmoid. vlb_weight: lambda of the hybrid loss, which
    trains a learned variance (arXiv 2102.09672, eq. 16; the paper: 0.001); 0 leaves it untrained.
    """

    weight: str = "eps"
    min_snr_gamma: float = 5.0
    sigmoid_bias: float = -3.0
    vlb_weight: float = 0.0

    def __post_init__(self) -> None:
        known = tuple(LOSS_WEIGHTS)
        require(
            (self.weight in known, f"unknown loss weight {self.weight!r}; choose one of {known}"),
            (self.min_snr_gamma > 0, f"min_snr_gamma must be positive, got {self.min_snr_gamma}"),
            (self.vlb_weight >= 0, f"vlb_weight must not be negative, got {self.vlb_weight}"),
        )


# log of the weight on |eps - eps_hat|^2, from (logsnr, -d logsnr / dt, loss).
LOSS_WEIGHTS = {
    # |eps - eps_hat|^2, the paper's (arXiv 2205.11487, eq. 1; DDPM's simple loss).
    "eps": lambda logsnr, slope, loss: jnp.zeros_like(logsnr),
    # |x0 - x0_hat|^2.
    "x0": lambda logsnr, slope, loss: -logsnr,
    # |v - v_hat|^2, "SNR + 1" of arXiv 2202.00512, section 4.
    "v": lambda logsnr, slope, loss: jax.nn.softplus(-logsnr),
    # min(SNR, gamma) |x0 - x0_hat|^2 (arXiv 2303.09556, section 3.4).
    "min_snr": lambda logsnr, slope, loss: jnp.minimum(0.0, jnp.log(loss.min_snr_gamma) - logsnr),
    # -d logsnr / dt * sigmoid(bias - logsnr) |eps - eps_hat|^2 (arXiv 2303.00848; 2410.19324).
    "sigmoid": lambda logsnr, slope, loss: (
        jnp.log(slope) + jax.nn.log_sigmoid(loss.sigmoid_bias - logsnr)
    ),
}

# log of |eps - eps_hat|^2 / |prediction - target|^2, from
# eps_hat - eps = alpha (v_hat - v) = -(alpha / sigma) (x0_hat - x0).
LOG_EPS_ERROR = {
    "eps": lambda logsnr: jnp.zeros_like(logsnr),
    "x0": lambda logsnr: logsnr,
    "v": jax.nn.log_sigmoid,
}


def prediction_target(
    prediction: str,
    x0: Float[Array, "batch ..."],
    eps: Float[Array, "batch ..."],
    logsnr: LogSNR,
) -> Float[Array, "batch ..."]:
    """What a network of this kind should output."""
    targets = {"eps": eps, "x0": x0, "v": velocity(x0, eps, logsnr)}
    return targets[prediction].astype(jnp.float32)


def loss_weight(
    loss: Loss, prediction: str, t: Float[Array, " batch"], schedule: Schedule
) -> Float[Array, " batch"]:
    """Weight on the squared error of the network's own output that makes it `loss`."""
    logsnr = jnp.clip(schedule.logsnr(t), -LARGEST_LOGSNR, LARGEST_LOGSNR)
    slope = jnp.minimum(logsnr_slope(schedule, t), jnp.exp(LARGEST_LOGSNR))
    log_weight = LOSS_WEIGHTS[loss.weight](logsnr, slope, loss) + LOG_EPS_ERROR[prediction](logsnr)
    return jnp.exp(log_weight)


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
        output: the network's output at x_t = add_noise(x0, eps, schedule.logsnr(t)); a learned
            variance in the second half of its channels counts where `loss.vlb_weight` is not 0.
        prediction: what that output is: "eps", "x0" or "v".
    """
    bound = 0.0
    if loss.vlb_weight:
        bound = schedule.num_steps * variational_bound(output, prediction, x0, eps, t, schedule)
    output = output[..., : x0.shape[-1]]
    error = output.astype(jnp.float32) - prediction_target(prediction, x0, eps, schedule.logsnr(t))
    squared = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    return loss_weight(loss, prediction, t, schedule) * squared + loss.vlb_weight * bound
