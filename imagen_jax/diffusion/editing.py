"""Editing images with an unchanged model: image to image, inpainting, resampling.

Everything here is a time grid, a first state or a wrapped sampler, for the loop that samples images
from noise (`sample_loop`).
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.overrides import is_number, is_whole
from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.steps import Noise, Sampler, SamplerState, Step, renoise
from imagen_jax.diffusion.time_grids import TimeGrid, padded_grid
from imagen_jax.storage.codec import require
from imagen_jax.typing import Images

Mask = Float[Array, "#batch height width 1"]

# What the kept part of the image is while the rest is sampled.
KNOWN = {
    # The image itself, without noise: as diffusers' pipelines for DeepFloyd IF have it.
    "clean": lambda image, eps, logsnr, path: image,
    # As noisy as the rest: arXiv 2201.09865, eq. 8a.
    "noised": add_noise,
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["image", "mask"],
    meta_fields=["known"],
    drop_fields=["strength", "resamplings", "jump_length"],
)
@dataclass(frozen=True)
class Edit:
    """What to make of an image in [-1, 1], of the resolution of the stage that edits it.

    A compiled program does not see what makes the time grid (`edited_grid`): strength, resamplings
    and jump_length.

    mask: 1 where to sample, 0 where to keep; None: everywhere, image to image. strength: in
    (0, 1], the share of the steps that are run, from an image as noisy as the first of them takes.
    known: a key of KNOWN. resamplings: how often each stretch of `jump_length` steps is sampled (1:
    once), so that the new part comes to fit the kept one (arXiv 2201.09865, section 4.2).
    """

    image: Images | np.ndarray
    mask: Mask | np.ndarray | None = None
    strength: float = 1.0
    known: str = "clean"
    resamplings: int = 1
    jump_length: int = 10


def check_edit(edit: Edit) -> Edit:
    """The edit itself.

    Raises:
        ValueError: a value that makes no sense, which it names.
    """
    strength, image = edit.strength, edit.image.shape
    mask = (*image[:3], 1) if edit.mask is None else edit.mask.shape
    require(
        (
            is_number(strength) and 0.0 < strength <= 1.0,
            f"strength must be a number above 0 and at most 1, got {strength!r}",
        ),
        (edit.known in KNOWN, f"unknown known {edit.known!r}; choose one of {tuple(KNOWN)}"),
        (
            is_whole(edit.resamplings) and is_whole(edit.jump_length),
            "resamplings and jump_length must be whole numbers, "
            f"got {edit.resamplings!r} and {edit.jump_length!r}",
        ),
        (
            min(edit.resamplings, edit.jump_length) >= 1,
            "resamplings and jump_length must be at least 1, "
            f"got {edit.resamplings} and {edit.jump_length}",
        ),
        (
            mask[1:] == (*image[1:3], 1),
            f"a mask of shape {mask} does not fit images of {image}; "
            "it has one channel and their height and width",
        ),
    )
    return edit


def first_step(num_steps: int, strength: float) -> int:
    """The step that an edit starts at: floor(strength * num_steps) steps are left.

    Raises:
        ValueError: none is.
    """
    left = min(int(num_steps * strength), num_steps)
    if left < 1:
        raise ValueError(
            f"strength {strength} leaves none of {num_steps} steps to run; it must be at least "
            f"1/{num_steps}"
        )
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
    ends = range(num_steps - 1, start + jump_length - 1, -jump_length)
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


def edited_grid(grid: TimeGrid, edit: Edit) -> TimeGrid:
    """The part of a stage's grid that an edit runs, its resampling included.

    Raises:
        ValueError: a strength that leaves no step to run.
    """
    num_steps = int(grid.stop)
    start = first_step(num_steps, edit.strength)
    path = resampling_path(num_steps, start, edit.resamplings, edit.jump_length)
    return padded_grid(grid.times[path], start)


def edited_start(
    edit: Edit, eps: Images, schedule: Schedule, t: Float[Array, ""] | np.floating | float
) -> Images:
    """What the first step starts from, at time t: the image with noise."""
    logsnr = schedule.logsnr(t)
    noised = add_noise(edit.image, eps, logsnr, schedule)
    if edit.mask is None:
        return noised
    return _blend(edit.mask, noised, KNOWN[edit.known](edit.image, eps, logsnr, schedule))


def inpainting(sampler: Sampler, edit: Edit, known_noise: Noise) -> Sampler:
    """The sampler, with the kept part of the image put back after each step.

    Args:
        edit: with a mask.
        known_noise: known_noise(i + 1) is the noise of the kept part after step i; an edit whose
            kept part is "clean" uses none.
    """

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
    ) -> SamplerState:
        state = sampler(denoise, state, step, noise, sampling)
        eps = known_noise(step.index + 1) if edit.known == "noised" else None
        kept = KNOWN[edit.known](edit.image, eps, step.logsnr_s, step.schedule)
        return state._replace(x=_blend(edit.mask, state.x, kept))

    return step


def jumping(sampler: Sampler) -> Sampler:
    """The sampler for paths that also go up in time: there q(x_s | x_t) adds the noise between.

    Of a jump over several steps this is the whole at once (arXiv 2201.09865, algorithm 1, line 10,
    takes it one by one). A multistep sampler forgets what it saw before a jump.
    """

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
    ) -> SamplerState:
        def up() -> SamplerState:
            eps = noise(step.index + 1)
            x = renoise(state.x, eps, step.logsnr_t, step.logsnr_s, step.schedule)
            return state.forgetting(x)

        def down() -> SamplerState:
            return sampler(denoise, state, step, noise, sampling)

        return jax.lax.cond(step.s > step.t, up, down)

    return step


def _blend(mask: Mask, new: Images, kept: Images) -> Images:
    return mask * new + (1.0 - mask) * kept
