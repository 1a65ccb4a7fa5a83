"""Models trained apart, put in a row: one cascade of their stages, which read the same text."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.pipeline.model_directory import ENCODER_MARKS, Parts
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.trees import flatten
from imagen_jax.text import encoder as text
from imagen_jax.typing import Params


def join_pipelines(pipelines: Sequence[Pipeline]) -> Pipeline:
    """The stages of all in a row, with the text encoder of the first that has one.

    Raises:
        ValueError: there are none, the sizes do not follow each other, or the text encoders differ.
    """
    if not pipelines:
        raise ValueError("load_model was given an empty list.")
    stages, sampling, readers, marks, reading = [], [], {}, {}, None
    for pipeline in pipelines:
        stages += pipeline.cascade.stages
        sampling += pipeline.cascade.sampling
        for stage in pipeline.cascade.stages:
            readers[stage.name] = _reader(pipeline, stage.name)
        if pipeline.cascade.encoder is None:
            continue
        if reading is None:
            reading = pipeline
            readers[TEXT_ENCODER] = _reader(pipeline, TEXT_ENCODER)
            marks[TEXT_ENCODER] = lambda pipeline=pipeline: encoder_marks(pipeline)
        else:
            check_same_encoder(reading, pipeline)
    encoder = None if reading is None else reading.cascade.encoder
    fingerprints = [pipeline.fingerprint for pipeline in pipelines]
    return Pipeline(
        Cascade(tuple(stages), tuple(sampling), encoder),
        Parts(readers, marks),
        name="+".join(pipeline.name for pipeline in pipelines),
        fingerprint=None if None in fingerprints else "+".join(fingerprints),
        notes={pipeline.name: pipeline.notes for pipeline in pipelines if pipeline.notes},
    )


def _reader(pipeline: Pipeline, part: str) -> Callable[[], Params]:
    """Reads a part past the memory of its own pipeline, so that it can be let go."""
    params = pipeline.params
    return params.reader(part) if isinstance(params, Parts) else lambda: params[part]


def marks_of(params: Params) -> dict[str, np.ndarray]:
    """The few parameters of a text encoder that tell it from others."""
    flat = flatten(params)
    return {path: np.asarray(flat[path]) for path in ENCODER_MARKS if path in flat}


def encoder_marks(pipeline: Pipeline) -> Mapping[str, np.ndarray] | None:
    """Those of a pipeline's text encoder; None where they cannot be read alone."""
    if isinstance(pipeline.params, Parts):
        return pipeline.params.marks(TEXT_ENCODER)
    return marks_of(pipeline.params[TEXT_ENCODER])


def check_same_encoder(first: Pipeline, other: Pipeline) -> None:
    """Raises ValueError if stages of the two were trained with different text encoders.

    All of their descriptions is compared; of their parameters only a few, up to the rounding of
    bfloat16.
    """
    pair = f"{first.name!r} and {other.name!r} have different text encoders, and stages in a row "
    pair += "read the same text: "
    sides = [text.to_dict(pipeline.cascade.encoder) for pipeline in (first, other)]
    configs = [side.pop("config") for side in sides]
    for config in configs:
        del config["dtype"], config["remat"]  # how it is run
    for ours, theirs in (configs, sides):
        for name in ours:
            if ours[name] != theirs[name]:
                raise ValueError(f"{pair}{name} is {ours[name]!r} and {theirs[name]!r}.")
    tokenizers = [pipeline.cascade.encoder.tokenizer for pipeline in (first, other)]
    if not text.same_tokenizer(*tokenizers):
        raise ValueError(f"{pair}their SentencePiece models differ.")
    marks = [encoder_marks(pipeline) for pipeline in (first, other)]
    if None in marks:
        return
    for path in sorted(set(marks[0]) & set(marks[1])):
        ours, theirs = (np.asarray(mark[path], np.float32) for mark in marks)
        if not np.allclose(ours, theirs, rtol=2**-7, atol=1e-6):
            raise ValueError(f"{pair}their parameters {path} differ.")
