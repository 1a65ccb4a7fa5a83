"""Editing images with an unchanged model: image to image, inpainting, resampling.

Everything here is a time grid, a first state or a wrapped sampler, for the loop that draws images
from noise (`sample_loop`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.process import add_noise, alpha_sigma
from imagen_jax.diffusion.samplers import (
    MAX_STEPS,
    Noise,
    Sampler,
    SamplerOptions,
    SamplerState,
    Step,
    TimeGrid,
    initial_state,
)
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.typing import Images

Mask = Float[Array, "#batch height width 1"]

# What the kept part of the image is while the rest is drawn.
KNOWN = {
    # The image itself, without noise: as diffusers' pipelines for DeepFloyd IF have it.
    "clean": lambda image, eps, logsnr: image,
    # As noisy as the rest: arXiv 2201.09865, eq. 8a.
    "noised": add_noise,
}


@dataclass(frozen=True)
class Edit:
    """What to make of an image in [-1, 1], of the resolution of the stage that edits it.

    mask: 1 where to draw anew, 0 where to keep; None: everywhere, image to image. strength: in (0,
    1], the share of the steps that are run, from an image as noisy as the first of them takes.
    known: a key of KNOWN. resamplings: how often each stretch of `jump_length` steps is drawn (1:
    once), so that the new part comes to fit the kept one (arXiv 2201.09865, section 4.2).
    """

    image: Images | np.ndarray
    mask: Mask | np.ndarray | None = None
    strength: float = 1.0
    known: str = "clean"
    resamplings: int = 1
    jump_length: int = 10

    def __post_init__(self) -> None:
        number = isinstance(self.strength, int | float | np.number)
        if not number or not 0.0 < self.strength <= 1.0:
            raise ValueError(
                f"strength must be a number above 0 and at most 1, got {self.strength!r}"
            )
        if self.known not in KNOWN:
            raise ValueError(f"unknown known {self.known!r}; choose one of {tuple(KNOWN)}")
        if min(self.resamplings, self.jump_length) < 1:
            raise ValueError(
                "resamplings and jump_length must be at least 1, "
                f"got {self.resamplings} and {self.jump_length}"
            )
        if self.mask is not None and self.mask.shape[1:] != (*self.image.shape[1:3], 1):
            raise ValueError(
                f"a mask of shape {self.mask.shape} does not fit images of {self.image.shape}; "
                "it has one channel and their height and width"
            )


def first_step(num_steps: int, strength: float) -> int:
    """The step that an edit starts at: floor(strength * num_steps) steps are left.

    Raises:
        ValueError: none is.
    """
    left = min(int(num_steps * strength), num_steps)
    if left < 1:
        raise ValueError(f"strength {strength} leaves none of {num_steps} steps to run")
    return num_steps - left


def resampling_path(
    num_steps: int, start: int, resamplings: int, jump_length: int
) -> Int[np.ndarray, " path"]:
    """The places in a grid that resampling visits: back by `jump_length` again and again.

    RePaint's own path (arXiv 2201.09865, figure 9): jumps start from every `jump_length`-th noise
    level from the lowest one on, which itself is one, as long as they end at the start or after it.

    Args:
        start: the step that is run first; the places before it stay in the path as they are, so
            that step numbers keep their meaning.
    """
    lowest = num_steps - 1
    ends = range(lowest, start + jump_length - 1, -jump_length)
    jumps = dict.fromkeys(ends, resamplings - 1)
    path, place = list(range(start + 1)), start
    while place < num_steps:
        place += 1
        path.append(place)
        if jumps.get(place, 0):
            jumps[place] -= 1
            place -= jump_length
            path.append(place)
    return np.asarray(path)


def path_grid(grid: TimeGrid, path: Sequence[int] | Int[np.ndarray, " path"]) -> TimeGrid:
    """The grid of a path through the places of `grid`, for a sampler that is `jumping`.

    Padded to a multiple of MAX_STEPS: paths of about the same length share a compiled program.
    """
    times = np.asarray(grid.times)[np.asarray(path)]
    size = MAX_STEPS * ceil((len(times) - 1) / MAX_STEPS) + 1
    padded = np.full(size, times[-1], np.float32)
    padded[: len(times)] = times
    return TimeGrid(padded, np.int32(len(times) - 1))


def edited_start(
    image: Images,
    eps: Images,
    schedule: Schedule,
    t: Float[Array, ""] | float,
    mask: Mask | None = None,
    known: str = "clean",
) -> SamplerState:
    """The state before the first step, at time t: the image with noise."""
    logsnr = schedule.logsnr(t)
    noised = add_noise(image, eps, logsnr)
    if mask is not None:
        noised = _blend(mask, noised, KNOWN[known](image, eps, logsnr))
    return initial_state(noised)


def inpainting(
    sampler: Sampler, image: Images, mask: Mask, known: str, known_noise: Noise
) -> Sampler:
    """The sampler, with the kept part of the image put back after each step.

    Args:
        known_noise: known_noise(i + 1) is the noise of the kept part after step i; "clean" draws
            none.
    """

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, options: SamplerOptions
    ) -> SamplerState:
        state = sampler(denoise, state, step, noise, options)
        eps = known_noise(step.index + 1) if known == "noised" else None
        return state._replace(x=_blend(mask, state.x, KNOWN[known](image, eps, step.logsnr_s)))

    return step


def jumping(sampler: Sampler) -> Sampler:
    """The sampler for paths that also go up in time: there q(x_s | x_t) adds the noise between.

    Of a jump over several steps this is the whole at once (arXiv 2201.09865, algorithm 1, line 10,
    takes it one by one). A multistep sampler forgets what it saw before a jump.
    """

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, options: SamplerOptions
    ) -> SamplerState:
        def up() -> SamplerState:
            alpha_t, _ = alpha_sigma(step.logsnr_t)
            alpha_s, sigma_s = alpha_sigma(step.logsnr_s)
            deviation = sigma_s * jnp.sqrt(-jnp.expm1(step.logsnr_s - step.logsnr_t))
            x = (alpha_s / alpha_t) * state.x + deviation * noise(step.index + 1)
            return SamplerState(x, state.x0, jnp.float32(-jnp.inf))

        def down() -> SamplerState:
            return sampler(denoise, state, step, noise, options)

        return jax.lax.cond(step.s > step.t, up, down)

    return step


def _blend(mask: Mask, new: Images, kept: Images) -> Images:
    return mask * new + (1.0 - mask) * kept
