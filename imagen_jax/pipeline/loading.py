"""`load_model`: a Pipeline from a shipped model, a model directory, a training workdir, or
DeepFloyd IF or PRXPixel in diffusers' layout.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from imagen_jax.cascade import description
from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, stage_index
from imagen_jax.compress.quantization import quantizing, renamed
from imagen_jax.convert import diffusers_directory, diffusers_pipeline, prx_pipeline
from imagen_jax.convert.hub import NAME, resolve
from imagen_jax.convert.lora import save_lora
from imagen_jax.devices.compilation_cache import use_compilation_cache
from imagen_jax.devices.sharding import AXES, partition_spec
from imagen_jax.diffusion.sampling import Whole
from imagen_jax.models.lora import LoraConfig, merge_lora
from imagen_jax.models.t5 import T5Config
from imagen_jax.pipeline import encoder_files, shipped
from imagen_jax.pipeline.joining import add_guides, join_pipelines
from imagen_jax.pipeline.lazy_params import PROBED, LazyParams
from imagen_jax.pipeline.model_directory import open_params, read_model
from imagen_jax.pipeline.option_names import refuse_unknown
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.quantized_params import (
    check_quantize,
    quantized_params,
    scheme_of_part,
)
from imagen_jax.pipeline.shipped import MODEL_FILE
from imagen_jax.pipeline.work_directory import Average, read_run
from imagen_jax.storage.codec import from_dict
from imagen_jax.storage.folders import CHECKPOINTS, expand_home, user_path
from imagen_jax.storage.layout_files import ShardingOf
from imagen_jax.storage.safetensors import kept_dtype, open_tensors, pickles_in
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.storage.wrong_files import absent
from imagen_jax.typing import Params

ENCODER_WEIGHTS = (f"{TEXT_ENCODER}/*.safetensors",)
GuideSource = str | os.PathLike | Pipeline


@dataclass(frozen=True)
class Kept:
    """How parameters are kept in memory: options of `load_model`."""

    dtype: str = "float32"
    mesh: jax.sharding.Mesh | None = None
    quantize: str | None = None

    def place(self, part: str) -> ShardingOf:
        """Where the parameters of a stage, or of the text encoder, lie; and how they are read."""
        sharding = sharding_over(self.mesh)
        if self.quantize is None:
            return sharding
        return quantizing(sharding, scheme_of_part(part, self.quantize))


def load_model(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    variant: str | None = None,
    revision: str | None = None,
    step: Whole | None = None,
    ema: Average = True,
    guide: GuideSource | Sequence[GuideSource | None] | None = None,
    quantize: str | None = None,
    **unknown: Any,
) -> Pipeline:
    """A pipeline from the name of a shipped model, a model directory, or a training workdir; or
    DeepFloyd IF or PRXPixel (without its text encoder) in diffusers' layout, from a directory or by
    its name on the Hugging Face hub.

    Pass several sources to chain separately trained stages: `load_model(["workdirs/base",
    "workdirs/sr"])` is the cascade of the stages of both, with the text encoder of the first that
    has one.

    Args:
        dtype: of the parameters in memory and of the networks' arithmetic, "float32" or "bfloat16",
            whatever the model was trained or saved in.
        mesh: devices over which to spread the parameters, by the rules of training
            (`devices.sharding.make_mesh` makes one). None: the default device.
        variant: of the weights in diffusers' layout, such as "fp16".
        revision: a branch, tag or commit on the hub.
        step: which checkpoint of a training workdir, one for all of several. The newest when None.
        ema: the average of a run's parameters, where it kept one; False: those last trained; a
            number: the average of this relative width, put together from the snapshots of a run
            with the section `ema` (`step` is then of a snapshot).
        guide: a second, weaker model, which autoguidance leads away from (arXiv 2406.02507): a
            smaller one, or an earlier checkpoint, `load_model(DIR, step=N)`. It reads the same text
            and makes images of the same size. Of the base stage, or one a stage, None without.
        quantize: what the kernels are kept in: "int8"; "int4", the text encoder's, and the networks
            in int8; "int8_dynamic": int8, and products in int8 of activations that are quantized
            call by call. Needs qwix. A model that was saved so is so without it.

    Raises:
        FileNotFoundError: files are missing, or the hub knows no such name.
        ValueError: an unknown name (the message lists the known ones), a step of which there is no
            checkpoint or snapshot (it lists those there are), a width that the snapshots do not
            give, or files that are damaged.
        TypeError: an option by another library's name; the message has ours.
    """
    refuse_unknown(load_model, unknown)
    use_compilation_cache()
    dtypes = ("float32", "bfloat16")
    if dtype not in dtypes:
        raise ValueError(f"dtype is {dtype!r}; it can be {' or '.join(map(repr, dtypes))}.")
    single = isinstance(source, str | os.PathLike)
    sources = [source] if single else source
    if not isinstance(sources, Sequence) or not all(
        isinstance(entry, str | os.PathLike) for entry in sources
    ):
        raise ValueError(f"load_model takes a name, a directory or a list of them, not {source!r}.")
    check_quantize(quantize)
    pipelines, encoder_known, kept = [], False, Kept(dtype, mesh, quantize)
    for entry in sources:
        given = entry, kept, variant, revision
        pipelines.append(load_one(*given, step, ema, encoder_known))
        encoder_known = encoder_known or pipelines[-1].cascade.encoder is not None
    pipeline = pipelines[0] if single else join_pipelines(pipelines)
    if quantize is not None:  # what the readers of files have not quantized already
        pipeline.params = quantized_params(pipeline.params, quantize, sharding_over(mesh))
        pipeline.fingerprint = f"{pipeline.fingerprint or pipeline.name}-{quantize}"
    pipeline.cascade = computing_in(pipeline.cascade, dtype)
    pipeline.mesh = mesh
    if guide is not None:
        add_guides(pipeline, load_guides(guide, dtype=dtype, mesh=mesh))
    return pipeline


def load_guides(
    guide: GuideSource | Sequence[GuideSource | None],
    *,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    step: Whole | None = None,
) -> list[Pipeline | None]:
    """The models that guide another's stages, one or one a stage; options as of `load_model`."""
    single = isinstance(guide, str | os.PathLike | Pipeline)
    return [
        load_model(entry, dtype=dtype, mesh=mesh, step=step)
        if isinstance(entry, str | os.PathLike)
        else entry
        for entry in ([guide] if single else guide)
    ]


