"""Trains one stage.

    python scripts/train.py --config configs/emoji_base32.py --workdir runs/base32
    python scripts/train.py --config configs/emoji_base32.py --workdir runs/wide \
        --config.optimizer.learning_rate=3e-4 --config.stage.network.levels.0.channels=192
    python scripts/train.py --config configs/emoji_base32.py --dry_run

Any key of the config can be set by --config.KEY=VALUE. A run that was stopped, killed or that lost
its machine goes on from its newest checkpoint when the same command is given again. Stopped by a
signal it saves and ends with status 75 (EX_TEMPFAIL).

On several hosts the same command runs on each. SLURM, Open MPI and a TPU node pool are recognized;
a Cloud TPU pod needs --distributed, and without such help each process is given
--coordinator_address=HOST:PORT --num_processes=N --process_id=I (launch/ has a file for each).
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags, logging

from imagen_jax.commands.command_line import define_host_flags, one_line_errors, run_configured
from imagen_jax.storage.folders import check_local, make_folder

CONFIG = flags.DEFINE_string("config", None, "Python file with get_config().", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and samples.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the model table and stop.")
PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST step of a profiler trace.")
INIT_FROM = flags.DEFINE_string("init_from", None, "Short for --config.init_from.")

with one_line_errors(ValueError):
    JOIN_HOSTS = define_host_flags()

ROOT = Path(__file__).resolve().parents[2]
PRETRAINED = ROOT / "imagen_jax" / "pretrained"
TEXT_ENCODER = "text_encoder"  # as of imagen_jax.cascade, which is imported late


def run(argv: list[str], overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.data.loader import TooManyBroken
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.devices.hosts import say_on_first_host
        from imagen_jax.storage.checkpoint import CheckpointError, MismatchError
        from imagen_jax.training import build
        from imagen_jax.training.feed import LabelError
        from imagen_jax.training.loop import NonFiniteError, train

    logging.set_verbosity(logging.WARNING)
    with one_line_errors(ValueError, CheckpointError):
        if len(argv) > 1:
            raise ValueError(f"unknown argument {argv[1]!r}")
        JOIN_HOSTS()
        raw, config, mesh, encoder = prepare(overrides)
        train_step, init, frozen_shapes = build.make_training(config, encoder, mesh)
        if DRY_RUN.value:
            from imagen_jax.training.table import model_table

            print(model_table(config, train_step, init, mesh, frozen_shapes))
            return
        loop_config = build.loop_config(config, parse_profile(PROFILE.value))
        use_compilation_cache()
        arguments = open_run(config, raw, encoder, frozen_shapes, mesh)
    wrong_data = (LabelError, TooManyBroken)
    with one_line_errors(CheckpointError, MismatchError, NonFiniteError, *wrong_data):
        state = train(loop_config, train_step, init, mesh=mesh, **arguments)
        arguments["checkpoints"].close()
        if config.lora is not None:
            say_on_first_host(f"the adapter: {write_lora(arguments['workdir'])}")
        if int(state.step) < config.num_steps:
            sys.exit(os.EX_TEMPFAIL)


def prepare(overrides: dict[str, str]) -> tuple[Any, Any, Any, Any]:
    """Checks all that is cheap: (config as written, typed config, mesh, text encoder)."""
    from imagen_jax.devices import sharding
    from imagen_jax.pipeline.encoder_files import with_encoder
    from imagen_jax.training import build, inherit
    from imagen_jax.training import config as config_room
    from imagen_jax.training.run_config import read_config

    if INIT_FROM.value:
        overrides = {"init_from": repr(INIT_FROM.value), **overrides}
    raw = config_room.load_config(CONFIG.value)
    config_room.apply_overrides(raw, overrides)
    raw = with_absolute_sources(raw)
    if inherit.is_open(raw):
        if raw.get("init_from") is None:
            raise ValueError("the config leaves the network to its model: give --init_from")
        from imagen_jax.pipeline.loading import load_model

        raw = inherit.filled(raw, load_model(raw["init_from"]).cascade)
    raw = with_encoder(raw)
    config = read_config(raw)
    parse_profile(PROFILE.value)
    if WORKDIR.value is None and not DRY_RUN.value:
        raise ValueError("--workdir is needed, except with --dry_run")
    check_local(WORKDIR.value or "", "--workdir")
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config.batch_size)
    encoder = build.make_text_encoder(config)
    check_embeddings(config, encoder)
    return raw, config, mesh, encoder


def with_absolute_sources(raw: Any) -> dict[str, Any]:
    """The config with absolute paths in place of relative ones to models: a workdir may be opened
    from another folder, where the path could be taken for a name on the hub.
    """
    from imagen_jax.pipeline.loading import shipped_models
    from imagen_jax.storage.codec import to_dict

    values = to_dict(raw)
    for section in (values, values.get("text")):
        source = section.get("init_from") if isinstance(section, dict) else None
        if isinstance(source, str) and source not in shipped_models() and Path(source).is_dir():
            section["init_from"] = os.path.abspath(source)
    return values


def check_embeddings(config: Any, encoder: Any) -> None:
    """ValueError unless the embeddings that are read are those that the section `text` asks for."""
    if config.data.embeddings is None:
        return
    from imagen_jax.data.embeddings import check_fingerprint
    from imagen_jax.pipeline.encoder_files import text_fingerprint

    wanted = text_fingerprint(encoder, config.text.init_from)
    check_fingerprint(config.data.embeddings, wanted)


def open_run(config: Any, raw: Any, encoder: Any, frozen_shapes: Any, mesh: Any) -> dict[str, Any]:
    """Opens the data and the workdir, and reads weights: what `train` needs besides."""
    from imagen_jax.devices.hosts import check_shared, say_on_first_host
    from imagen_jax.pipeline.encoder_files import is_kept, keep
    from imagen_jax.storage.checkpoint import Checkpoints
    from imagen_jax.training import build
    from imagen_jax.training.batches import make_batches, make_source
    from imagen_jax.training.run_config import STREAM
    from imagen_jax.training.samples import make_sample_fn

    workdir = Path(os.path.abspath(WORKDIR.value))
    source = None if config.data.source == STREAM else make_source(config)
    # What can be refused comes before the checkpoints, whose threads an exit would cut off.
    batches = make_batches(config, encoder, source, mesh=mesh)
    frozen, weights = None, None
    if frozen_shapes is not None:
        frozen = read_frozen(config, frozen_shapes, workdir, mesh)
    make_folder(workdir, "--workdir")
    check_shared(workdir, "--workdir")
    section = config.checkpoint
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=section.keep, keep_best=section.keep_best
    )
    if config.lora is None and not checkpoints.steps():
        weights = read_start(config, encoder, mesh)
    description = build.describe(config, encoder, raw)
    build.write_description(workdir, description, encoder)
    kept = goes_on(workdir) and is_kept(workdir)
    if frozen is not None and frozen.text_encoder is not None and not kept:
        keep(workdir, build.encoder_source(config), frozen.text_encoder)
    # The curve is that of training from the start, on one set of images.
    fine_tuning = config.lora is not None or config.data.prior is not None
    curve = None if fine_tuning else reference_curve(config.stage)
    sample = make_sample_fn(config, encoder, source, frozen)
    if config.data.embeddings is not None and config.sample is not None:
        say_on_first_host("no samples while training: without a text encoder prompts have no text")
        sample = None
    return {
        "batches": batches,
        "checkpoints": checkpoints,
        "workdir": workdir,
        "description": description,
        "frozen": frozen,
        "weights": weights,
        "sample": sample,
        "score": make_score(config, encoder, frozen),
        "reference": curve,
    }


def make_score(config: Any, encoder: Any, frozen: Any) -> Any:
    """What the section `evaluate` asks for; None where there is none."""
    if config.evaluate is None:
        return None
    from imagen_jax.training.scores import make_score_fn

    return make_score_fn(config, encoder, frozen)


def parse_profile(value: str | None) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15)."""
    if value is None:
        return None
    first, _, last = value.partition(":")
    if not (first.isdigit() and last.isdigit()):
        raise ValueError(f"--profile is {value!r}; it must be FIRST:LAST, for example 10:15")
    return int(first), int(last)


