"""Noise schedules: time t in [0, 1] to log signal-to-noise ratio and back.

t = 0 is clean data and t = 1 is (almost) pure noise. A schedule is nothing but a decreasing
function `logsnr(t)` and its inverse `time(logsnr)`, with logsnr = log(alpha^2 / sigma^2) and
alpha^2 + sigma^2 = 1 (VDM, arXiv 2107.00630, section 3).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import atan, exp, inf, isfinite, log, pi

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.typing import LogSNR

Time = Float[Array, "*batch"] | float | int


@dataclass(frozen=True)
class Cosine:
    """logsnr = -2 log tan(pi t / 2) + shift, cut to [logsnr_min, logsnr_max] before the shift.

    The cosine schedule of arXiv 2102.09672 in the continuous form of arXiv 2202.00512, with the cut
    and the shift of simple diffusion (arXiv 2301.11093, section 3.1). `logsnr_min=-inf` gives zero
    terminal SNR (arXiv 2305.08891).
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(
                f"logsnr_min must be below logsnr_max, got {self.logsnr_min} and {self.logsnr_max}"
            )
        if not isfinite(self.shift):
            raise ValueError(f"shift must be finite, got {self.shift}")

    def _angles(self) -> tuple[float, float]:
        """Angle of t = 0 above 0, of t = 1 below pi / 2; tan(angle) = sigma / alpha, unshifted."""
        above = atan(exp(-0.5 * self.logsnr_max))
        below = atan(exp(0.5 * self.logsnr_min))
        return above, below

    def logsnr(self, t: Time) -> LogSNR:
        t = jnp.asarray(t, jnp.float32)
        above, below = self._angles()
        span = pi / 2 - above - below
        # cos(angle) as the sine of its complement: near t = 1 this keeps the digits that tan(angle)
        # loses.
        log_sin = jnp.log(jnp.sin(above + span * t))
        log_cos = jnp.log(jnp.sin(below + span * (1.0 - t)))
        return 2.0 * (log_cos - log_sin) + self.shift

    def time(self, logsnr: LogSNR | float) -> Float[Array, "*batch"]:
        above, below = self._angles()
        angle = jnp.arctan(jnp.exp(-0.5 * (jnp.asarray(logsnr, jnp.float32) - self.shift)))
        return jnp.clip((angle - above) / (pi / 2 - above - below), 0.0, 1.0)


@dataclass(frozen=True)
class LinearBeta:
    """DDPM's linear betas (arXiv 2006.11239, section 4) in continuous time.

    At t = n / num_steps, n = 1 ... num_steps, alpha^2 is the product of the first n factors 1 -
    beta_i: DDPM's alpha-bar of its n-th step, which zero-based tables call `alphas_cumprod[n - 1]`.
    Between, log alpha^2 is linear in t, that is to say each discrete step is spread evenly over 1 /
    num_steps of time. t = 0 is clean data, which DDPM has no number for; there logsnr is cut at
    `logsnr_max`.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_steps: int = 1000
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(
                "betas must satisfy 0 < beta_start <= beta_end < 1, "
                f"got {self.beta_start} and {self.beta_end}"
            )
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    def logsnr(self, t: Time) -> LogSNR:
        times, decays = _linear_beta_table(self)
        decay = jnp.interp(jnp.asarray(t, jnp.float32), times, decays)
        decay = jnp.maximum(decay, log(1.0 + exp(-self.logsnr_max)))
        return -decay - jnp.log(-jnp.expm1(-decay))

    def time(self, logsnr: LogSNR | float) -> Float[Array, "*batch"]:
        times, decays = _linear_beta_table(self)
        return jnp.interp(jax.nn.softplus(-jnp.asarray(logsnr, jnp.float32)), decays, times)


@lru_cache
def _linear_beta_table(schedule: LinearBeta) -> tuple[np.ndarray, np.ndarray]:
    """n / num_steps and -log alpha-bar_n for n = 0 ... num_steps, summed in float64."""
    betas = np.linspace(schedule.beta_start, schedule.beta_end, schedule.num_steps)
    decays = np.concatenate([[0.0], np.cumsum(-np.log1p(-betas))])
    times = np.arange(schedule.num_steps + 1) / schedule.num_steps
    return times.astype(np.float32), decays.astype(np.float32)


Schedule = Cosine | LinearBeta

SCHEDULES = {"cosine": Cosine, "linear_beta": LinearBeta}


def logsnr_slope(schedule: Schedule, t: Time) -> Float[Array, "*batch"]:
    """-d logsnr / dt, positive: how fast the schedule passes a noise level (arXiv 2303.00848)."""
    t = jnp.asarray(t, jnp.float32)
    return -jax.jvp(schedule.logsnr, (t,), (jnp.ones_like(t),))[1]


def resolution_shift(resolution: int, reference: int = 64) -> float:
    """2 log(reference / resolution), a shift of logsnr: more noise for larger pictures.

    With it, the picture averaged down to the reference resolution is as noisy as one made there
    (arXiv 2301.11093, section 3.1).
    """
    if not (0 < resolution < inf and 0 < reference < inf):
        raise ValueError(f"resolutions must be positive, got {resolution} and {reference}")
    return 2.0 * log(reference / resolution)
