"""The contract of samplers: what a step is given, and what goes from step to step.

A step goes from time t down to time s < t. With lambda = logsnr / 2 = log(alpha / sigma), and
everything written so that alpha_t = 0 (zero terminal SNR) and sigma_s = 0 (clean data) are allowed.
Everything is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.typing import Images, LogSNR

# noise(0) is the initial noise, noise(i + 1) belongs to step i.
Noise = Callable[[Int[Array, ""] | int], Images]
NO_ESTIMATE = jnp.inf  # the log-SNR of clean data, where nothing is ever estimated


class Estimate(NamedTuple):
    """A denoised image, and the noise level where it was estimated: NO_ESTIMATE before it is."""

    x0: Images
    logsnr: Float[Array, ""]


class SamplerState(NamedTuple):
    """What goes from step to step, and what a caller sees between chunks.

    x: the image at the current time. history: the last estimates, the newest first; as many as the
    sampler wants (`HISTORY`), at least one. average: of the guidance so far, where its kind keeps
    one (`diffusion.guided_steps`).
    """

    x: Images
    history: tuple[Estimate, ...]
    average: Images | None = None

    @property
    def x0(self) -> Images:
        """The last estimate: a preview."""
        return self.history[0].x0

    def then(self, x: Images, x0: Images, logsnr: LogSNR) -> "SamplerState":
        """The state after a step to `x`, for which x0 was estimated at `logsnr`."""
        history = (Estimate(x0, logsnr), *self.history)[: len(self.history)]
        return self._replace(x=x, history=history)

    def forgetting(self, x: Images) -> "SamplerState":
        """The state at `x`, to which the estimates so far do not lead."""
        none = jnp.float32(NO_ESTIMATE)
        return self._replace(x=x, history=tuple(e._replace(logsnr=none) for e in self.history))


class Step(NamedTuple):
    """One step of a schedule, from time t down to time s; `to_clean` marks the one that ends at
    s = 0, and `then_clean` the one before it.
    """

    index: Int[Array, ""]
    t: Float[Array, ""]
    s: Float[Array, ""]
    logsnr_t: Float[Array, ""]
    logsnr_s: Float[Array, ""]
    to_clean: Bool[Array, ""]
    then_clean: Bool[Array, ""]
    schedule: Schedule


Sampler = Callable[[Denoiser, SamplerState, Step, Noise, Sampling], SamplerState]


def renoise(x: Images, eps: Images, logsnr: LogSNR, lower: LogSNR, schedule: Schedule) -> Images:
    """From `logsnr` up to the noise of `lower`: q(x_s | x_t) of the forward process."""
    alpha_t, _ = schedule.alpha_sigma(logsnr)
    alpha_s, sigma_s = schedule.alpha_sigma(lower)
    return (alpha_s / alpha_t) * x + sigma_s * jnp.sqrt(-jnp.expm1(lower - logsnr)) * eps
