"""Sampling the images of one stage, from noise or from an image that is edited.

Pure functions of parameters, noise and conditions, compiled for each stage by itself; numbers such
as guidance, times and augmentation level are traced, so that a new value never recompiles.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax import models
from imagen_jax.cascade.stage import Conditions, GuidedParams, Stage, make_stage_denoiser
from imagen_jax.devices.program_cache import kept_program
from imagen_jax.diffusion.augmentation import augment, upsample
from imagen_jax.diffusion.editing import (
    Edit,
    check_edit,
    edited_grid,
    edited_start,
    inpainting,
    jumping,
)
from imagen_jax.diffusion.flow_map import JUMPING, flow_map_sampler
from imagen_jax.diffusion.guided_steps import guided_sampler, guided_start
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, noise_from_keys, sample_loop
from imagen_jax.diffusion.sampling import Number, Sampling, traced
from imagen_jax.diffusion.steps import Estimate, Noise, Sampler, SamplerState
from imagen_jax.diffusion.time_grids import MAX_STEPS, TimeGrid, sampling_grid
from imagen_jax.storage.codec import require
from imagen_jax.typing import Images, Keys, Params

# Noise indices 0 ... MAX_STEPS belong to the sampler; a longer path leaves the next one out.
AUGMENTATION_INDEX = MAX_STEPS + 1
KNOWN_INDEX = MAX_STEPS + 2  # what a key is folded with for the kept part of an edited image
Shape = tuple[int, int, int]  # of one image: height, width, channels


class InjectedNoise(NamedTuple):
    """Noise given from outside, to compare runs with another implementation's.

    steps[0] is the initial noise, steps[i + 1] that of step i, jumps of resampling included.
    augmentation: for the low-resolution input, at the stage's resolution. known: as `steps`, for
    the kept part of an edited image.
    """

    steps: Float[Array, "steps_and_one batch height width channels"]
    augmentation: Images | None = None
    known: Float[Array, "steps_and_one batch height width channels"] | None = None


class Moment(NamedTuple):
    """What a step starts from: x_t, from time t down to s (up, where an edit jumps back), and
    `conditions` as the network has them, with `low_res` augmented at `aug_level`.
    """

    stage: Stage
    params: Params | GuidedParams
    x_t: Images
    t: np.float32
    s: np.float32
    conditions: Conditions
    aug_level: Number


def split_noise(
    shape: Shape, noise: Keys | InjectedNoise
) -> tuple[Noise, Callable[[], Images], Noise]:
    """The noise of the sampler, of the low-resolution input, and of an edit's kept part."""
    if isinstance(noise, InjectedNoise):
        return (lambda i: noise.steps[i]), (lambda: noise.augmentation), (lambda i: noise.known[i])

    def along(path_noise: Noise) -> Noise:
        return lambda index: path_noise(jnp.where(index > MAX_STEPS, index + 1, index))

    own = noise_from_keys(noise, shape)
    known = noise_from_keys(jax.vmap(jax.random.fold_in, (0, None))(noise, KNOWN_INDEX), shape)
    return along(own), partial(own, AUGMENTATION_INDEX), along(known)


def plan_steps(stage: Stage, sampling: Sampling, edit: Edit | None = None) -> TimeGrid:
    """The times of a stage, with the first step to run and the one to stop before.

    Raises:
        ValueError: a value of `sampling` that makes no sense; a spacing that the stage's schedule
            cannot have; an edit that makes no sense or leaves no step to run.
    """
    sampling = check_sampling(sampling)
    if stage.is_flow_map:
        check_flow_map(stage, sampling)
    grid = sampling_grid(stage.schedule, sampling)
    return grid if edit is None else edited_grid(grid, check_edit(edit))


def check_flow_map(stage: Stage, sampling: Sampling) -> None:
    """ValueError where a flow map cannot be sampled so."""
    name = f"Stage {stage.name!r} is distilled (network.target_time)"
    require(
        (
            sampling.sampler in JUMPING and not np.any(np.asarray(sampling.eta) != 0),
            f"{name}: its sampler must be {' or '.join(JUMPING)} with eta 0, not "
            f"{sampling.sampler} with eta {sampling.eta}.",
        ),
        (
            sampling.spacing == "time",
            f"{name}: its steps are even in time, and spacing must be 'time', not "
            f"{sampling.spacing!r}.",
        ),
        (
            not np.any(np.asarray(sampling.guidance) != 1),
            f"{name}: guidance is part of the network, and its weight must be 1, not "
            f"{sampling.guidance}.",
        ),
    )


def stage_sampler(stage: Stage, sampling: Sampling) -> Sampler:
    """The sampler of a stage, as its kind of guidance, and a flow map, want it."""
    sampler = guided_sampler(SAMPLERS[sampling.sampler], sampling)
    return flow_map_sampler(sampler) if stage.is_flow_map else sampler


