"""The forward process x_t = alpha x0 + sigma eps, and what a network may predict of it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.typing import LogSNR

Scale = Float[Array, "..."]
# Predictions are divided by alpha or sigma, and both may be zero at an end of the schedule (zero
# terminal SNR). This floor keeps the quotient finite; it lies below every alpha and sigma of a
# schedule with |logsnr| < 27.
SMALLEST_SCALE = 1e-6
SIGMA_DATA = 0.5  # the standard deviation of images in [-1, 1], as EDM takes it


class Path:
    """How the sizes of image and noise go with log-SNR; every schedule is on one."""

    noise_scale = 1.0  # sigma where there is only noise

    def alpha_sigma(self, logsnr: LogSNR | float) -> tuple[Scale, Scale]:
        """alpha and sigma, with alpha / sigma = exp(logsnr / 2); +-inf is allowed."""
        raise NotImplementedError

    def velocity(self, alpha: Scale, sigma: Scale) -> tuple[Scale, Scale]:
        """(a, b) of the path's v = a eps - b x0, so measured that alpha a + sigma b = 1."""
        raise NotImplementedError


class VariancePreserving(Path):
    """alpha^2 + sigma^2 = 1, and v = alpha eps - sigma x0 (arXiv 2202.00512, section 4)."""

    def alpha_sigma(self, logsnr: LogSNR | float) -> tuple[Scale, Scale]:
        """(alpha, sigma) at a log-SNR; alpha^2 + sigma^2 = 1."""
        logsnr = jnp.asarray(logsnr, jnp.float32)
        return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))

    def velocity(self, alpha: Scale, sigma: Scale) -> tuple[Scale, Scale]:
        """The weights of eps and, subtracted, of x0 in v (arXiv 2202.00512)."""
        return alpha, sigma


class Straight(Path):
    """alpha + sigma / n = 1, and v = eps - x0 / n = dx_t / dsigma, for noise of scale n (1: arXiv
    2209.03003, 2210.02747).
    """

    def alpha_sigma(self, logsnr: LogSNR | float) -> tuple[Scale, Scale]:
        """(alpha, sigma) at a log-SNR; alpha + sigma / noise_scale = 1."""
        half = 0.5 * jnp.asarray(logsnr, jnp.float32) + math.log(self.noise_scale)
        return jax.nn.sigmoid(half), self.noise_scale * jax.nn.sigmoid(-half)

    def velocity(self, alpha: Scale, sigma: Scale) -> tuple[Scale, Scale]:
        """The weights of eps and, subtracted, of x0 in v: v is dx_t/dsigma."""
        return jnp.ones_like(alpha), jnp.full_like(sigma, 1.0 / self.noise_scale)


VARIANCE_PRESERVING = VariancePreserving()


