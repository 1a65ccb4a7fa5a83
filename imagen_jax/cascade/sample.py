"""Drawing the images of one stage, from noise or from an image that is edited.

Pure functions of parameters, keys and conditions, compiled for each stage by itself; numbers such
as guidance, times and augmentation level are traced, so that a new value never recompiles.
"""

from collections.abc import Callable
from functools import partial
from math import ceil, inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_jax import models
from imagen_jax.cascade.stage import Stage, make_stage_denoiser
from imagen_jax.diffusion.augmentation import augment, upsample
from imagen_jax.diffusion.denoiser import Guidance, Thresholding
from imagen_jax.diffusion.editing import (
    Edit,
    Mask,
    edited_start,
    first_step,
    inpainting,
    jumping,
    path_grid,
    resampling_path,
)
from imagen_jax.diffusion.samplers import (
    MAX_STEPS,
    SAMPLERS,
    Noise,
    Sampler,
    SamplerOptions,
    SamplerState,
    TimeGrid,
    initial_state,
    noise_from_keys,
    sample_loop,
)
from imagen_jax.diffusion.sampling import SamplingSettings, sampling_grid
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings

AUGMENTATION_INDEX = MAX_STEPS + 1  # noise indices 0 ... MAX_STEPS belong to the sampler
Shape = tuple[int, int, int]  # of one image: height, width, channels
KNOWN_INDEX = MAX_STEPS + 2  # what a key is folded with for the kept part of an edited image


class Conditions(NamedTuple):
    """What a batch is made of; each field has one row a sample, or is None.

    null: what guidance leads away from, one row for all or one a sample: the null text or the
    negative prompt. low_res: images in [-1, 1] of the stage's low resolution.
    """

    text: TextEmbeddings | None = None
    null: TextEmbeddings | None = None
    label: Int[Array, " batch"] | None = None
    low_res: Images | None = None


class InjectedNoise(NamedTuple):
    """Noise given from outside, to compare runs with another implementation's.

    steps[0] is the initial noise, steps[i + 1] that of step i, jumps of resampling included.
    augmentation: for the low-resolution input, at the stage's resolution. known: as `steps`, for
    the kept part of an edited image.
    """

    steps: Float[Array, "steps_and_one batch height width channels"]
    augmentation: Images | None = None
    known: Float[Array, "steps_and_one batch height width channels"] | None = None


class Choices(NamedTuple):
    """What a compiled program is made for, besides its stage; SamplingSettings and Edit say it."""

    sampler: str
    threshold: str
    learned_variance: bool
    known: str | None = None
    jumps: bool = False


class Numbers(NamedTuple):
    """The traced part of SamplingSettings."""

    grid: TimeGrid
    guidance: Guidance
    thresholding: Thresholding
    options: SamplerOptions
    aug_level: Float[Array, ""] | float


def plan_steps(
    stage: Stage, settings: SamplingSettings, edit: Edit | None = None
) -> tuple[TimeGrid, int, int]:
    """The times of a stage, the first step to run, and the one to stop before."""
    grid = sampling_grid(stage.schedule, settings)
    if edit is None:
        return jax.tree.map(np.asarray, grid), 0, settings.steps
    start = first_step(settings.steps, edit.strength)
    if edit.resamplings > 1:
        path = resampling_path(settings.steps, start, edit.resamplings, edit.jump_length)
        grid = path_grid(grid, path)
    return jax.tree.map(np.asarray, grid), start, int(grid.num_steps)


def make_numbers(settings: SamplingSettings, grid: TimeGrid) -> Numbers:
    """The settings' numbers, on this grid of times."""
    start, stop = settings.guidance_interval
    guidance = Guidance(settings.guidance, start, stop, settings.guidance_rescale)
    thresholding = Thresholding(settings.percentile, inf if settings.cap is None else settings.cap)
    options = SamplerOptions(settings.gamma, settings.eta)
    floats = (guidance, thresholding, options, settings.aug_level)
    return Numbers(grid, *jax.tree.map(np.float32, floats))


def _noise(shape: Shape, keys: Keys, injected: InjectedNoise | None) -> Noise:
    if injected is not None:
        return lambda index: injected.steps[index].astype(jnp.float32)
    return noise_from_keys(keys, shape)