@kept_program(static_argnums=(0, 1), results=(SamplerState, Estimate))
def start_stage(
    stage: Stage,
    shape: Shape,
    noise: Keys | InjectedNoise,
    low_res: Images | None,
    sampling: Sampling,
    edit: Edit | None = None,
    t: Number = 1.0,
) -> tuple[SamplerState, Float[Array, "batch high wide channels"] | None]:
    """The first state, noise or the edited image at time t, and the low-resolution input as the
    network wants it: upsampled and augmented.
    """
    sampler_noise, augmentation_noise, _ = split_noise(shape, noise)
    if low_res is not None:
        low_res = upsample(low_res, shape[:2], stage.upsampling)
        low_res = augment(low_res, sampling.aug_level, augmentation_noise(), stage.aug_schedule)
    eps = sampler_noise(0)
    if edit is None:
        x = stage.schedule.noise_scale * eps
    else:
        x = edited_start(edit, eps, stage.schedule, t)
    return guided_start(initial_state(x, sampling.sampler), sampling), low_res


@kept_program(static_argnums=0)
def run_steps(
    stage: Stage,
    params: Params | GuidedParams,
    noise: Keys | InjectedNoise,
    conditions: Conditions,
    sampling: Sampling,
    grid: TimeGrid,
    state: SamplerState,
    edit: Edit | None = None,
) -> SamplerState:
    """The steps of a grid for a batch.

    `conditions.low_res` as `start_stage` gives it, `conditions.null` and the edit's image and mask
    with one row a sample.
    """
    denoise = make_stage_denoiser(stage, params, conditions, sampling, state.x.shape)
    sampler_noise, _, known_noise = split_noise(state.x.shape[1:], noise)
    sampler = stage_sampler(stage, sampling)
    if edit is not None:
        sampler = jumping(sampler)
        if edit.mask is not None:
            sampler = inpainting(sampler, edit, known_noise)
    return sample_loop(sampler, denoise, stage.schedule, grid, state, sampler_noise, sampling)


def sample_steps(
    stage: Stage,
    params: Params | GuidedParams,
    noise: Keys | InjectedNoise,
    conditions: Conditions,
    sampling: Sampling,
    edit: Edit | None = None,
    size: tuple[int, int] | None = None,
    every: int | None = None,
) -> Iterator[tuple[int, SamplerState]]:
    """As `sample_stage`: the number of steps done and the state, after `every` steps and after the
    last; only after the last when None.
    """
    grid, begin, go_on = _plan(stage, params, noise, conditions, sampling, edit, size)
    state, low_res = start_stage(*begin)
    first, last = int(grid.start), int(grid.stop)
    for start in range(first, last, every or last - first):
        stop = min(start + (every or last), last)
        part = grid._replace(start=np.int32(start), stop=np.int32(stop))
        state = run_steps(*go_on(low_res, part, state))
        yield stop - first, state


def watched_steps(
    stage: Stage,
    params: Params | GuidedParams,
    noise: Keys | InjectedNoise,
    conditions: Conditions,
    sampling: Sampling,
    edit: Edit | None,
    size: tuple[int, int] | None,
    watch: Callable[[Moment], None],
) -> Iterator[tuple[int, SamplerState]]:
    """As `sample_steps` of single steps, by the same program; `watch` sees what each starts from.

    Of its conditions, `null` is left out.
    """
    grid, begin, go_on = _plan(stage, params, noise, conditions, sampling, edit, size)
    state, low_res = start_stage(*begin)
    shown, first = conditions._replace(low_res=low_res, null=None), int(grid.start)
    for index in range(first, int(grid.stop)):
        t, s = grid.times[index : index + 2]
        watch(Moment(stage, params, state.x, t, s, shown, sampling.aug_level))
        part = grid._replace(start=np.int32(index), stop=np.int32(index + 1))
        state = run_steps(*go_on(low_res, part, state))
        yield index + 1 - first, state


def prepare_steps(
    stage: Stage,
    params: Params | GuidedParams,
    noise: Keys,
    conditions: Conditions,
    sampling: Sampling,
    edit: Edit | None = None,
    size: tuple[int, int] | None = None,
) -> Shape:
    """Compiles the programs of `sample_steps` of such arguments, where programs are kept. Returns
    the shape of an image that they make.
    """
    grid, begin, go_on = _plan(stage, params, noise, conditions, sampling, edit, size)
    begun = start_stage.prepare(*begin)
    if begun is not None:
        state, low_res = begun
        run_steps.prepare(*go_on(low_res, grid, state))
    _, shape, *_ = begin
    return shape


