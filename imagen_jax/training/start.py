"""How a run starts: the config is read and checked, data and workdir are opened, weights read."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from imagen_jax.cascade.cascade import stage_index
from imagen_jax.cascade.stage import Stage
from imagen_jax.data.embeddings import check_fingerprint
from imagen_jax.devices.hosts import check_shared, place, say_on_first_host
from imagen_jax.devices.sharding import check_batch, make_mesh, state_shardings
from imagen_jax.pipeline.encoder_files import (
    check_config,
    is_encoder,
    is_kept,
    keep,
    read_kept,
    text_fingerprint,
    with_encoder,
)
from imagen_jax.pipeline.loading import (
    PRETRAINED,
    load_encoder,
    load_model,
    sharding_over,
    shipped_models,
)
from imagen_jax.pipeline.model_directory import read_model
from imagen_jax.storage.checkpoint import Checkpoints, check_weights
from imagen_jax.storage.codec import Section, as_dict
from imagen_jax.storage.folders import make_folder
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import build, inherit
from imagen_jax.training.batches import make_batches, make_source
from imagen_jax.training.config import apply_overrides, load_config
from imagen_jax.training.loop import Run
from imagen_jax.training.metrics import Curve
from imagen_jax.training.run_config import STREAM, RunConfig, read_config
from imagen_jax.training.samples import make_sample_fn
from imagen_jax.training.scores import make_score_fn
from imagen_jax.training.state import NETWORK, TEXT_ENCODER, Frozen
from imagen_jax.typing import Params


class Plan(NamedTuple):
    """A run whose config is read and checked, before anything is opened.

    raw: the config as written. train_step, init, frozen: of `build.make_training`.
    """

    raw: Section
    config: RunConfig
    encoder: TextEncoder | None
    mesh: Mesh
    train_step: Any
    init: Any
    frozen: Frozen | None


def read_plan(path: str, overrides: dict[str, str]) -> Plan:
    """Reads a config, and checks all that is cheap to check.

    Raises:
        ValueError: a key is unknown or has a bad value, or keys do not fit each other or the
            devices.
    """
    raw = load_config(path)
    apply_overrides(raw, overrides)
    raw = with_absolute_sources(raw)
    if inherit.is_open(raw):
        if raw.get("init_from") is None:
            raise ValueError("the config leaves the network to its model: give --init_from")
        raw = inherit.filled(raw, load_model(raw["init_from"]).cascade)
    raw = with_encoder(raw)
    config = read_config(raw)
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.batch_size)
    encoder = build.make_text_encoder(config)
    if config.data.embeddings is not None:
        wanted = text_fingerprint(encoder, config.text.init_from)
        check_fingerprint(config.data.embeddings, wanted)
    return Plan(raw, config, encoder, mesh, *build.make_training(config, encoder, mesh))


def with_absolute_sources(raw: Section) -> dict[str, Any]:
    """The config with relative paths to models made absolute: a workdir may be opened from another
    folder, where such a path could be taken for a name on the hub.
    """
    values = as_dict(raw)
    for section in (values, values.get("text")):
        source = section.get("init_from") if isinstance(section, dict) else None
        if isinstance(source, str) and source not in shipped_models() and Path(source).is_dir():
            section["init_from"] = os.path.abspath(source)
    return values


def open_run(plan: Plan, workdir: str | os.PathLike) -> Run:
    """Opens the data and the workdir, and reads weights.

    Raises:
        ValueError: the data, the workdir or weights cannot be read, or do not fit the config.
        CheckpointError: a checkpoint to start from is damaged.
    """
    config, encoder, mesh = plan.config, plan.encoder, plan.mesh
    workdir = Path(os.path.abspath(workdir))
    resumed = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    kept = resumed and is_kept(workdir)
    # What can be refused comes before the checkpoints, whose threads an exit would cut off.
    source = None if config.data.source == STREAM else make_source(config)
    batches = make_batches(config, encoder, source, mesh=mesh)
    frozen, weights, sample = None, None, None
    if plan.frozen is not None:
        frozen = read_frozen(config, plan.frozen, workdir if kept else None, mesh)
    if config.lora is None and not resumed:
        weights = read_start(config, encoder, mesh)
    if config.data.embeddings is None:
        sample = make_sample_fn(config, encoder, source, frozen)
    elif config.sample is not None:
        say_on_first_host("no samples while training: without a text encoder prompts have no text")
    score = None if config.evaluate is None else make_score_fn(config, encoder, frozen)
    make_folder(workdir, "--workdir")
    check_shared(workdir, "--workdir")
    description = build.describe(config, encoder, plan.raw)
    build.write_description(workdir, description, encoder)
    if frozen is not None and frozen.text_encoder is not None and not kept:
        keep(workdir, build.encoder_source(config), frozen.text_encoder)
    # The curve is that of training from scratch, on one image set.
    tuned = config.lora is not None or config.data.prior is not None
    section = config.checkpoint
    return Run(
        plan.train_step,
        plan.init,
        mesh,
        batches,
        Checkpoints(workdir / "checkpoints", keep=section.keep, keep_best=section.keep_best),
        workdir,
        description,
        frozen=frozen,
        weights=weights,
        sample=sample,
        score=score,
        reference=None if tuned else reference_curve(config.stage),
    )


def reference_curve(stage: Stage, models: Path = PRETRAINED) -> Curve | None:
    """The loss curve of the shipped stage with the same configuration; None where there is none.

    Losses with another network, weight, prediction or schedule cannot be compared.
    """

    def comparable(stage: Stage) -> Stage:
        return replace(stage, network=replace(stage.network, dtype="float32", remat=False))

    for path in sorted(models.glob(f"*/{stage.name}_curve.json")):
        shipped = read_model(path.parent)[0].stages
        if comparable(stage) in map(comparable, shipped):
            return Curve.read(path)
    return None


# ------------------------------------------------------------------------------------- weights


def read_start(config: RunConfig, encoder: TextEncoder | None, mesh: Mesh) -> Params | None:
    """The parameters that training starts from: the network's of `init_from`, and those of a
    trained text encoder, of `text.init_from` or else of `init_from`. None where it names neither.
    """
    trained = encoder is not None and config.text.trainable
    separate = trained and config.text.init_from is not None
    weights = {}
    if config.init_from is not None:
        with_text = trained and not separate
        weights = read_weights(config.init_from, config.stage.name, mesh, with_text)
        if with_text and TEXT_ENCODER not in weights:
            raise ValueError(
                f"init_from {config.init_from} holds no text encoder to start from: give "
                "text.init_from"
            )
    if separate:
        weights[TEXT_ENCODER] = read_encoder(config, "float32", mesh)
    return weights or None


def read_weights(
    source: str, stage_name: str, mesh: Mesh, with_text: bool = True, dtype: str = "float32"
) -> Params:
    """{"network": ..., "text_encoder": ...} of a workdir, a model directory or a shipped model."""
    pipeline = load_model(source, dtype=dtype, mesh=mesh)
    stage = pipeline.cascade.stages[stage_index(pipeline.cascade, stage_name)]
    params = {NETWORK: pipeline.params[stage.name]}
    if with_text and pipeline.cascade.encoder is not None:
        params[TEXT_ENCODER] = pipeline.params[TEXT_ENCODER]
    return params


def read_frozen(config: RunConfig, shapes: Frozen, kept: Path | None, mesh: Mesh) -> Frozen:
    """The parameters that the step reads and does not train, where they belong on the mesh.

    Args:
        shapes: as `build.frozen_shapes` gives them.
        kept: the workdir that keeps the text encoder; None: it is read from its source.
    """
    network, text_encoder, dtype = None, None, config.frozen_dtype
    if shapes.network is not None:
        network = read_weights(config.init_from, config.stage.name, mesh, False, dtype)[NETWORK]
        check_weights(shapes.network, network, f"the network's weights in {config.init_from}")
    if shapes.text_encoder is not None and kept is not None:
        text_encoder = read_kept(kept, config.text.encoder, dtype, sharding_over(mesh))
    elif shapes.text_encoder is not None:
        text_encoder = read_encoder(config, dtype, mesh)
        where = f"the text encoder's weights in {build.encoder_source(config)}"
        check_weights(shapes.text_encoder, text_encoder, where)
    frozen = Frozen(network, text_encoder)
    return jax.tree.map(place, frozen, state_shardings(frozen, mesh))


def read_encoder(config: RunConfig, dtype: str, mesh: Mesh) -> Params:
    """The text encoder's parameters where `text.init_from`, or else `init_from`, has them."""
    source = build.encoder_source(config)
    found, params = load_encoder(source, dtype=dtype, mesh=mesh)
    if is_encoder(source):
        check_config(source, found, config.text.encoder)
    return params
