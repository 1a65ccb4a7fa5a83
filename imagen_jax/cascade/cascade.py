"""The cascade (arXiv 2205.11487, section 2.4): stages in a row, each with its sampling.

A stage is sampled by `imagen_jax.cascade.sample`, and all of them one after the other by
`imagen_jax.pipeline.generation.sample_cascade`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.devices.program_cache import remembered
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models import t5
from imagen_jax.storage.codec import require
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.typing import Keys, Params

Index = int | Integer[Array, ""]
TEXT_ENCODER = "text_encoder"  # the name of the encoder's parameters beside the stages'


@dataclass(frozen=True)
class Cascade:
    """A text encoder and stages, each with its sampling.

    encoder: None where no stage reads text, or where a stage was loaded without the encoder that it
    reads, to be chained with others. class_names: of the labels, by number; empty where they are
    not known.
    """

    stages: tuple[Stage, ...]
    sampling: tuple[Sampling, ...]
    encoder: TextEncoder | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        names, count = [stage.name for stage in self.stages], len(self.sampling)
        require(
            (names, "A cascade needs at least one stage."),
            (len(names) == count, f"{len(names)} stages but {count} sampling settings."),
            (
                len({*names, TEXT_ENCODER}) == len(names) + 1,
                f"Stage names must differ, also from {TEXT_ENCODER!r}: {names}.",
            ),
        )
        named, unique = len(self.class_names), len(set(self.class_names))
        counts = {s.network.num_classes for s in self.stages if s.conditioning == "label"}
        if named and (counts != {named} or unique != named):
            raise ValueError(
                f"There are {named} class names, {unique} different ones, for "
                f"{' and '.join(map(str, sorted(counts))) or 'no'} classes."
            )
        for before, after in pairwise(self.stages):
            require(
                (
                    after.low_resolution is not None,
                    f"Stage {after.name!r} starts from noise; put it first.",
                ),
                (
                    after.low_resolution == before.resolution,
                    f"Stage {after.name!r} takes images of {after.low_resolution} pixels, but "
                    f"stage {before.name!r} before it makes {before.resolution}.",
                ),
            )
        object.__setattr__(self, "sampling", tuple(map(check_sampling, self.sampling)))
        width = None if self.encoder is None else self.encoder.config.d_model
        for stage in self.stages:
            if stage.conditioning == "text" and width not in (None, stage.text_width):
                raise ValueError(
                    f"Stage {stage.name!r} reads text of width {stage.text_width}, but the encoder "
                    f"gives {width}."
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


def sample_keys(seed: Index, indices: Sequence[int] | np.ndarray | Array) -> Keys:
    """One key a sample, from the seed and the sample's global index, whatever batch it is in."""
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.asarray(indices, jnp.uint32))


@jax.jit
def stage_keys(seed: Index, indices: Integer[Array, " batch"], position: Index) -> Keys:
    """The keys of samples at the stage of this position: `fold_in(key, position)` of each."""
    return jax.vmap(jax.random.fold_in, (0, None))(sample_keys(seed, indices), position)


def part_shapes(cascade: Cascade, part: str) -> Params:
    """The tree of shapes that the parameters of a stage, or of the text encoder, must have.

    They are what initialization gives. To trace that takes a second, so that they are kept.
    """
    if part == TEXT_ENCODER:
        described, init = cascade.encoder.config, functools.partial(t5.init, cascade.encoder.config)
    else:
        described = next(stage for stage in cascade.stages if stage.name == part)
        init = functools.partial(init_params, described)

    def traced() -> dict[str, tuple[tuple[int, ...], str]]:
        flat = flatten(jax.eval_shape(lambda: init(jax.random.key(0))))
        return {path: (leaf.shape, str(leaf.dtype)) for path, leaf in flat.items()}

    found = remembered("shapes", described, traced)
    return unflatten({path: jax.ShapeDtypeStruct(*leaf) for path, leaf in found.items()})