def computing_in(cascade: Cascade, dtype: str) -> Cascade:
    """The cascade with networks that compute in `dtype`; remat, for gradients alone, is left."""
    run = {"dtype": dtype, "remat": False}
    stages = tuple(
        replace(stage, network=replace(stage.network, **run)) for stage in cascade.stages
    )
    encoder = cascade.encoder
    if encoder is not None:
        encoder = replace(encoder, config=replace(encoder.config, **run))
    return replace(cascade, stages=stages, encoder=encoder)


def load_one(
    source: str | os.PathLike,
    kept: Kept,
    variant: str | None,
    revision: str | None,
    step: Whole | None = None,
    ema: Average = True,
    encoder_known: bool = False,
) -> Pipeline:
    """`load_model` of one source. `encoder_known`: the weights of a text encoder of the same config
    are there already, and are not fetched from the hub.
    """
    source = expand_home(source)
    name = os.fspath(source)
    known = shipped.list_models()
    directory = shipped.PRETRAINED / name if name in known else user_path(source)
    on_hub = not directory.exists() and NAME.fullmatch(name) is not None
    if revision is not None and not on_hub:
        raise ValueError(f"revision {revision!r} is for names on the hub, not for {source}.")
    is_workdir = (directory / CHECKPOINTS).is_dir() and not (directory / MODEL_FILE).is_file()
    if (step, ema) != (None, True) and not is_workdir and (on_hub or directory.is_dir()):
        raise ValueError(
            f"step and ema choose a checkpoint of a training workdir, which {source} is not."
        )
    if on_hub:
        left_out = ENCODER_WEIGHTS if encoder_known else ()
        directory = resolve(source, revision=revision, variant=variant, ignore_patterns=left_out)
    elif name not in known:
        name = directory.resolve().name
    if directory.is_dir() and is_diffusers(directory):
        with_encoder = not (on_hub and encoder_known)
        return load_diffusers(directory, name, kept, variant, with_encoder)
    if variant is not None:
        raise ValueError(
            f"variant {variant!r} is for DeepFloyd IF and PRXPixel, which {source} is not."
        )
    if (directory / MODEL_FILE).is_file():
        pipeline = load_directory(directory, kept)
        pipeline.name = name if name in known else pipeline.name or name
        return pipeline
    if not directory.is_dir():
        more = f", nor a shipped model of that name (shipped: {', '.join(known) or 'none'})"
        raise ValueError(absent(directory, "folder", known, "" if directory.exists() else more))
    return load_workdir(directory, kept, step, ema)


