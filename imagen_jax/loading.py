"""`load_model`: a Pipeline from a shipped model, a model directory or a training workdir."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import cascade as cascade_room
from imagen_jax import model_directory
from imagen_jax.cascade import TEXT_ENCODER, Cascade
from imagen_jax.compilation_cache import use_compilation_cache
from imagen_jax.convert.lora import save_lora
from imagen_jax.lora import DEFAULT_TARGETS, LoraConfig, merge_lora
from imagen_jax.model_directory import MODEL_FILE, Parts
from imagen_jax.pipeline import Pipeline
from imagen_jax.typing import Params

PRETRAINED = Path(__file__).parent / "pretrained"


def shipped_models() -> list[str]:
    """The names that `load_model` knows without a directory."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{MODEL_FILE}"))


def load_model(
    source: str | os.PathLike | Sequence[str | os.PathLike], *, dtype: str = "float32"
) -> Pipeline:
    """A pipeline from the name of a shipped model, a model directory, or a training workdir.

    Several sources are put in a row: `load_model(["workdirs/base", "workdirs/sr"])` is the cascade
    of the stages of both, with the text encoder of the first that has one.

    Args:
        dtype: of the parameters in memory, "float32" or "bfloat16".

    Raises:
        ValueError: an unknown name (the message lists the known ones), or files that are damaged.
    """
    use_compilation_cache()
    if not isinstance(source, str | os.PathLike):
        return join_pipelines([load_model(entry, dtype=dtype) for entry in source])
    shipped = source in shipped_models()
    directory = PRETRAINED / source if shipped else Path(source)
    if (directory / MODEL_FILE).is_file():
        cascade, values = model_directory.read_model(directory)
        return Pipeline(
            cascade,
            model_directory.read_parts(directory, cascade, dtype=dtype),
            name=source if shipped else values.get("name", directory.name),
            fingerprint=values.get("fingerprint"),
            notes=values.get("notes"),
        )
    if not directory.is_dir():
        known = ", ".join(shipped_models()) or "none"
        raise ValueError(
            f"Unknown model {os.fspath(source)!r}: neither a directory nor a shipped model "
            f"(shipped: {known})."
        )
    return load_workdir(directory, dtype=dtype)


def load_workdir(directory: Path, *, dtype: str = "float32") -> Pipeline:
    """The newest checkpoint of a training run; the average of its parameters where it keeps one.

    What the run did not train is read where the run found it: a frozen encoder, and the network to
    which it trained an adapter, which is merged in.
    """
    step, params, run = read_run(directory)
    cascade = cascade_room.from_dict(run["model"], os.fspath(directory))
    params = jax.tree.map(lambda leaf: as_dtype(leaf, dtype), params)
    stage = cascade.stages[0]
    readers = {stage.name: lambda: params["network"]}
    if "lora" in params:
        base = load_model(run["config"]["init_from"], dtype=dtype)
        name = base.cascade.stages[cascade_room.stage_index(base.cascade, stage.name)].name
        scale = run_lora(run).scale
        readers[stage.name] = lambda: merge_lora(base.params[name], params["lora"], scale)
    if TEXT_ENCODER in params:
        readers[TEXT_ENCODER] = lambda: params[TEXT_ENCODER]
    elif cascade.encoder is not None:
        origin = run["config"]["text"]["init_from"]
        if origin is None:
            raise ValueError(f"{directory} has no text encoder: text.init_from is None.")
        readers[TEXT_ENCODER] = lambda: load_model(origin, dtype=dtype).params[TEXT_ENCODER]
    return Pipeline(cascade, Parts(readers), name=directory.name, notes={"step": step})


def export_lora(workdir: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Writes the adapter of a training run, its newest checkpoint's, as safetensors.

    Raises:
        ValueError: the run trained no adapter.
    """
    workdir, path = Path(workdir), Path(path)
    _, params, run = read_run(workdir)
    if "lora" not in params:
        raise ValueError(f"{workdir} trained the parameters themselves, no adapter to them.")
    if jax.process_index() == 0:
        stage = cascade_room.from_dict(run["model"], os.fspath(workdir)).stages[0]
        save_lora(path, stage, params["lora"], run_lora(run))
    return path


def run_lora(run: Mapping[str, Any]) -> LoraConfig:
    """The config's section `lora` of a run that trained an adapter."""
    section = dict(run["config"]["lora"])
    return LoraConfig(**section | {"targets": tuple(section.get("targets", DEFAULT_TARGETS))})


def read_run(directory: Path) -> tuple[int, Params, dict[str, Any]]:
    """(step, parameters, description) of a run's newest checkpoint.

    Raises:
        ValueError: the directory holds no checkpoint.
    """
    place = directory / "checkpoints"
    if not any(path.name.isdigit() for path in place.glob("*")):
        raise ValueError(
            f"{directory} is neither a model directory (no {MODEL_FILE}) nor the workdir of a "
            "training run (no checkpoint in checkpoints/)."
        )
    # Imported here: Orbax is slow to import, and nothing but a workdir needs it.
    from imagen_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(place, read_only=True)
    stored = checkpoints.read_parameters()
    checkpoints.close()
    return stored


def as_dtype(leaf: np.ndarray, dtype: str) -> np.ndarray:
    """Floating-point numbers as `dtype`, others as they are."""
    return leaf.astype(jnp.dtype(dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def join_pipelines(pipelines: Sequence[Pipeline]) -> Pipeline:
    """The stages of all in a row.

    Raises:
        ValueError: there are none, or the sizes do not follow each other.
    """
    if not pipelines:
        raise ValueError("load_model was given an empty list.")
    stages, sampling, params, encoder = [], [], {}, None
    for pipeline in pipelines:
        stages += pipeline.cascade.stages
        sampling += pipeline.cascade.sampling
        for stage in pipeline.cascade.stages:
            params[stage.name] = lambda pipeline=pipeline, name=stage.name: pipeline.params[name]
        if encoder is None and pipeline.cascade.encoder is not None:
            encoder = pipeline.cascade.encoder
            params[TEXT_ENCODER] = lambda pipeline=pipeline: pipeline.params[TEXT_ENCODER]
    return Pipeline(
        Cascade(tuple(stages), tuple(sampling), encoder),
        Parts(params),
        name="+".join(pipeline.name for pipeline in pipelines),
        notes={pipeline.name: pipeline.notes for pipeline in pipelines if pipeline.notes},
    )