def _path_noise(shape: Shape, keys: Keys, injected: InjectedNoise | None) -> Noise:
    """Noise of a path longer than any grid: drawn, it skips the index of the augmentation."""
    noise = _noise(shape, keys, injected)
    if injected is not None:
        return noise
    return lambda index: noise(jnp.where(index > MAX_STEPS, index + 1, index))


def _known_noise(shape: Shape, keys: Keys, injected: InjectedNoise | None) -> Noise:
    """Noise of the kept part of an edited image, independent of the sampler's."""
    if injected is None:
        return _path_noise(shape, jax.vmap(jax.random.fold_in, (0, None))(keys, KNOWN_INDEX), None)
    if injected.known is None:
        raise ValueError("Injected noise lacks `known`, the noise of the kept part of the image.")
    return lambda index: injected.known[index].astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def begin_stage(
    stage: Stage,
    shape: Shape,
    keys: Keys,
    low_res: Images | None,
    aug_level: Float[Array, ""] | float,
    injected: InjectedNoise | None = None,
) -> tuple[SamplerState, Float[Array, "batch high wide channels"] | None]:
    """Initial noise, and the low-resolution input enlarged and noised as the network wants it."""
    noise = _noise(shape, keys, injected)
    if low_res is not None:
        low_res = upsample(low_res, shape[:2], stage.upsampling)
        given = injected is not None and injected.augmentation is not None
        eps = injected.augmentation if given else noise(AUGMENTATION_INDEX)
        low_res = augment(low_res, aug_level, eps, stage.aug_schedule)
    return initial_state(noise(0)), low_res


@partial(jax.jit, static_argnums=(0, 1))
def begin_edit(
    stage: Stage,
    known: str,
    noise: SamplerState,
    image: Images,
    mask: Mask | None,
    t: Float[Array, ""] | float,
) -> SamplerState:
    """The image at time t, with the noise that `begin_stage` gave."""
    return edited_start(image, noise.x, stage.schedule, t, mask, known)


def _make_sampler(
    shape: Shape,
    choices: Choices,
    keys: Keys,
    kept: tuple[Images, Mask | None] | None,
    injected: InjectedNoise | None,
) -> tuple[Sampler, Noise]:
    """The sampler of these choices, wrapped for an edit, and its noise."""
    sampler = SAMPLERS[choices.sampler]
    image, mask = kept or (None, None)
    noise = (_path_noise if choices.jumps else _noise)(shape, keys, injected)
    if choices.jumps:
        sampler = jumping(sampler)
    if mask is not None:
        known_noise = _known_noise(shape, keys, injected) if choices.known == "noised" else noise
        sampler = inpainting(sampler, image, mask, choices.known, known_noise)
    return sampler, noise


@partial(jax.jit, static_argnums=(0, 1))
def advance_stage(
    stage: Stage,
    choices: Choices,
    params: Params,
    keys: Keys,
    conditions: Conditions,
    numbers: Numbers,
    state: SamplerState,
    start: Int[Array, ""] | int,
    stop: Int[Array, ""] | int,
    injected: InjectedNoise | None = None,
    kept: tuple[Images, Mask | None] | None = None,
) -> SamplerState:
    """Steps `start` ... `stop` - 1 of a batch; `conditions.low_res` as `begin_stage` gives it.

    `kept`: image and mask of an edit.
    """
    batch = state.x.shape[0]
    null = conditions.null
    if null is not None:
        null = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), null)
    denoise = make_stage_denoiser(
        stage,
        params,
        text=conditions.text,
        null=null,
        label=conditions.label,
        low_res=conditions.low_res,
        aug_level=jnp.broadcast_to(jnp.asarray(numbers.aug_level, jnp.float32), (batch,)),
        guidance=numbers.guidance,
        threshold=choices.threshold,
        thresholding=numbers.thresholding,
        learned_variance=choices.learned_variance,
    )
    sampler, noise = _make_sampler(state.x.shape[1:], choices, keys, kept, injected)
    return sample_loop(
        sampler,
        denoise,
        stage.schedule,
        numbers.grid,
        state,
        noise,
        numbers.options,
        start,
        stop,
    )