def reference_curve(stage: Any, models: Path = PRETRAINED) -> Any:
    """The loss curve of the shipped stage that is configured as this one; None where there is none.

    Losses of another network, weight, prediction or schedule cannot be compared.
    """
    from imagen_jax.pipeline.model_directory import read_model
    from imagen_jax.training.metrics import Curve

    def comparable(stage: Any) -> Any:
        return replace(stage, network=replace(stage.network, dtype="float32", remat=False))

    for path in sorted(models.glob(f"*/{stage.name}_curve.json")):
        shipped = read_model(path.parent)[0].stages
        if comparable(stage) in map(comparable, shipped):
            return Curve.read(path)
    return None


def read_start(config: Any, encoder: Any, mesh: Any) -> dict[str, Any] | None:
    """The parameters that training starts from: the network's of `init_from`, and those of a
    trained text encoder, of `text.init_from` or else of `init_from`. None where it names neither.
    """
    trained = encoder is not None and config.text.trainable
    apart = trained and config.text.init_from is not None
    weights = {}
    if config.init_from is not None:
        with_text = trained and not apart
        weights = read_weights(config.init_from, config.stage.name, mesh, with_text)
        if with_text and TEXT_ENCODER not in weights:
            raise ValueError(
                f"init_from {config.init_from} holds no text encoder to start from: give "
                "text.init_from"
            )
    if apart:
        weights[TEXT_ENCODER] = read_source_encoder(config, "float32", mesh)
    return weights or None