def load_directory(directory: Path, kept: Kept) -> Pipeline:
    """A model directory, under the name that it has there."""
    cascade, values = read_model(directory)
    shared = values.get("shared")
    params = open_params(directory, cascade, dtype=kept.dtype, place=kept.place, shared=shared)
    about = {key: values.get(key) for key in ("name", "fingerprint", "notes")}
    return Pipeline(cascade, params, **about)


def sharding_over(mesh: jax.sharding.Mesh | None) -> ShardingOf:
    """Where a parameter lies on a mesh, or on the default device.

    Raises:
        ValueError: the mesh has other axes than training's.
    """
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.device_put(np.zeros(())).device)
        return lambda path, shape: device
    if set(mesh.axis_names) != set(AXES):
        raise ValueError(f"The mesh has the axes {mesh.axis_names}; it needs {AXES}.")
    return lambda path, shape: NamedSharding(mesh, partition_spec(path, shape, mesh))


def on_mesh(params: Params, dtype: str, mesh: jax.sharding.Mesh | None) -> Params:
    """Parameters in memory, floating-point ones in `dtype`, spread over the mesh or on the default
    device.
    """
    sharding, placed = sharding_over(mesh), {}
    for path, leaf in flatten(params).items():  # one by one, for the sake of memory
        leaf = leaf.astype(kept_dtype(leaf.dtype, dtype), copy=False)
        placed[path] = jax.device_put(leaf, sharding(path, leaf.shape))
    return unflatten(placed)


def is_diffusers(directory: Path) -> bool:
    """Whether it is neither ours nor a training run's, and has what pipelines' directories have."""
    ours = (directory / MODEL_FILE).is_file() or (directory / CHECKPOINTS).is_dir()
    original = (directory / "config.yml").is_file() or (
        pickles_in(directory) and not any(directory.glob("*.safetensors"))
    )
    return not ours and (original or (directory / diffusers_directory.INDEX).is_file())


def load_diffusers(
    directory: Path,
    name: str,
    kept: Kept,
    variant: str | None = None,
    encoder_weights: bool = True,
) -> Pipeline:
    """A pipeline in diffusers' layout; the parameters are read when first used.

    encoder_weights: False where those of a text encoder may be missing, as another model has them.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: they are damaged, or hold a value that is not supported, which is named.
    """
    if diffusers_directory.read_index(directory)[0] == diffusers_directory.PRX_PIXEL:
        return load_prx(directory, name, kept, variant)
    found = diffusers_directory.read_directory(directory, variant, encoder_weights)
    cascade, dtype = diffusers_pipeline.cascade_from_diffusers(found, kept.dtype), kept.dtype
    (stage,) = cascade.stages
    given = found, stage, dtype, kept.place(stage.name)
    readers = {stage.name: partial(diffusers_pipeline.read_unet, *given)}
    probe = None
    if found.text_encoder is not None:
        own = found, cascade.encoder
        readers[TEXT_ENCODER] = partial(
            diffusers_pipeline.read_encoder, *own, dtype, kept.place(TEXT_ENCODER)
        )
        probe = partial(diffusers_pipeline.probe_encoder, *own, PROBED)
    # Not of the text encoder: of several chained models, only one needs to have it.
    fingerprint = weights_fingerprint(found.unet, dtype)
    return Pipeline(cascade, LazyParams(readers, probe), name=name, fingerprint=fingerprint)


def load_prx(directory: Path, name: str, kept: Kept, variant: str | None = None) -> Pipeline:
    """PRXPixel in diffusers' layout, without its text encoder; errors as of `load_diffusers`."""
    found = diffusers_directory.read_prx(directory, variant)
    cascade = prx_pipeline.cascade_from_diffusers(found, kept.dtype)
    (stage,) = cascade.stages
    given = found, stage, kept.dtype, kept.place(stage.name)
    readers = {stage.name: partial(prx_pipeline.read_network, *given)}
    fingerprint = weights_fingerprint(found.network, kept.dtype)
    return Pipeline(cascade, LazyParams(readers), name=name, fingerprint=fingerprint)


def weights_fingerprint(weights: diffusers_directory.Weights, dtype: str) -> str:
    """Of the files of a network's parameters, read in a dtype."""
    files = {tensor.path.name for tensor in open_tensors(*weights).values()}
    return f"{encoder_files.fingerprint(weights.directory, files)}-{dtype}"


