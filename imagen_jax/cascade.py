"""The cascade (arXiv 2205.11487, section 2.4): stages in a row, and drawing pictures from them.

Pure functions of parameters, keys and conditions. Every stage is compiled by itself; numbers such
as guidance, steps and augmentation level are traced, so that a new value never recompiles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil, inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_jax import text as text_room
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
from imagen_jax.models import t5
from imagen_jax.sampling_settings import SamplingSettings, sampling_grid, settings_from_dict
from imagen_jax.stage import Stage, init_params, make_stage_denoiser
from imagen_jax.text import TextEncoder
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings

TEXT_ENCODER = "text_encoder"  # the name of the encoder's parameters beside the stages'
AUGMENTATION_INDEX = MAX_STEPS + 1  # noise indices 0 ... MAX_STEPS belong to the sampler
KNOWN_INDEX = MAX_STEPS + 2  # what a key is folded with for the kept part of an edited picture


@dataclass(frozen=True)
class Cascade:
    """A text encoder (None: no stage reads text) and stages, each with its sampling settings."""

    stages: tuple[Stage, ...]
    sampling: tuple[SamplingSettings, ...]
    encoder: TextEncoder | None = None

    def __post_init__(self):
        if not self.stages:
            raise ValueError("A cascade needs at least one stage.")
        if len(self.stages) != len(self.sampling):
            raise ValueError(
                f"{len(self.stages)} stages but {len(self.sampling)} sampling settings."
            )
        names = [stage.name for stage in self.stages]
        if len({*names, TEXT_ENCODER}) != len(names) + 1:
            raise ValueError(f"Stage names must differ, also from {TEXT_ENCODER!r}: {names}.")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.low_resolution != before.resolution:
                raise ValueError(
                    f"Stage {after.name!r} takes pictures of {after.low_resolution} pixels, but "
                    f"stage {before.name!r} before it makes {before.resolution}."
                )
        if self.encoder is None and any(stage.conditioning == "text" for stage in self.stages):
            raise ValueError("A stage is conditioned on text, but the cascade has no text encoder.")
        for stage in self.stages:
            if stage.conditioning == "text" and stage.text_width != self.encoder.config.d_model:
                raise ValueError(
                    f"Stage {stage.name!r} reads text of width {stage.text_width}, but the encoder "
                    f"gives {self.encoder.config.d_model}."
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The resolutions at which sampling may stop."""
        return tuple(stage.resolution for stage in self.stages)


def stage_index(cascade: Cascade, name: str | None) -> int:
    """The place of the stage of this name; of the only one, whatever its name.

    Raises:
        ValueError: there are several stages, and none has this name.
    """
    names = [stage.name for stage in cascade.stages]
    if len(names) == 1:
        return 0
    if name not in names:
        raise ValueError(f"There is no stage {name!r} in the model, only {', '.join(names)}.")
    return names.index(name)


def to_dict(cascade: Cascade) -> dict[str, Any]:
    """The cascade as JSON values."""
    stages = [
        {"stage": stage.to_dict(), "sampling": asdict(settings)}
        for stage, settings in zip(cascade.stages, cascade.sampling, strict=True)
    ]
    encoder = None if cascade.encoder is None else text_room.to_dict(cascade.encoder)
    return {"stages": stages, TEXT_ENCODER: encoder}


def from_dict(values: Mapping[str, Any], directory: str) -> Cascade:
    """The inverse of `to_dict`; the tokenizer's file lies in `directory`."""
    stages = tuple(Stage.from_dict(entry["stage"]) for entry in values["stages"])
    sampling = tuple(settings_from_dict(entry["sampling"]) for entry in values["stages"])
    encoder = values.get(TEXT_ENCODER)
    if encoder is not None:
        encoder = text_room.from_dict(encoder, directory)
    return Cascade(stages, sampling, encoder)


class Conditions(NamedTuple):
    """What a batch is made of; each field has one row a sample, or is None.

    null: what guidance leads away from, one row for all or one a sample: the null text or the
    negative prompt. low_res: pictures in [-1, 1] of the stage's low resolution.
    """

    text: TextEmbeddings | None = None
    null: TextEmbeddings | None = None
    label: Int[Array, " batch"] | None = None
    low_res: Images | None = None


