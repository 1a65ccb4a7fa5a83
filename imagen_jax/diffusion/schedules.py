"""Noise schedules: time t in [0, 1] to log signal-to-noise ratio and back.

t = 0 is clean data and t = 1 is (almost) pure noise. A schedule is nothing but a decreasing
function `logsnr(t)` with logsnr = log(alpha^2 / sigma^2), its inverse `time(logsnr)`, and the path
on which alpha and sigma go with log-SNR (`imagen_jax.diffusion.process`): alpha^2 + sigma^2 = 1
(VDM, arXiv 2107.00630, section 3), or alpha + sigma = 1 for the flow.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import atan, exp, inf, log, pi

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import Straight, VariancePreserving
from imagen_jax.storage.codec import require
from imagen_jax.typing import LogSNR

Time = Float[Array, "*batch"] | Float[np.ndarray, "*batch"] | np.floating | float | int

MAX_TIME_STEPS = 100_000  # that a network is trained on
LARGEST = 500.0  # log-SNR, far beyond float32's


def _shift_rule(shift: float) -> tuple[bool, str]:
    return abs(shift) <= LARGEST, f"shift must be from {-LARGEST} to {LARGEST}, got {shift}"


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """logsnr = -2 log tan(pi t / 2) + shift, cut to [logsnr_min, logsnr_max] before the shift.

    The cosine schedule of arXiv 2102.09672 in the continuous form of arXiv 2202.00512, with the cut
    and the shift of simple diffusion (arXiv 2301.11093, section 3.1). `logsnr_min=-inf` gives zero
    terminal SNR (arXiv 2305.08891).
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.logsnr_min, self.logsnr_max
        require(
            (low < high, f"logsnr_min must be below logsnr_max, got {low} and {high}"),
            (low <= LARGEST, f"logsnr_min must be {LARGEST} at most, got {low}"),
            (high >= -LARGEST, f"logsnr_max must be {-LARGEST} at least, got {high}"),
            _shift_rule(self.shift),
        )

    def _angles(self) -> tuple[float, float]:
        """Angle of t = 0 above 0, of t = 1 below pi / 2; tan(angle) = sigma / alpha, unshifted."""
        return atan(exp(-0.5 * self.logsnr_max)), atan(exp(0.5 * self.logsnr_min))

    def logsnr(self, t: Time) -> LogSNR:
        """The log-SNR at times in [0, 1]."""
        t = jnp.asarray(t, jnp.float32)
        above, below = self._angles()
        span = pi / 2 - above - below
        # cos(angle) as the sine of its complement: near t = 1 this keeps the digits that tan(angle)
        # loses.
        log_sin = jnp.log(jnp.sin(above + span * t))
        log_cos = jnp.log(jnp.sin(below + span * (1.0 - t)))
        return 2.0 * (log_cos - log_sin) + self.shift

    def time(self, logsnr: LogSNR | float) -> Float[Array, "*batch"]:
        """The time of a log-SNR, in [0, 1]."""
        above, below = self._angles()
        angle = jnp.arctan(jnp.exp(-0.5 * (jnp.asarray(logsnr, jnp.float32) - self.shift)))
        return jnp.clip((angle - above) / (pi / 2 - above - below), 0.0, 1.0)


@dataclass(frozen=True)
class Flow(Straight):
    """alpha = 1 - t, sigma = t: rectified flow (arXiv 2209.03003), flow matching (2210.02747).

    `shift` is added to logsnr, as for `Cosine`: sigma = m t / (1 + (m - 1) t) with m = exp(-shift /
    2), the timestep shift of arXiv 2403.03206, section 5.3.2. With a `noise_scale` n it is sigma =
    n t, for large images (2 in arXiv 2511.13720 at 512 pixels, and in PRXPixel).
    """

    shift: float = 0.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        require(
            _shift_rule(self.shift),
            (
                1e-3 <= self.noise_scale <= 1e3,
                f"noise_scale must be from 0.001 to 1000, got {self.noise_scale}",
            ),
        )

    def logsnr(self, t: Time) -> LogSNR:
        """The log-SNR at times in [0, 1]."""
        t = jnp.asarray(t, jnp.float32)
        return 2.0 * (jnp.log1p(-t) - jnp.log(t)) + self._offset()

    def time(self, logsnr: LogSNR | float) -> Float[Array, "*batch"]:
        """The time of a log-SNR, in [0, 1]."""
        return jax.nn.sigmoid(-0.5 * (jnp.asarray(logsnr, jnp.float32) - self._offset()))

    def _offset(self) -> float:
        return self.shift - 2.0 * log(self.noise_scale)


