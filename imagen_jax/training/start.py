"""How a run starts: the config is read and checked, data and workdir are opened, weights read."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imagen_jax.cascade.cascade import Cascade, part_shapes, stage_index
from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.data.classes import class_names
from imagen_jax.data.embeddings import check_fingerprint
from imagen_jax.devices import hosts, sharding
from imagen_jax.pipeline import encoder_files, loading, model_directory, shipped
from imagen_jax.storage.checkpoint import Checkpoints, check_weights
from imagen_jax.storage.codec import Section, to_dict
from imagen_jax.storage.folders import CHECKPOINTS, saved_steps
from imagen_jax.storage.quantized import refuse_quantized
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import batches, build, classes, inherit, loop, metrics, samples, scores
from imagen_jax.training.config import apply_overrides, load_config, with_homes
from imagen_jax.training.run_config import STREAM, RunConfig, read_config
from imagen_jax.training.state import NETWORK, TEXT_ENCODER, Frozen
from imagen_jax.training.workdir import write_description
from imagen_jax.typing import Params


class Plan(NamedTuple):
    """A run whose config is read and checked, before anything is opened.

    raw: the config as written. train_step, init, frozen: of `build.make_training`.
    """

    raw: Section
    config: RunConfig
    encoder: TextEncoder | None
    mesh: jax.sharding.Mesh
    train_step: Any
    init: Any
    frozen: Frozen


def read_raw(path: str | Path, overrides: dict[str, str]) -> Section:
    """A config file with overrides, and with what it leaves to a model or an encoder filled in.

    Raises:
        ValueError: there is no such file, or what it leaves out cannot be found.
    """
    raw = load_config(path)
    apply_overrides(raw, overrides)
    raw = with_absolute_sources(with_homes(to_dict(raw)))
    raw = inherit.completed(raw, lambda source: loading.load_model(source).cascade)
    return encoder_files.with_encoder(raw)


def read_plan(path: str | Path, overrides: dict[str, str]) -> Plan:
    """Reads a config, and checks all that is cheap to check.

    Raises:
        ValueError: a key is unknown or has a bad value, or keys do not fit each other or the
            devices.
    """
    return make_plan(read_raw(path, overrides))


def make_plan(raw: Section) -> Plan:
    """The plan of a config that `read_raw` has read; it raises as `read_plan` does."""
    config = read_config(raw)
    mesh = sharding.make_mesh(config.mesh)
    encoder = build.make_text_encoder(config)
    if config.data.embeddings is not None:
        wanted = encoder_files.text_fingerprint(encoder, config.text.init_from)
        check_fingerprint(config.data.embeddings, wanted)
    return Plan(raw, config, encoder, mesh, *build.make_training(config, encoder, mesh))


def with_absolute_sources(raw: Section) -> dict[str, Any]:
    """The config with relative paths to models made absolute: a workdir may be opened from another
    folder, where such a path could be taken for a name on the hub.
    """
    values, known = to_dict(raw), shipped.list_models()
    text, distill = values.get("text"), values.get("distill")
    for section, key in ((values, "init_from"), (text, "init_from"), (distill, "teacher")):
        source = section.get(key) if isinstance(section, dict) else None
        if isinstance(source, str) and source not in known and Path(source).is_dir():
            section[key] = os.path.abspath(source)
    return values


def open_run(plan: Plan, workdir: Path) -> loop.Run:
    """Opens the data and the workdir (of `workdir.held`), and reads weights.

    Raises:
        ValueError: the data, the workdir or weights cannot be read, or do not fit the config.
        CheckpointError: a checkpoint to start from is damaged.
    """
    config, encoder, mesh = plan.config, plan.encoder, plan.mesh
    resumed = bool(saved_steps(workdir / CHECKPOINTS))
    kept = resumed and encoder_files.is_kept(workdir)
    # What can be refused comes before the checkpoints, whose threads an exit would cut off.
    source = None
    if config.data.source != STREAM:
        source = classes.with_run_classes(config, batches.make_source(config), workdir, resumed)
    stream = batches.make_batches(config, encoder, source, mesh=mesh)
    weights = None
    frozen = read_frozen(config, plan.frozen, workdir if kept else None, mesh)
    if config.lora is None and not resumed:
        weights = read_start(config, encoder, mesh)
    sample = samples.make_sample_fn(config, encoder, source, frozen)
    if config.data.embeddings is not None and config.sample is not None:
        hosts.say_on_first_host(
            "no samples while training: without a text encoder prompts have no text"
        )
    score = scores.make_score_fn(config, encoder, frozen)
    description = build.describe(config, encoder, plan.raw, class_names(source))

    def keep_model() -> None:
        write_description(workdir, description, encoder)
        classes.write_classes(workdir, source)
        if frozen.text_encoder is not None and not kept:
            encoder_files.keep(workdir, build.encoder_source(config), frozen.text_encoder)

    # The curve is that of training from scratch, on one image set.
    tuned = config.lora is not None or config.data.prior is not None
    keep, keep_best = config.checkpoint.keep, config.checkpoint.keep_best
    return loop.Run(
        plan.train_step,
        plan.init,
        mesh,
        stream,
        Checkpoints(workdir / CHECKPOINTS, keep=keep, keep_best=keep_best),
        workdir,
        description,
        keep_model=keep_model,
        frozen=frozen,
        weights=weights,
        sample=sample,
        score=score,
        reference=None if tuned else reference_curve(config.stage),
        source=source,
    )


def reference_curve(stage: Stage, models: Path = shipped.PRETRAINED) -> metrics.Curve | None:
    """The loss curve of the shipped stage with the same configuration; None where there is none.

    Losses with another network, weight, prediction or schedule cannot be compared.
    """

    def comparable(stage: Stage) -> Stage:
        return replace(stage, network=replace(stage.network, dtype="float32", remat=False))

    for path in sorted(models.glob(f"*/{stage.name}_curve.json")):
        shipped = model_directory.read_model(path.parent)[0].stages
        if comparable(stage) in map(comparable, shipped):
            return metrics.Curve.read(path)
    return None


# ------------------------------------------------------------------------------------- weights


def read_start(
    config: RunConfig, encoder: TextEncoder | None, mesh: jax.sharding.Mesh
) -> Params | None:
    """The parameters that training starts from: the network's of `init_from`, and those of a
    trained text encoder, of `text.init_from` or else of `init_from`. None where it names neither.
    """
    weights = {}
    if config.init_from is not None:
        weights[NETWORK] = read_network(config, "float32", mesh)
    if encoder is not None and config.text.trainable and build.encoder_source(config) is not None:
        weights[TEXT_ENCODER] = read_encoder(config, "float32", mesh)
    return weights or None


def read_frozen(
    config: RunConfig, shapes: Frozen, kept: Path | None, mesh: jax.sharding.Mesh
) -> Frozen:
    """The parameters that the step reads and does not train, where they belong on the mesh.

    Args:
        shapes: as `build.frozen_shapes` gives them.
        kept: the workdir that keeps the text encoder; None: it is read from its source.
    """
    network = text_encoder = teacher = None
    dtype = config.frozen_dtype
    if shapes.network is not None:
        network = read_network(config, dtype, mesh)
    if shapes.text_encoder is not None and kept is not None:
        place = loading.sharding_over(mesh)
        text_encoder = encoder_files.read_kept(kept, config.text.encoder, dtype, place)
    elif shapes.text_encoder is not None:
        text_encoder = read_encoder(config, dtype, mesh)
        where = f"the text encoder's weights in {build.encoder_source(config)}"
        check_weights(shapes.text_encoder, text_encoder, where)
    if shapes.teacher is not None:
        pipeline = loading.load_model(config.distill.teacher, dtype=dtype, mesh=mesh)
        teacher = pipeline.params[config.distill.stage.name]
        refuse_quantized(teacher, f"The teacher {config.distill.teacher}")
    frozen = Frozen(network, text_encoder, teacher)
    where = sharding.frozen_shardings(frozen, mesh, config.frozen_split)
    return jax.tree.map(hosts.place, frozen, where)


def read_network(config: RunConfig, dtype: str, mesh: jax.sharding.Mesh) -> Params:
    """The network's parameters in the workdir, model directory or shipped model `init_from`."""
    if encoder_files.is_encoder(config.init_from):
        raise ValueError(
            f"init_from {config.init_from} is a text encoder by itself: give it as text.init_from"
        )
    pipeline = loading.load_model(config.init_from, dtype=dtype, mesh=mesh)
    params = pipeline.params[fitting_stage(config, pipeline.cascade)]
    refuse_quantized(params, f"Training from {config.init_from}")
    if not config.stage.is_flow_map:
        return params
    fresh = init_params(config.stage, jax.random.key(config.seed))
    return unflatten(flatten(fresh) | flatten(params))  # of a denoiser: without the target time's