class InjectedNoise(NamedTuple):
    """Noise given from outside, to compare runs with another implementation's.

    steps[0] is the initial noise, steps[i + 1] that of step i, jumps of resampling included.
    augmentation: for the low-resolution input, at the stage's resolution. known: as `steps`, for
    the kept part of an edited picture.
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


@dataclass(frozen=True)
class Progress:
    """What a callback sees: `step` of `steps` are done of one batch at one stage.

    first, count: which of all samples the batch holds. `x0` are the pictures that the model has in
    mind by now, floats in about [-1, 1].
    """

    stage: Stage
    step: int
    steps: int
    first: int
    count: int
    state: SamplerState

    @property
    def x0(self) -> np.ndarray:
        return np.asarray(self.state.x0)[: self.count]


Callback = Callable[[Progress], None]


def sample_keys(seed: int, indices: Sequence[int] | np.ndarray) -> Keys:
    """One key a sample, from the seed and the sample's global index, whatever batch it is in."""
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.asarray(indices, jnp.uint32))


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


def _numbers(settings: SamplingSettings, grid: TimeGrid) -> Numbers:
    start, stop = settings.guidance_interval
    guidance = Guidance(settings.guidance, start, stop, settings.guidance_rescale)
    thresholding = Thresholding(settings.percentile, inf if settings.cap is None else settings.cap)
    options = SamplerOptions(settings.gamma, settings.eta)
    floats = (guidance, thresholding, options, settings.aug_level)
    return Numbers(grid, *jax.tree.map(np.float32, floats))


def _noise(stage: Stage, keys: Keys, injected: InjectedNoise | None) -> Noise:
    shape = (stage.resolution, stage.resolution, stage.channels)
    if injected is None:
        return noise_from_keys(keys, shape)
    return lambda index: injected.steps[index].astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def begin_stage(
    stage: Stage,
    keys: Keys,
    low_res: Images | None,
    aug_level: Float[Array, ""] | float,
    injected: InjectedNoise | None = None,
) -> tuple[SamplerState, Float[Array, "batch high wide channels"] | None]:
    """Initial noise, and the low-resolution input enlarged and noised as the network wants it."""
    noise = _noise(stage, keys, injected)
    if low_res is not None:
        low_res = upsample(low_res, stage.resolution, stage.upsampling)
        given = injected is not None and injected.augmentation is not None
        eps = injected.augmentation if given else noise(AUGMENTATION_INDEX)
        low_res = augment(low_res, aug_level, eps, stage.aug_schedule)
    return initial_state(noise(0)), low_res


@partial(jax.jit, static_argnums=(0, 1))
def begin_edit(
    stage: Stage, known: str, noise: SamplerState, image: Images, mask: Mask | None, t: float
) -> SamplerState:
    """The picture at time t, with the noise that `begin_stage` gave."""
    return edited_start(image, noise.x, stage.schedule, t, mask, known)


def _make_sampler(
    stage: Stage,
    choices: Choices,
    keys: Keys,
    kept: tuple[Images, Mask | None] | None,
    injected: InjectedNoise | None,
) -> tuple[Sampler, Noise]:
    """The sampler of these choices, wrapped for an edit, and its noise."""
    sampler, noise = SAMPLERS[choices.sampler], _noise(stage, keys, injected)
    if choices.jumps:
        drawn = noise
        if injected is None:  # long paths skip the index of the augmentation
            noise = lambda index: drawn(jnp.where(index > MAX_STEPS, index + 1, index))  # noqa: E731
        sampler = jumping(sampler)
    if kept is not None and kept[1] is not None:
        if injected is None:
            fold = jax.vmap(jax.random.fold_in, (0, None))
            known_noise = _noise(stage, fold(keys, KNOWN_INDEX), None)
        else:
            known_noise = lambda index: injected.known[index].astype(jnp.float32)  # noqa: E731
        sampler = inpainting(sampler, *kept, choices.known, known_noise)
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
    sampler, noise = _make_sampler(stage, choices, keys, kept, injected)
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
    edit: Edit | None = None,
    injected: InjectedNoise | None = None,
    callback: Callable[[int, SamplerState], None] | None = None,
    every: int | None = None,
) -> Images:
    """Pictures in [-1, 1] of one batch at one stage.

    Args:
        params: of the stage's network.
        keys: one a sample.
        edit: a picture of the stage's resolution to start from.
        callback: called with the number of steps done and the state, every `every` steps (a tenth
            of all when None) and after the last.

    Raises:
        ValueError: the stage takes low-resolution pictures and there are none, or the reverse; a
            spacing that the stage's schedule cannot have; an edit of another resolution.
    """
    if (stage.low_resolution is None) != (conditions.low_res is None):
        raise ValueError(
            f"Stage {stage.name!r} needs pictures of {stage.low_resolution} pixels to enlarge."
            if conditions.low_res is None
            else f"Stage {stage.name!r} starts from noise and takes no low-resolution pictures."
        )
    grid, first, last = plan_steps(stage, settings, edit)
    numbers, kept = _numbers(settings, grid), None
    choices = Choices(settings.sampler, settings.threshold, settings.learned_variance)
    state, low_res = begin_stage(stage, keys, conditions.low_res, numbers.aug_level, injected)
    conditions = conditions._replace(low_res=low_res)
    if edit is not None:
        kept = _kept(stage, edit, len(keys))
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