@dataclass(frozen=True)
class LinearBeta(VariancePreserving):
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
        _check_betas(self.beta_start, self.beta_end, self.num_steps)
        require(
            (
                self.logsnr_max >= -LARGEST,
                f"logsnr_max must be {-LARGEST} at least, got {self.logsnr_max}",
            )
        )

    def logsnr(self, t: Time) -> LogSNR:
        """The log-SNR at times in [0, 1]."""
        times, decays = _linear_beta_table(self)
        decay = jnp.interp(jnp.asarray(t, jnp.float32), times, decays)
        decay = jnp.maximum(decay, log(1.0 + exp(-self.logsnr_max)))
        return -decay - jnp.log(-jnp.expm1(-decay))

    def time(self, logsnr: LogSNR | float) -> Float[Array, "*batch"]:
        """The time of a log-SNR, in [0, 1]."""
        times, decays = _linear_beta_table(self)
        return jnp.interp(jax.nn.softplus(-jnp.asarray(logsnr, jnp.float32)), decays, times)


def _check_betas(beta_start: float, beta_end: float, num_steps: int) -> None:
    require(
        (
            0.0 < beta_start <= beta_end < 1.0,
            f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}",
        ),
        (
            1 <= num_steps <= MAX_TIME_STEPS,
            f"num_steps must be from 1 to {MAX_TIME_STEPS}, got {num_steps}",
        ),
    )


@lru_cache
def _linear_beta_table(schedule: LinearBeta) -> tuple[np.ndarray, np.ndarray]:
    """n / num_steps and -log alpha-bar_n for n = 0 ... num_steps, summed in float64."""
    betas = np.linspace(schedule.beta_start, schedule.beta_end, schedule.num_steps)
    decays = np.concatenate([[0.0], np.cumsum(-np.log1p(-betas))])
    times = np.arange(schedule.num_steps + 1) / schedule.num_steps
    return times.astype(np.float32), decays.astype(np.float32)


@dataclass(frozen=True)
class DiscreteBeta(VariancePreserving):
    """A table of betas, as DDPM and its descendants are trained with: diffusers' schedules.

    Time step n = 0 ... num_steps - 1, the number that the network sees, lies at t = (n + 1) /
    num_steps, where alpha^2 is `alphas_cumprod[n]`; clean data lies at t = 0. Between the steps log
    alpha^2 is linear in t. `beta_schedule` is a key of BETAS; beta_start and beta_end are for the
    linear ones.
    """

    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETAS:
            raise ValueError(
                f"unknown beta_schedule {self.beta_schedule!r}; choose one of {tuple(BETAS)}"
            )
        _check_betas(self.beta_start, self.beta_end, self.num_steps)

    def betas(self) -> np.ndarray:
        """beta_n, float32."""
        return BETAS[self.beta_schedule](self).astype(np.float32)

    def logsnr(self, t: Time) -> LogSNR:
        """The log-SNR at times in [0, 1]."""
        steps = np.arange(self.num_steps + 1, dtype=np.float32)
        decay = jnp.interp(self._position(t), steps, _discrete_decays(self))
        return -decay - jnp.log(-jnp.expm1(-decay))

    def time(self, logsnr: LogSNR | float) -> Float[Array, "*batch"]:
        """The time of a log-SNR, in [0, 1]."""
        decay = jax.nn.softplus(-jnp.asarray(logsnr, jnp.float32))
        times = np.arange(self.num_steps + 1, dtype=np.float32) / self.num_steps
        return jnp.interp(decay, _discrete_decays(self), times)

    def time_step(self, t: Time) -> Float[Array, "*batch"]:
        """What the network sees at t: the time step as a float, whole where t is that of a step.

        Nothing is below time step 0: it also stands for clean data.
        """
        return jnp.maximum(self._position(t) - 1.0, 0.0)

    def nearest_step(self, t: Time) -> Float[Array, "*batch"]:
        """The time of the first step at or above t: uniform t give every step equally often."""
        return jnp.maximum(jnp.ceil(self._position(t)), 1.0) / self.num_steps

    def _position(self, t: Time) -> Float[Array, "*batch"]:
        """num_steps * t, without the rounding that (n + 1) / num_steps has in float32."""
        position = self.num_steps * jnp.asarray(t, jnp.float32)
        error = jnp.round(position) - position
        # A constant: the slope of the schedule at a time step is not that of rounding.
        return position + jax.lax.stop_gradient(jnp.where(jnp.abs(error) < 1e-3, error, 0.0))