def per_example(
    value: Float[Array, "..."] | float | int, images: Float[Array, "batch ..."]
) -> Float[Array, "..."]:
    """A scalar, or one number an example with trailing axes: what multiplies `images`."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value


def add_noise(
    x0: Float[Array, "batch ..."],
    eps: Float[Array, "batch ..."],
    logsnr: LogSNR | float,
    path: Path = VARIANCE_PRESERVING,
) -> Float[Array, "batch ..."]:
    """x_t = alpha x0 + sigma eps, in float32."""
    alpha, sigma = (per_example(scale, x0) for scale in path.alpha_sigma(logsnr))
    return alpha * x0.astype(jnp.float32) + sigma * eps.astype(jnp.float32)


def _edm_norm(alpha: Scale, sigma: Scale) -> Scale:
    """The standard deviation of x_t, if that of x0 is SIGMA_DATA."""
    return jnp.sqrt(sigma**2 + (SIGMA_DATA * alpha) ** 2)


def _edm(alpha: Scale, sigma: Scale, path: Path) -> tuple[Scale, Scale, Scale]:
    norm = _edm_norm(alpha, sigma)
    return -SIGMA_DATA * alpha / norm, -sigma / (SIGMA_DATA * norm), -norm / SIGMA_DATA


# What a network may predict: p = a eps - b x0, as (a, b, alpha a + sigma b). With x_t = alpha x0 +
# sigma eps the last is the determinant: two kinds p and q at one x_t are related by
# det_p q = det_q p + (a_q b_p - a_p b_q) x_t, so their errors are as det_q to det_p.
PREDICTIONS = {
    "eps": lambda alpha, sigma, path: (1.0, 0.0, alpha),
    "x0": lambda alpha, sigma, path: (0.0, -1.0, -sigma),
    "v": lambda alpha, sigma, path: (*path.velocity(alpha, sigma), jnp.ones_like(alpha)),
    # F of D = c_skip x + c_out F(c_in x), x = x_t / alpha (arXiv 2206.00364, eq. 7 and table 1).
    "edm": _edm,
}


def _over(numerator: Scale | float, scale: Scale) -> Scale:
    return numerator / jnp.copysign(jnp.maximum(jnp.abs(scale), SMALLEST_SCALE), scale)


def convert(
    value: Float[Array, "batch ..."],
    x_t: Float[Array, "batch ..."],
    logsnr: LogSNR | float,
    source: str,
    target: str,
    path: Path = VARIANCE_PRESERVING,
) -> Float[Array, "batch ..."]:
    """What a prediction `value` of kind `source` at `x_t` says about the kind `target`."""
    value = value.astype(jnp.float32)
    if source == target:
        return value
    alpha, sigma = (per_example(scale, x_t) for scale in path.alpha_sigma(logsnr))
    a, b, det = PREDICTIONS[source](alpha, sigma, path)
    target_a, target_b, target_det = PREDICTIONS[target](alpha, sigma, path)
    of_x_t = _over(target_a * b - a * target_b, det)
    return _over(target_det, det) * value + of_x_t * x_t.astype(jnp.float32)


def with_least_scale(
    x0: Float[Array, "batch ..."],
    x_t: Float[Array, "batch ..."],
    logsnr: LogSNR | float,
    min_scale: float,
    path: Path = VARIANCE_PRESERVING,
) -> Float[Array, "batch ..."]:
    """The x0 that x_t leads to at the velocity of a predicted `x0`, where that velocity is found by
    a division by sigma, in units of the noise scale, or by `min_scale` where sigma is less.

    So do JiT (arXiv 2511.13720) and PRXPixel with a network's x0, in training and in sampling.
    """
    _, sigma = path.alpha_sigma(logsnr)
    share = per_example(jnp.minimum(sigma / (path.noise_scale * min_scale), 1.0), x_t)
    at_rest = convert(jnp.zeros_like(x_t), x_t, logsnr, "v", "x0", path)
    return at_rest + share * (x0 - at_rest)


def prediction_target(
    prediction: str,
    x0: Float[Array, "batch ..."],
    eps: Float[Array, "batch ..."],
    logsnr: LogSNR | float,
    path: Path = VARIANCE_PRESERVING,
) -> Float[Array, "batch ..."]:
    """What a network of this kind should output, in float32."""
    alpha, sigma = (per_example(scale, x0) for scale in path.alpha_sigma(logsnr))
    a, b, _ = PREDICTIONS[prediction](alpha, sigma, path)
    return a * eps.astype(jnp.float32) - b * x0.astype(jnp.float32)


def network_input(
    x_t: Float[Array, "batch ..."],
    logsnr: LogSNR | float,
    prediction: str,
    path: Path = VARIANCE_PRESERVING,
) -> Float[Array, "batch ..."]:
    """What the network sees of x_t: itself, or at the unit variance that EDM gives it (c_in)."""
    if prediction != "edm":
        return x_t
    alpha, sigma = (per_example(scale, x_t) for scale in path.alpha_sigma(logsnr))
    return x_t / _edm_norm(alpha, sigma)