def fitting_stage(config: RunConfig, cascade: Cascade) -> str:
    """The name of the model's stage that the run starts from.

    Raises:
        ValueError: none has the name or the shapes of the config's; the message says how to train
            those there are.
    """
    source, names = config.init_from, [stage.name for stage in cascade.stages]
    try:
        index = stage_index(cascade, config.stage.name)
        name, stage = names[index], config.stage
        if stage.is_flow_map:  # which may start from a denoiser
            told = cascade.stages[index].is_flow_map
            stage = replace(stage, network=replace(stage.network, target_time=told))
        wanted = jax.eval_shape(partial(init_params, stage), jax.random.key(0))
        check_weights(wanted, part_shapes(cascade, name), f"the network's weights in {source}")
    except ValueError as error:
        sizes = {stage.resolution: stage.name for stage in cascade.stages}
        name = sizes.get(config.stage.resolution, names[0])
        raise ValueError(
            f"{str(error).removesuffix('.')}. The stages of {source} ({', '.join(names)}) are "
            f"trained further by a config that leaves the network out: "
            f"--config fine_tune --init_from {source} --config.stage.name={name}"
        ) from None
    return name


def read_encoder(config: RunConfig, dtype: str, mesh: jax.sharding.Mesh) -> Params:
    """The text encoder's parameters where `text.init_from`, or else `init_from`, has them."""
    source = build.encoder_source(config)
    found, params = loading.load_encoder(source, dtype=dtype, mesh=mesh)
    if encoder_files.is_encoder(source):
        encoder_files.check_config(source, found, config.text.encoder)
    if config.text.trainable:
        refuse_quantized(params, f"Training the text encoder of {source}")
    return params
