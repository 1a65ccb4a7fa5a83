"""The forward process x_t = alpha x0 + sigma eps, and the three things a network may predict."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.typing import LogSNR

# Predictions are divided by alpha or sigma, and both may be zero at an end of the schedule (zero
# terminal SNR). This floor keeps the quotient finite; it lies below every alpha and sigma of a
# schedule with |logsnr| < 27.
SMALLEST_SCALE = 1e-6


def alpha_sigma(logsnr: LogSNR | float) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """alpha, sigma with alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr); +-inf is allowed."""
    logsnr = jnp.asarray(logsnr, jnp.float32)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def per_example(
    value: Float[Array, "..."] | float | int, images: Float[Array, "batch ..."]
) -> Float[Array, "..."]:
    """A scalar, or one number an example with trailing axes: what multiplies `images`."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value


def add_noise(
    x0: Float[Array, "batch ..."], eps: Float[Array, "batch ..."], logsnr: LogSNR | float
) -> Float[Array, "batch ..."]:
    """x_t = alpha x0 + sigma eps, in float32."""
    alpha, sigma = (per_example(scale, x0) for scale in alpha_sigma(logsnr))
    return alpha * x0.astype(jnp.float32) + sigma * eps.astype(jnp.float32)


def _over(numerator: Float[Array, "..."] | float, scale: Float[Array, "..."]) -> Array:
    return numerator / jnp.maximum(scale, SMALLEST_SCALE)


# target = c_value * source + c_x * x_t: both coefficients as functions of (alpha, sigma), from
# x_t = alpha x0 + sigma eps and v = alpha eps - sigma x0 (arXiv 2202.00512, section 4).
CONVERSIONS = {
    ("eps", "eps"): lambda alpha, sigma: (1.0, 0.0),
    ("eps", "x0"): lambda alpha, sigma: (_over(-sigma, alpha), _over(1.0, alpha)),
    ("eps", "v"): lambda alpha, sigma: (_over(1.0, alpha), _over(-sigma, alpha)),
    ("x0", "eps"): lambda alpha, sigma: (_over(-alpha, sigma), _over(1.0, sigma)),
    ("x0", "x0"): lambda alpha, sigma: (1.0, 0.0),
    ("x0", "v"): lambda alpha, sigma: (_over(-1.0, sigma), _over(alpha, sigma)),
    ("v", "eps"): lambda alpha, sigma: (alpha, sigma),
    ("v", "x0"): lambda alpha, sigma: (-sigma, alpha),
    ("v", "v"): lambda alpha, sigma: (1.0, 0.0),
}

PREDICTIONS = ("eps", "x0", "v")


def convert(
    value: Float[Array, "batch ..."],
    x_t: Float[Array, "batch ..."],
    logsnr: LogSNR | float,
    source: str,
    target: str,
) -> Float[Array, "batch ..."]:
    """What a prediction `value` of kind `source` at `x_t` says about the kind `target`."""
    alpha, sigma = (per_example(scale, x_t) for scale in alpha_sigma(logsnr))
    c_value, c_x = CONVERSIONS[source, target](alpha, sigma)
    return c_value * value.astype(jnp.float32) + c_x * x_t.astype(jnp.float32)


def velocity(
    x0: Float[Array, "batch ..."], eps: Float[Array, "batch ..."], logsnr: LogSNR | float
) -> Float[Array, "batch ..."]:
    """v = alpha eps - sigma x0 (arXiv 2202.00512, section 4)."""
    alpha, sigma = (per_example(scale, x0) for scale in alpha_sigma(logsnr))
    return alpha * eps.astype(jnp.float32) - sigma * x0.astype(jnp.float32)
