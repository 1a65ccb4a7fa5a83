"""Models to and from other people's files.

    python scripts/convert.py --model runs/if --to diffusers --out models/if_diffusers
    python scripts/convert.py --model runs/if --to diffusers --part unet --out models/unet \
        --dtype float16 --variant fp16
    python scripts/convert.py --model DeepFloyd/IF-I-M-v1.0 --to imagen_jax --out models/if_m
    python scripts/convert.py --model t5x/checkpoint_1000 --to imagen_jax --out models/t5
    python scripts/convert.py --model clip-vit-large-patch14 --to imagen_jax --out models/clip
    python scripts/convert.py --model pt_inception-2015-12-05-6726825d.pth --to imagen_jax \
        --out models/inception

To diffusers: a trained stage of DeepFloyd IF's blocks (a workdir, a model directory or a shipped
model), as IFPipeline or IFSuperResolutionPipeline, with its text encoder and tokenizer. Whatever
diffusers cannot express is an error that names it. --part unet writes the network alone, which asks
nothing of the schedule; --part text_encoder a Hugging Face T5.

To imagen_jax: a diffusers directory as a model directory for load_model; or a text encoder, of
Hugging Face or T5X, as text_encoder.safetensors and text_encoder.json for `text.init_from`; or a
network whose features metrics compare, as features.safetensors and features.json: CLIP of Hugging
Face (OpenAI's and OpenCLIP's), and FID's Inception from pytorch-fid's .pth file (which needs torch)
or from TensorFlow's graph (classify_image_graph_def.pb).
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import one_line_errors
from imagen_jax.storage.folders import output_folder

DTYPES = ("float32", "float16", "bfloat16")


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parse.add_argument
    add("--model", required=True, help="what to convert: a directory, or a model's name")
    add("--to", required=True, choices=("diffusers", "imagen_jax"))
    add("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    add("--part", choices=("pipeline", "unet", "text_encoder"), default="pipeline")
    add("--stage", help="of several stages, the one to convert")
    add(
        "--dtype",
        choices=DTYPES,
        help="of the weights on disk (default: bfloat16 for imagen_jax, float32 for features)",
    )
    add("--variant", help="of diffusers' weights, written or read: fp16 in model.fp16.safetensors")
    return parse


def convert(options: argparse.Namespace) -> None:
    if options.to == "imagen_jax":
        to_imagen_jax(options)
    elif options.part == "text_encoder":
        to_huggingface(options)
    else:
        to_diffusers(options)
    files = [file for file in options.out.rglob("*") if file.is_file()]
    print(f"{options.out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")


def to_diffusers(options: argparse.Namespace) -> None:
    from imagen_jax.cascade.cascade import TEXT_ENCODER, stage_index
    from imagen_jax.convert import diffusers_export
    from imagen_jax.pipeline.loading import load_model

    pipeline = load_model(options.model, dtype=in_memory(options.dtype))
    index = stage_index(pipeline.cascade, options.stage)
    stage, settings = pipeline.cascade.stages[index], pipeline.cascade.sampling[index]
    files = {"dtype": options.dtype, "variant": options.variant}
    if options.part == "unet":
        diffusers_export.check_unet(stage)
        diffusers_export.save_unet(options.out, stage, pipeline.params[stage.name], **files)
        return
    encoder = pipeline.cascade.encoder if stage.conditioning == "text" else None
    diffusers_export.check_pipeline(stage, encoder)
    words = None if encoder is None else pipeline.params[TEXT_ENCODER]
    params = pipeline.params[stage.name]
    notes = diffusers_export.save_pipeline(
        options.out, stage, settings, params, encoder, words, **files
    )
    arguments = diffusers_export.call_arguments(stage, settings)
    print("call it with", ", ".join(f"{name}={value}" for name, value in arguments.items()))
    for note in notes:
        print(f"note: {note}")


def in_memory(dtype: str | None) -> str:
    """In what to read the weights that are to be written in `dtype`: no more than that needs."""
    return "bfloat16" if dtype == "bfloat16" else "float32"


def to_huggingface(options: argparse.Namespace) -> None:
    from imagen_jax.convert.t5 import save_huggingface
    from imagen_jax.pipeline.loading import load_encoder

    config, params = load_encoder(options.model, dtype=in_memory(options.dtype))
    save_huggingface(options.out, config, params, dtype=options.dtype, variant=options.variant)


def write_text_encoder(options: argparse.Namespace, dtype: str) -> None:
    """The text encoder of a whole model, in our form."""
    from imagen_jax.cascade.cascade import TEXT_ENCODER
    from imagen_jax.pipeline.encoder_files import write_encoder
    from imagen_jax.pipeline.loading import load_model
    from imagen_jax.text.tokenizers import copy_tokenizer

    pipeline = load_model(options.model, dtype=in_memory(dtype), variant=options.variant)
    encoder = pipeline.cascade.encoder
    if encoder is None:
        raise ValueError(f"{options.model} holds no text encoder")
    write_encoder(options.out, encoder.config, pipeline.params[TEXT_ENCODER], dtype=dtype)
    copy_tokenizer(encoder.tokenizer, options.out)


def to_imagen_jax(options: argparse.Namespace) -> None:
    from imagen_jax.evaluation.feature_files import is_feature_network
    from imagen_jax.pipeline.encoder_files import is_encoder, read_encoder, write_encoder

    if is_feature_network(options.model):
        to_features(options)
        return
    dtype = options.dtype or "bfloat16"
    if options.part == "unet":
        raise ValueError("--part unet is for --to diffusers")
    if options.stage is not None:
        raise ValueError("--stage is for --to diffusers; imagen_jax gets all stages")
    if is_encoder(options.model):
        config, params = read_encoder(options.model, None, variant=options.variant)
        write_encoder(options.out, config, params, dtype=dtype, tokenizer_from=options.model)
        return
    if options.part == "text_encoder":
        write_text_encoder(options, dtype)
        return
    from imagen_jax.pipeline.loading import load_model
    from imagen_jax.pipeline.model_directory import write_model

    pipeline = load_model(options.model, dtype=in_memory(dtype), variant=options.variant)
    write_model(
        options.out,
        pipeline.cascade,
        pipeline.params,
        name=pipeline.name,
        notes=pipeline.notes,
        dtype=dtype,
        release=pipeline.params.free,
    )


def to_features(options: argparse.Namespace) -> None:
    from imagen_jax.convert.inception import params_from_pytorch
    from imagen_jax.evaluation import feature_files

    path = Path(options.model)
    if path.suffix == feature_files.PICKLE_SUFFIX:
        params = params_from_pytorch(read_pickle(path), str(path))
        network = feature_files.FeatureNetwork(path.stem, None, params)
    else:
        network = feature_files.read_network(path)
    feature_files.write_network(options.out, network, options.dtype)


def read_pickle(path: Path) -> dict[str, Any]:
    """The tensors of a state dict; nothing in the file is run."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no state dict of PyTorch: {reason}") from None
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{path} is no state dict of PyTorch: it holds other things than tensors.")
    return {name: tensor.numpy() for name, tensor in state.items()}


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with one_line_errors():
        from imagen_jax.storage.checkpoint import CheckpointError
    with one_line_errors(ValueError, CheckpointError), output_folder(options.out):
        convert(options)
