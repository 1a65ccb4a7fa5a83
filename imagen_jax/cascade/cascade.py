"""The cascade (arXiv 2205.11487, section 2.4): stages in a row, each with its sampling.

A stage is sampled by `imagen_jax.cascade.sample`, and all of them one after the other by
`imagen_jax.pipeline.generation.sample_cascade`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.diffusion.overrides import sampling_from_dict
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models import t5
from imagen_jax.text import encoder as text_room
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.typing import Keys, Params

TEXT_ENCODER = "text_encoder"  # the name of the encoder's parameters beside the stages'


@dataclass(frozen=True)
class Cascade:
    """A text encoder and stages, each with its sampling.

    encoder: None where no stage reads text, or where a stage was loaded without the encoder that it
    reads, to be put in a row with others.
    """

    stages: tuple[Stage, ...]
    sampling: tuple[Sampling, ...]
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


def to_dict(cascade: Cascade) -> dict[str, Any]:
    """The cascade as JSON values."""
    stages = [
        {"stage": stage.to_dict(), "sampling": asdict(sampling)}
        for stage, sampling in zip(cascade.stages, cascade.sampling, strict=True)
    ]
    encoder = None if cascade.encoder is None else text_room.to_dict(cascade.encoder)
    return {"stages": stages, TEXT_ENCODER: encoder}


def from_dict(values: Mapping[str, Any], directory: str) -> Cascade:
    """The inverse of `to_dict`; the tokenizer's file lies in `directory`."""
    stages = tuple(Stage.from_dict(entry["stage"]) for entry in values["stages"])
    sampling = tuple(sampling_from_dict(entry["sampling"]) for entry in values["stages"])
    encoder = values.get(TEXT_ENCODER)
    if encoder is not None:
        encoder = text_room.from_dict(encoder, directory)
    return Cascade(stages, sampling, encoder)


def sample_keys(seed: int, indices: Sequence[int] | np.ndarray) -> Keys:
    """One key a sample, from the seed and the sample's global index, whatever batch it is in."""
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.asarray(indices, jnp.uint32))


def part_shapes(cascade: Cascade, part: str) -> Params:
    """The tree of shapes that the parameters of a stage, or of the text encoder, must have."""
    key = jax.random.key(0)
    if part == TEXT_ENCODER:
        return jax.eval_shape(lambda key: t5.init(cascade.encoder.config, key), key)
    stage = next(stage for stage in cascade.stages if stage.name == part)
    return jax.eval_shape(lambda key: init_params(stage, key), key)