def read_weights(
    source: str, stage_name: str, mesh: Any, with_text: bool = True, dtype: str = "float32"
) -> dict[str, Any]:
    """{"network": ..., "text_encoder": ...} of a workdir, a model directory or a shipped model."""
    from imagen_jax.training.state import LORA, NETWORK

    if (Path(source) / "checkpoints").is_dir():
        from imagen_jax.storage.checkpoint import Checkpoints

        checkpoints = Checkpoints(Path(source) / "checkpoints", read_only=True)
        _, params, _ = checkpoints.read_parameters()
        if LORA not in params:
            return params if with_text else {NETWORK: params[NETWORK]}
    from imagen_jax.cascade.cascade import stage_index
    from imagen_jax.pipeline.loading import load_model

    pipeline = load_model(source, dtype=dtype, mesh=mesh)
    stages = pipeline.cascade.stages
    stage = stages[stage_index(pipeline.cascade, stage_name)]
    params = {NETWORK: pipeline.params[stage.name]}
    if with_text and pipeline.cascade.encoder is not None:
        params[TEXT_ENCODER] = pipeline.params[TEXT_ENCODER]
    return params


def read_frozen(config: Any, shapes: Any, workdir: Path, mesh: Any) -> Any:
    """The parameters that the step reads and does not train, as `build.frozen_shapes` has them,
    where they are to lie.
    """
    import jax

    from imagen_jax.devices.hosts import place
    from imagen_jax.devices.sharding import state_shardings
    from imagen_jax.storage.checkpoint import check_weights
    from imagen_jax.training.state import NETWORK, Frozen

    network, text_encoder, dtype = None, None, config.frozen_dtype
    if shapes.network is not None:
        network = read_weights(config.init_from, config.stage.name, mesh, False, dtype)[NETWORK]
        check_weights(shapes.network, network, f"the network's weights in {config.init_from}")
    if shapes.text_encoder is not None:
        text_encoder = read_encoder(config, shapes.text_encoder, workdir, mesh)
    frozen = Frozen(network, text_encoder)
    frozen = jax.tree.map(lambda leaf: leaf.astype(dtype, copy=False), frozen)
    return jax.tree.map(place, frozen, state_shardings(frozen, mesh))


def goes_on(workdir: Path) -> bool:
    """Whether a workdir has a checkpoint."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def read_encoder(config: Any, shapes: Any, workdir: Path, mesh: Any) -> Any:
    """The frozen text encoder: what a run that goes on has kept, else that of its source."""
    from imagen_jax.pipeline.encoder_files import is_kept, read_kept
    from imagen_jax.pipeline.loading import sharding_over
    from imagen_jax.storage.checkpoint import check_weights
    from imagen_jax.training.build import encoder_source

    if goes_on(workdir) and is_kept(workdir):
        wanted, sharding = config.text.encoder, sharding_over(mesh)
        return read_kept(workdir, wanted, config.frozen_dtype, sharding)
    params = read_source_encoder(config, config.frozen_dtype, mesh)
    check_weights(shapes, params, f"the text encoder's weights in {encoder_source(config)}")
    return params


def read_source_encoder(config: Any, dtype: str, mesh: Any) -> Any:
    """The text encoder's parameters where `text.init_from`, or else `init_from`, has them."""
    from imagen_jax.pipeline.encoder_files import check_config, is_encoder
    from imagen_jax.pipeline.loading import load_encoder
    from imagen_jax.training.build import encoder_source

    source = encoder_source(config)
    found, params = load_encoder(source, dtype=dtype, mesh=mesh)
    if is_encoder(source):
        check_config(source, found, config.text.encoder)
    return params


def write_lora(workdir: Path) -> Path:
    """The adapter of a run's newest checkpoint as lora.safetensors."""
    from imagen_jax.pipeline.loading import export_lora

    return export_lora(workdir, workdir / "lora.safetensors")


def main() -> None:
    run_configured(run, sys.argv)