def _squared_cosine_betas(schedule: DiscreteBeta) -> np.ndarray:
    """1 - abar(t_{n+1}) / abar(t_n), at most 0.999; abar is cos^2 (arXiv 2102.09672, eq. 17)."""
    times = np.arange(schedule.num_steps + 1) / schedule.num_steps
    signal = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)


def _scaled_linear_betas(schedule: DiscreteBeta) -> np.ndarray:
    roots = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.num_steps)
    return np.square(roots.astype(np.float32))


# The names are those of diffusers' scheduler files.
BETAS = {
    "linear": lambda schedule: np.linspace(
        schedule.beta_start, schedule.beta_end, schedule.num_steps
    ),
    "scaled_linear": _scaled_linear_betas,
    "squaredcos_cap_v2": _squared_cosine_betas,
}


@lru_cache
def alphas_cumprod(schedule: DiscreteBeta) -> np.ndarray:
    """alpha^2 of every time step, float32: as float32 factors give it."""
    factors = np.float32(1.0) - schedule.betas()
    return np.cumprod(factors.astype(np.float64)).astype(np.float32)


@lru_cache
def _discrete_decays(schedule: DiscreteBeta) -> np.ndarray:
    """-log alpha^2 at t = 0, 1 / num_steps ... 1."""
    decays = -np.log(alphas_cumprod(schedule).astype(np.float64))
    return np.concatenate([[0.0], decays]).astype(np.float32)


Schedule = Cosine | Flow | LinearBeta | DiscreteBeta

SCHEDULES = {
    "cosine": Cosine,
    "flow": Flow,
    "linear_beta": LinearBeta,
    "discrete_beta": DiscreteBeta,
}

EDM_LARGEST_LOGSNR = 20.0  # beyond it, where it may be infinite, the network sees this one
TIME_UNITS = 1000.0  # networks see a continuous t in thousandths, as if it were DDPM's step


def network_time(
    schedule: Schedule, t: Time, prediction: str | None = None
) -> Float[Array, "*batch"]:
    """The noise level in the units that networks see: 1000 t, or the time step where the schedule
    counts them.

    On the flow it is 1000 sigma, in units of the noise scale, so that a noise level looks the same
    whatever the shift. For the prediction "edm" it is 1000 c_noise = 250 log(sigma / alpha) (arXiv
    2206.00364, table 1).
    """
    if prediction == "edm":
        limited = jnp.clip(schedule.logsnr(t), -EDM_LARGEST_LOGSNR, EDM_LARGEST_LOGSNR)
        return -TIME_UNITS / 8.0 * limited
    if isinstance(schedule, DiscreteBeta):
        return schedule.time_step(t)
    if isinstance(schedule, Flow):
        return TIME_UNITS * schedule.alpha_sigma(schedule.logsnr(t))[1] / schedule.noise_scale
    return TIME_UNITS * t


def training_time(schedule: Schedule, t: Time) -> Float[Array, "*batch"]:
    """The time that a uniform sample stands for: t itself, or that of a time step."""
    return schedule.nearest_step(t) if isinstance(schedule, DiscreteBeta) else t


def logsnr_slope(schedule: Schedule, t: Time) -> Float[Array, "*batch"]:
    """-d logsnr / dt, positive: how fast the schedule passes a noise level (arXiv 2303.00848)."""
    t = jnp.asarray(t, jnp.float32)
    return -jax.jvp(schedule.logsnr, (t,), (jnp.ones_like(t),))[1]


def resolution_shift(resolution: int, reference: int = 64) -> float:
    """2 log(reference / resolution), a shift of logsnr: more noise for larger images.

    With it, the image averaged down to the reference resolution is as noisy as one made there
    (arXiv 2301.11093, section 3.1).
    """
    if not (0 < resolution < inf and 0 < reference < inf):
        raise ValueError(f"resolutions must be positive, got {resolution} and {reference}")
    return 2.0 * log(reference / resolution)