def _kept(stage: Stage, edit: Edit, batch: int) -> tuple[Images, Mask | None]:
    """Image and mask of an edit, one row a sample."""
    shape = (batch, stage.resolution, stage.resolution, stage.channels)
    if edit.image.shape != shape and edit.image.shape != (1, *shape[1:]):
        raise ValueError(
            f"Stage {stage.name!r} edits {batch} pictures of shape {shape[1:]}, or one for all; "
            f"got {edit.image.shape}."
        )
    image = jnp.broadcast_to(jnp.asarray(edit.image, jnp.float32), shape)
    if edit.mask is None:
        return image, None
    return image, jnp.broadcast_to(jnp.asarray(edit.mask, jnp.float32), (*shape[:3], 1))


def sample_cascade(
    cascade: Cascade,
    params: Mapping,
    keys: Keys,
    conditions: Conditions = Conditions(),
    *,
    settings: Sequence[SamplingSettings] | None = None,
    edits: Sequence[Edit | None] | None = None,
    first: int = 0,
    last: int | None = None,
    batch_size: int | None = None,
    callback: Callback | None = None,
    every: int | None = None,
) -> np.ndarray:
    """Pictures in [-1, 1] from stages `first` ... `last`: float32 [samples, height, width, 3].

    Stage i of a sample draws its noise from `fold_in(key, i)`. All samples pass a stage before the
    next one starts, so that only one stage's parameters are needed at a time.

    Args:
        params: of each stage by its name; may be a mapping that loads on access.
        keys: one a sample (`sample_keys`).
        conditions: of all samples; `low_res` for a cascade entered at a super-resolution stage.
        settings: one a stage of the cascade; its own when None.
        edits: one a stage of the cascade, of one picture or one a sample; None where it draws.
        batch_size: samples at a time. The last batch is filled up, so that any number of samples
            runs the same compiled program. All at once when None.
    """
    settings = cascade.sampling if settings is None else settings
    last = len(cascade.stages) - 1 if last is None else last
    count = len(keys)
    batch_size = batch_size or count
    images = conditions.low_res
    for position in range(first, last + 1):
        stage = cascade.stages[position]
        stage_params = params[stage.name]
        stage_keys = jax.vmap(lambda key: jax.random.fold_in(key, position))(keys)  # noqa: B023
        wanted = select_conditions(stage, conditions)._replace(low_res=images)
        edit, done = None if edits is None else edits[position], []
        _, begin, end = plan_steps(stage, settings[position], edit)
        for start in range(0, count, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            valid = min(batch_size, count - start)

            def report(step: int, state: SamplerState) -> None:
                callback(Progress(stage, step, end - begin, start, valid, state))  # noqa: B023

            batch = sample_stage(
                stage,
                stage_params,
                stage_keys[rows],
                take_rows(wanted, rows),
                settings[position],
                edit=None if edit is None else _take_edit(edit, rows),
                callback=report if callback else None,
                every=every,
            )
            done.append(np.asarray(batch)[:valid])
        images = np.concatenate(done)
    return images


def select_conditions(stage: Stage, conditions: Conditions) -> Conditions:
    """What this stage reads of `conditions`: text and label only if it is conditioned on them."""
    text = conditions if stage.conditioning == "text" else Conditions()
    label = conditions.label if stage.conditioning == "label" else None
    return Conditions(text.text, text.null, label, conditions.low_res)


def take_rows(conditions: Conditions, rows: np.ndarray) -> Conditions:
    """The rows of a batch; a null that is the same for all stays as it is."""
    null = conditions.null
    taken = jax.tree.map(lambda x: np.asarray(x)[rows], conditions._replace(null=None))
    if null is not None and null.values.shape[0] > 1:
        null = jax.tree.map(lambda x: np.asarray(x)[rows], null)
    return taken._replace(null=null)


def _take_edit(edit: Edit, rows: np.ndarray) -> Edit:
    """The rows of a batch; a picture or a mask that is the same for all stays as it is."""
    image, mask = (
        x if x is None or x.shape[0] == 1 else np.asarray(x)[rows] for x in (edit.image, edit.mask)
    )
    return replace(edit, image=image, mask=mask)


def part_shapes(cascade: Cascade, part: str) -> Params:
    """The tree of shapes that the parameters of a stage, or of the text encoder, must have."""
    key = jax.random.key(0)
    if part == TEXT_ENCODER:
        return jax.eval_shape(lambda key: t5.init(cascade.encoder.config, key), key)
    stage = next(stage for stage in cascade.stages if stage.name == part)
    return jax.eval_shape(lambda key: init_params(stage, key), key)
