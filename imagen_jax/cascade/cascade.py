"""The cascade (arXiv 2205.11487, section 2.4): stages in a row, and drawing images from them.

Every stage is sampled by itself (`imagen_jax.cascade.sample`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.cascade.sample import Conditions, InjectedNoise, plan_steps, sample_stage
from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.samplers import SamplerState
from imagen_jax.diffusion.sampling import SamplingSettings
from imagen_jax.models import t5
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.typing import Keys, Params

TEXT_ENCODER = "text_encoder"  # the name of the encoder's parameters beside the stages'


@dataclass(frozen=True)
class Cascade:
    """A text encoder and stages, each with its sampling settings.

    encoder: None where no stage reads text, or where a stage was loaded without the encoder that it
    reads, to be put in a row with others.
    """

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
            if after.low_resolution is None:
                raise ValueError(f"Stage {after.name!r} starts from noise; put it first.")
            if after.low_resolution != before.resolution:
                raise ValueError(
                    f"Stage {after.name!r} takes images of {after.low_resolution} pixels, but "
                    f"stage {before.name!r} before it makes {before.resolution}."
                )
        for stage in self.stages if self.encoder is not None else ():
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
    if name is None:
        raise ValueError(f"The model has the stages {', '.join(names)}: `stage` must say which.")
    if name not in names:
        raise ValueError(f"There is no stage {name!r} in the model, only {', '.join(names)}.")
    return names.index(name)


@dataclass(frozen=True)
class Progress:
    """What a callback sees: `step` of `steps` are done of one batch at one stage.

    first, count: which of all samples the batch holds. `x0` are the images that the model has in
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


def sample_cascade(
    cascade: Cascade,
    params: Mapping,
    keys: Keys,
    conditions: Conditions = Conditions(),
    *,
    settings: Sequence[SamplingSettings] | None = None,
    edits: Sequence[Edit | None] | None = None,
    injected: Sequence[InjectedNoise | None] | None = None,
    size: tuple[int, int] | None = None,
    first: int = 0,
    last: int | None = None,
    batch_size: int | None = None,
    callback: Callback | None = None,
    every: int | None = None,
    release: Callable[[str], None] | None = None,
    place: Callable[[Any], Any] | None = None,
) -> np.ndarray:
    """Images in [-1, 1] from stages `first` ... `last`: float32 [samples, height, width, 3].

    Stage i of a sample draws its noise from `fold_in(key, i)`. All samples pass a stage before the
    next one starts, so that only one stage's parameters are needed at a time.

    Args:
        params: of each stage by its name; may be a mapping that loads on access.
        keys: one a sample (`sample_keys`).
        conditions: of all samples; `low_res` for a cascade entered at a super-resolution stage.
        settings: one a stage of the cascade; its own when None.
        edits: one a stage of the cascade, of one image or one a sample; None where it draws.
        injected: one a stage of the cascade, instead of the noise that the keys give.
        size: (height, width) that the base stage draws, when not its resolution.
        batch_size: samples at a time. The last batch is filled up, so that any number of samples
            runs the same compiled program. All at once when None.
        release: called with a stage's name when its parameters are no longer needed.
        place: puts a batch's arrays (one row a sample) where they shall be; the default device when
            None.
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
        edit = None if edits is None else edits[position]
        noise, done = None if injected is None else injected[position], []
        _, begin, end = plan_steps(stage, settings[position], edit)
        for start in range(0, count, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            valid = min(batch_size, count - start)

            def report(step: int, state: SamplerState) -> None:
                callback(Progress(stage, step, end - begin, start, valid, state))  # noqa: B023

            batch_keys, batch_conditions = stage_keys[rows], take_rows(wanted, rows)
            if place is not None:
                null = batch_conditions.null  # may be one row for all
                placed = place((batch_keys, batch_conditions._replace(null=None)))
                batch_keys, batch_conditions = placed[0], placed[1]._replace(null=null)
            batch = sample_stage(
                stage,
                stage_params,
                batch_keys,
                batch_conditions,
                settings[position],
                size=size if position == 0 else None,
                edit=None if edit is None else _take_edit(edit, rows),
                injected=None if noise is None else _take_noise(noise, rows),
                callback=report if callback else None,
                every=every,
            )
            done.append(np.asarray(batch)[:valid])
        images = np.concatenate(done)
        if release is not None:
            del stage_params
            release(stage.name)
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
    """The rows of a batch; an image or a mask that is the same for all stays as it is."""
    image, mask = (
        x if x is None or x.shape[0] == 1 else np.asarray(x)[rows] for x in (edit.image, edit.mask)
    )
    return replace(edit, image=image, mask=mask)


def _take_noise(noise: InjectedNoise, rows: np.ndarray) -> InjectedNoise:
    """The rows of a batch; the steps come first in all but the augmentation's noise."""
    steps, augmentation, known = noise
    return InjectedNoise(
        np.asarray(steps)[:, rows],
        None if augmentation is None else np.asarray(augmentation)[rows],
        None if known is None else np.asarray(known)[:, rows],
    )


def part_shapes(cascade: Cascade, part: str) -> Params:
    """The tree of shapes that the parameters of a stage, or of the text encoder, must have."""
    key = jax.random.key(0)
    if part == TEXT_ENCODER:
        return jax.eval_shape(lambda key: t5.init(cascade.encoder.config, key), key)
    stage = next(stage for stage in cascade.stages if stage.name == part)
    return jax.eval_shape(lambda key: init_params(stage, key), key)
