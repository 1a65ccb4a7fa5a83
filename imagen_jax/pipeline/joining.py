"""Several models together: separately trained stages, chained, and weaker ones that guide them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.cascade.stage import check_guide
from imagen_jax.pipeline.encoder_files import text_fingerprint
from imagen_jax.pipeline.guides import Guide
from imagen_jax.pipeline.lazy_params import LazyParams, as_lazy
from imagen_jax.pipeline.pipeline import Pipeline


def join_pipelines(pipelines: Sequence[Pipeline]) -> Pipeline:
    """The stages of all, one after another, with the text encoder of the first that has one.

    Of a later model those stages are taken whose images are larger than what the earlier ones make:
    a student of the base stage goes before its teacher, whose super-resolution it keeps.

    Raises:
        ValueError: there are none, the sizes do not follow each other, or the text encoders differ.
    """
    if not pipelines:
        raise ValueError("load_model was given an empty list.")
    tables = {pipeline.cascade.class_names for pipeline in pipelines} - {()}
    if len(tables) > 1:
        raise ValueError("The models were trained on other classes: their names differ.")
    readers, encoder, probe = {}, None, None
    stages, sampling = [], []
    for pipeline in pipelines:
        params, reached = as_lazy(pipeline.params), stages[-1].resolution if stages else 0
        pairs = zip(pipeline.cascade.stages, pipeline.cascade.sampling, strict=True)
        added = [(stage, entry) for stage, entry in pairs if stage.resolution > reached]
        if not added:
            raise ValueError(
                f"{pipeline.name!r} adds nothing to the models before it, which make images of "
                f"{reached} pixels: it has no larger stage."
            )
        readers |= {stage.name: params.readers[stage.name] for stage, _ in added}
        stages += [stage for stage, _ in added]
        sampling += [entry for _, entry in added]
    with_text = [pipeline for pipeline in pipelines if pipeline.cascade.encoder is not None]
    for other in with_text[1:]:
        check_same_encoder(with_text[0], other)
    if with_text:
        params, encoder = as_lazy(with_text[0].params), with_text[0].cascade.encoder
        readers[TEXT_ENCODER], probe = params.readers[TEXT_ENCODER], params.probe
    fingerprints = [pipeline.fingerprint for pipeline in pipelines]
    return Pipeline(
        Cascade(
            tuple(stages),
            tuple(sampling),
            encoder,
            next(iter(tables), ()),
        ),
        LazyParams(readers, probe),
        name="+".join(pipeline.name for pipeline in pipelines),
        fingerprint=None if None in fingerprints else "+".join(fingerprints),
        notes={pipeline.name: pipeline.notes for pipeline in pipelines if pipeline.notes},
    )


def check_same_encoder(first: Pipeline, other: Pipeline) -> None:
    """Raises ValueError if stages of the two were trained with different text encoders.

    Their descriptions are compared whole; of their parameters only a few, up to the rounding of
    bfloat16.
    """
    pair = (
        f"{first.name!r} and {other.name!r} have different text encoders, and must read the same "
        "text: "
    )
    described = [text_fingerprint(pipeline.cascade.encoder, None) for pipeline in (first, other)]
    ours, theirs = (values.pop("encoder") | values for values in described)
    for name, value in ours.items():
        if value != theirs[name]:
            raise ValueError(f"{pair}{name} is {value!r} and {theirs[name]!r}.")
    ours, theirs = (as_lazy(pipeline.params).probe() or {} for pipeline in (first, other))
    for path in sorted(set(ours) & set(theirs)):
        values = (np.asarray(probe[path], np.float32) for probe in (ours, theirs))
        if not np.allclose(*values, rtol=2**-7, atol=1e-6):
            raise ValueError(f"{pair}their parameters {path} differ.")


def add_guides(pipeline: Pipeline, others: Sequence[Pipeline | None]) -> None:
    """Has the stages of a pipeline guided by weaker models, one a stage, None where there is none.

    A stage is guided by the other model's stage of its resolution; its guidance becomes "auto".

    Raises:
        ValueError: more guides than stages; the other model has no such stage, reads other text or
            other classes, or does not fit (`check_guide`).
    """
    stages, sampling = pipeline.cascade.stages, list(pipeline.cascade.sampling)
    if not 1 <= len(others) <= len(stages):
        raise ValueError(f"guide has {len(others)} entries; the model has {len(stages)} stages.")
    for i, other in enumerate(others):
        if other is None:
            continue
        size = stages[i].resolution, stages[i].low_resolution
        found = [s for s in other.cascade.stages if (s.resolution, s.low_resolution) == size]
        if not found:
            sizes = ", ".join(map(str, other.sizes))
            raise ValueError(
                f"{other.name!r} cannot guide stage {stages[i].name!r}, of {size[0]} pixels"
                f"{f' from {size[1]}' if size[1] else ''}: it has no such stage (sizes: {sizes})."
            )
        check_guide(stages[i], found[0])
        if pipeline.cascade.encoder is not None and other.cascade.encoder is not None:
            check_same_encoder(pipeline, other)
        if len({p.class_names for p in (pipeline, other) if p.class_names}) > 1:
            raise ValueError(f"{other.name!r} was trained on other classes: their names differ.")
        about = {"model": other.name, "fingerprint": other.fingerprint, **other.notes}
        kept = ("model", "stage", "fingerprint", "step")
        about = {key: (about | {"stage": found[0].name}).get(key) for key in kept}
        about = {key: value for key, value in about.items() if value is not None}
        pipeline.guides[stages[i].name] = Guide(found[0], as_lazy(other.params), about)
        sampling[i] = replace(sampling[i], guidance_kind="auto")
    pipeline.cascade = replace(pipeline.cascade, sampling=tuple(sampling))