def load_workdir(
    directory: Path, kept: Kept, step: Whole | None = None, ema: Average = True
) -> Pipeline:
    """A checkpoint of a training run; the average of its parameters where it keeps one, or that of
    a width.

    A frozen encoder is read from the workdir, and the network to which the run trained an adapter,
    which is merged in, where the run found it.
    """
    step, params, run = read_run(directory, step, ema)
    cascade = description.from_dict(run["model"], directory)
    params = on_mesh(params, kept.dtype, kept.mesh)
    stage = cascade.stages[0]
    readers = {stage.name: lambda: params["network"]}
    if "lora" in params:
        source = run["config"]["init_from"]
        check_present(source, directory)
        base = load_model(source, dtype=kept.dtype, mesh=kept.mesh)
        name = base.cascade.stages[stage_index(base.cascade, stage.name)].name
        scale = run_lora(run).scale
        readers[stage.name] = lambda: merge_lora(base.params[name], params["lora"], scale)
    if TEXT_ENCODER in params:
        readers[TEXT_ENCODER] = lambda: params[TEXT_ENCODER]
    elif cascade.encoder is not None:
        readers[TEXT_ENCODER] = partial(frozen_encoder, directory, run, cascade, kept)
    notes = {"step": step} if isinstance(ema, bool) else {"step": step, "ema": float(ema)}
    return Pipeline(cascade, LazyParams(readers), name=directory.name, notes=notes)


def frozen_encoder(
    directory: Path,
    run: Mapping[str, Any],
    cascade: Cascade,
    kept: Kept,
) -> Params:
    """The text encoder that a run did not train: the one that its workdir keeps, or its source's.

    Raises:
        ValueError: there is neither.
    """
    if encoder_files.is_kept(directory):
        wanted = cascade.encoder.config
        return encoder_files.read_kept(directory, wanted, kept.dtype, kept.place(TEXT_ENCODER))
    config = run["config"]
    source = config["text"].get("init_from") or config.get("init_from")
    if source is None:
        raise ValueError(f"{directory} has no text encoder: text.init_from is None.")
    check_present(source, directory)
    return load_encoder(source, dtype=kept.dtype, mesh=kept.mesh, quantize=kept.quantize)[1]


def check_present(source: str, workdir: Path) -> None:
    """ValueError where a run's workdir refers to a directory that is gone (they are absolute)."""
    if os.path.isabs(source) and not Path(source).is_dir():
        raise ValueError(f"{workdir} was trained from {source}: it is gone.")


def load_encoder(
    source: str | os.PathLike,
    *,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    quantize: str | None = None,
) -> tuple[T5Config, Params]:
    """A text encoder's config and parameters.

    Args:
        source: an encoder of Hugging Face, of T5X or of ours; or whatever `load_model` reads.
        dtype: of the parameters.
        mesh: devices over which to spread them, by the rules of training.
        quantize: what their kernels are kept in, as of `load_model`.

    Raises:
        ValueError: the model reads no text, or its files are damaged.
    """
    source = expand_home(source)
    if encoder_files.is_encoder(source):
        check_quantize(quantize)
        place = Kept(dtype, mesh, quantize).place(TEXT_ENCODER)
        config, params = encoder_files.read_encoder(source, dtype, place)
        return config, params if quantize is None else renamed(params, quantize)
    pipeline = load_model(source, dtype=dtype, mesh=mesh, quantize=quantize)
    if pipeline.cascade.encoder is None:
        raise ValueError(f"{source} holds no text encoder: say with text.init_from where one is.")
    return pipeline.cascade.encoder.config, pipeline.params[TEXT_ENCODER]


def export_lora(workdir: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Writes the adapter of a training run, its newest checkpoint's, as safetensors.

    Raises:
        ValueError: the run trained no adapter.
    """
    workdir, path = user_path(workdir), user_path(path)
    _, params, run = read_run(workdir)
    if "lora" not in params:
        raise ValueError(f"{workdir} trained the parameters themselves, not an adapter.")
    if jax.process_index() == 0:
        stage = description.from_dict(run["model"], workdir).stages[0]
        save_lora(path, stage, params["lora"], run_lora(run))
    return path


def run_lora(run: Mapping[str, Any]) -> LoraConfig:
    """The config's section `lora` of a run that trained an adapter."""
    return from_dict(LoraConfig, run["config"]["lora"], "lora")