def _plan(
    stage: Stage,
    params: Params | GuidedParams,
    noise: Keys | InjectedNoise,
    conditions: Conditions,
    sampling: Sampling,
    edit: Edit | None,
    size: tuple[int, int] | None,
) -> tuple[TimeGrid, tuple, Callable[..., tuple]]:
    """The times, what `start_stage` takes, and what `run_steps` takes of its results."""
    _check_inputs(stage, noise, conditions, edit)
    sampling = check_sampling(sampling)  # with the number of steps that a list has
    grid, sampling = plan_steps(stage, sampling, edit), traced(sampling)
    shape = (*stage_size(stage, conditions.low_res, size), stage.channels)
    if isinstance(params, GuidedParams):
        stage_size(params.guide_stage, conditions.low_res, size)
    batch = noise.steps.shape[1] if isinstance(noise, InjectedNoise) else len(noise)
    if edit is not None:
        _check_fits(stage, edit, (batch, *shape))
        edit = _rows(edit, batch)
    begin = stage, shape, noise, conditions.low_res, sampling, edit, grid.times[grid.start]
    conditions = conditions._replace(null=_rows(conditions.null, batch))

    def go_on(low_res: Any, part: TimeGrid, state: SamplerState) -> tuple:
        given = conditions._replace(low_res=low_res)
        return stage, params, noise, given, sampling, part, state, edit

    return grid, begin, go_on


def sample_stage(
    stage: Stage,
    params: Params | GuidedParams,
    noise: Keys | InjectedNoise,
    conditions: Conditions = Conditions(),
    sampling: Sampling = Sampling(),
    edit: Edit | None = None,
    size: tuple[int, int] | None = None,
) -> Images:
    """Images in [-1, 1] of one batch at one stage.

    Args:
        params: of the stage's network; for guidance of the kind "auto" with a weaker one's.
        noise: one key a sample, or the noise itself.
        edit: an image of the stage's resolution to start from, one for all or one a sample.
        size: (height, width) that a base stage samples, when not its resolution; a stage that
            upsamples follows the size of its input.

    Raises:
        ValueError: the stage takes low-resolution images and there are none, or the reverse; an
            unknown sampler or threshold, or a spacing that the stage's schedule cannot have; an
            edit of another resolution; injected noise that lacks a part.
    """
    steps = sample_steps(stage, params, noise, conditions, sampling, edit, size)
    return jnp.clip(next(steps)[1].x, -1.0, 1.0)


def stage_size(
    stage: Stage, low_res: Images | np.ndarray | None, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) of what a stage samples.

    Raises:
        ValueError: a size that the network cannot have.
    """
    if low_res is not None:
        size = tuple(side * stage.resolution // stage.low_resolution for side in low_res.shape[1:3])
    square, step = (stage.resolution, stage.resolution), models.reduction(stage.network)
    size = square if size is None else tuple(size)
    require(
        (
            size == square or not getattr(stage.network, "draft", False),
            f"Stage {stage.name!r} makes only squares of {square[0]}x{square[1]} pixels, for which "
            f"its network is built, not {size[0]}x{size[1]} (height x width).",
        ),
        (
            min(size) >= 1 and not any(side % step for side in size),
            f"Stage {stage.name!r} makes images whose sides are multiples of {step}, "
            f"not {size[0]}x{size[1]} (height x width).",
        ),
    )
    return size


def _check_inputs(
    stage: Stage, noise: Keys | InjectedNoise, conditions: Conditions, edit: Edit | None
) -> None:
    upsamples, given = stage.low_resolution is not None, conditions.low_res is not None
    injected = isinstance(noise, InjectedNoise)
    renoised = edit is not None and edit.mask is not None and edit.known == "noised"
    require(
        (
            given or not upsamples,
            f"Stage {stage.name!r} needs images of {stage.low_resolution} pixels to upsample.",
        ),
        (
            upsamples or not given,
            f"Stage {stage.name!r} starts from noise and takes no low-resolution images.",
        ),
        (
            not (injected and given) or noise.augmentation is not None,
            "Injected noise lacks `augmentation`, the noise of the low-resolution input.",
        ),
        (
            not (injected and renoised) or noise.known is not None,
            "Injected noise lacks `known`, the noise of the kept part of the image.",
        ),
    )


def _check_fits(stage: Stage, edit: Edit, shape: tuple[int, ...]) -> None:
    if edit.image.shape not in (shape, (1, *shape[1:])):
        raise ValueError(
            f"Stage {stage.name!r} edits {shape[0]} images of shape {shape[1:]}, or one for all; "
            f"got {edit.image.shape}."
        )


def _rows(tree: Any, batch: int) -> Any:
    """One row a sample, where there is one for all."""

    def spread(x):
        return x if len(x) == batch else jnp.broadcast_to(x, (batch, *x.shape[1:]))

    return jax.tree.map(spread, tree)
