"""A cascade as the JSON values that model.json and a run's checkpoints keep."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import KINDS, Stage
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.storage import codec
from imagen_jax.text import encoder as text


@dataclass(frozen=True)
class StageEntry:
    """A stage, and how it is sampled."""

    stage: Stage
    sampling: Sampling


@dataclass(frozen=True)
class Description:
    """The keys of the file; `text_encoder` as `imagen_jax.text.encoder` reads it; `class_names`
    may be missing.
    """

    stages: tuple[StageEntry, ...]
    text_encoder: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] = ()


def to_dict(cascade: Cascade) -> dict[str, Any]:
    """The cascade as JSON values."""
    entries = map(StageEntry, cascade.stages, cascade.sampling)
    encoder = None if cascade.encoder is None else text.to_dict(cascade.encoder)
    return codec.to_dict(Description(tuple(entries), encoder, cascade.class_names), KINDS)


def from_dict(values: Mapping[str, Any], directory: str | os.PathLike) -> Cascade:
    """The inverse of `to_dict`; other keys are left alone. The tokenizer's file is in `directory`.

    Raises:
        ValueError: a key is unknown or missing, a value wrong, or the stages do not fit each other.
    """
    names = [field.name for field in fields(Description)]
    own = {key: value for key, value in values.items() if key in names}
    found = codec.from_dict(Description, own, "", KINDS)
    encoder = found.text_encoder
    return Cascade(
        tuple(entry.stage for entry in found.stages),
        tuple(entry.sampling for entry in found.stages),
        None if encoder is None else text.from_dict(encoder, directory),
        found.class_names,
    )