def sample_stage(
    stage: Stage,
    params: Params,
    keys: Keys,
    conditions: Conditions = Conditions(),
    settings: SamplingSettings = SamplingSettings(),
    *,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
    injected: InjectedNoise | None = None,
    callback: Callable[[int, SamplerState], None] | None = None,
    every: int | None = None,
) -> Images:
    """Images in [-1, 1] of one batch at one stage.

    Args:
        params: of the stage's network.
        keys: one a sample.
        size: (height, width) that a base stage draws, when not its resolution; a stage that
            enlarges follows the size of its input.
        edit: an image of the stage's resolution to start from.
        callback: called with the number of steps done and the state, every `every` steps (a tenth
            of all when None) and after the last.

    Raises:
        ValueError: the stage takes low-resolution images and there are none, or the reverse; a
            spacing that the stage's schedule cannot have; an edit of another resolution.
    """
    if (stage.low_resolution is None) != (conditions.low_res is None):
        raise ValueError(
            f"Stage {stage.name!r} needs images of {stage.low_resolution} pixels to enlarge."
            if conditions.low_res is None
            else f"Stage {stage.name!r} starts from noise and takes no low-resolution images."
        )
    grid, first, last = plan_steps(stage, settings, edit)
    numbers, kept = make_numbers(settings, grid), None
    choices = Choices(settings.sampler, settings.threshold, settings.learned_variance)
    shape = (*stage_size(stage, conditions.low_res, size), stage.channels)
    state, low_res = begin_stage(
        stage, shape, keys, conditions.low_res, numbers.aug_level, injected
    )
    conditions = conditions._replace(low_res=low_res)
    if edit is not None:
        kept = _kept(stage, edit, (len(keys), *shape))
        state = begin_edit(stage, edit.known, state, *kept, grid.times[first])
        choices = choices._replace(known=edit.known, jumps=edit.resamplings > 1)
    chunk = last - first if callback is None else every or ceil((last - first) / 10)
    for start in range(first, last, chunk):
        stop = min(start + chunk, last)
        state = advance_stage(
            stage,
            choices,
            params,
            keys,
            conditions,
            numbers,
            state,
            np.int32(start),
            np.int32(stop),
            injected,
            kept,
        )
        if callback is not None:
            callback(stop - first, jax.block_until_ready(state))
    return jnp.clip(state.x, -1.0, 1.0)


def stage_size(
    stage: Stage, low_res: Images | np.ndarray | None, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) of what a stage draws.

    Raises:
        ValueError: a size that the network cannot have, or another one than that of the input.
    """
    if low_res is not None:
        enlarged = [side * stage.resolution // stage.low_resolution for side in low_res.shape[1:3]]
        if size is not None and tuple(size) != tuple(enlarged):
            raise ValueError(
                f"Stage {stage.name!r} makes {enlarged[0]}x{enlarged[1]} of its input, not {size}."
            )
        size = tuple(enlarged)
    square = (stage.resolution, stage.resolution)
    size, step = square if size is None else tuple(size), models.reduction(stage.network)
    if getattr(stage.network, "draft", False) and size != square:
        raise ValueError(
            f"Stage {stage.name!r} draws {square[0]}x{square[1]} alone: its draft of the text has "
            f"that size, not {size[0]}x{size[1]}."
        )
    if min(size) < 1 or any(side % step for side in size):
        raise ValueError(
            f"Stage {stage.name!r} draws images whose sides are multiples of {step}, "
            f"not {size[0]}x{size[1]} (height x width)."
        )
    return size


def _kept(stage: Stage, edit: Edit, shape: tuple[int, ...]) -> tuple[Images, Mask | None]:
    """Image and mask of an edit, one row a sample."""
    if edit.image.shape != shape and edit.image.shape != (1, *shape[1:]):
        raise ValueError(
            f"Stage {stage.name!r} edits {shape[0]} images of shape {shape[1:]}, or one for all; "
            f"got {edit.image.shape}."
        )
    image = jnp.broadcast_to(jnp.asarray(edit.image, jnp.float32), shape)
    if edit.mask is None:
        return image, None
    return image, jnp.broadcast_to(jnp.asarray(edit.mask, jnp.float32), (*shape[:3], 1))
