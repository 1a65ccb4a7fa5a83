r"""Models to and from the files of other projects.

    imagen-jax convert --model runs/if --to diffusers --out models/if_diffusers
    imagen-jax convert --model runs/if --to diffusers --part unet --out models/unet \
        --dtype float16 --variant fp16
    imagen-jax convert --model DeepFloyd/IF-I-M-v1.0 --to imagen_jax --out models/if_m
    imagen-jax convert --model runs/if --to imagen_jax --quantize int8 --out models/if_int8
    imagen-jax convert --model t5x/checkpoint_1000 --to imagen_jax --out models/t5
    imagen-jax convert --model clip-vit-large-patch14 --to imagen_jax --out models/clip
    imagen-jax convert --model dinov2-large --to imagen_jax --out models/dinov2
    imagen-jax convert --model pt_inception-2015-12-05-6726825d.pth --to imagen_jax \
        --out models/inception

To diffusers: a trained stage of DeepFloyd IF's blocks (a workdir, a model directory or a shipped
model), as IFPipeline or IFSuperResolutionPipeline, with its text encoder and tokenizer. Whatever
diffusers cannot express is an error that names it. --part unet writes only the network, whatever
its schedule is; --part text_encoder a Hugging Face T5.

To imagen_jax: a diffusers directory (DeepFloyd IF's, or PRXPixel's without its text encoder) as a
model directory for load_model; or a text encoder, of
Hugging Face or T5X, as text_encoder.safetensors and text_encoder.json for `text.init_from`; or a
network whose features the metrics compare, as features.safetensors and features.json: a CLIP
(OpenAI's or OpenCLIP's) or a DINOv2 of Hugging Face, or FID's Inception from pytorch-fid's .pth
file (which needs torch) or from TensorFlow's graph (classify_image_graph_def.pb).
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import make_parser, path, run_parsed, source
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import output_folder
from imagen_jax.storage.wrong_files import absent, look_at, refusal

DTYPES = ("float32", "float16", "bfloat16")


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--model", type=source, required=True,
        help="what to convert: a directory, or a model's name")  # fmt: skip
    add("--to", required=True, choices=("diffusers", "imagen_jax"), help="whose files to write")
    add("--out", type=path, required=True, metavar="DIR", help="directory to write")
    add("--part", choices=("pipeline", "unet", "text_encoder"), default="pipeline",
        help="what to convert of it")  # fmt: skip
    add("--stage", help="which of several stages to convert")
    add(
        "--dtype",
        choices=DTYPES,
        help="of the weights on disk (default: bfloat16 for imagen_jax, float32 for features)",
    )
    add("--quantize", help="the kernels for --to imagen_jax: int8, int4 or int8_dynamic")
    add("--variant", help="of diffusers' weights, written or read: fp16 in model.fp16.safetensors")
    return parse


def convert(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.evaluation.feature_files import is_feature_network
    from imagen_jax.pipeline import conversion
    from imagen_jax.pipeline.encoder_files import is_encoder

    source, files = options.model, {"dtype": options.dtype, "variant": options.variant}
    ours = options.to == "imagen_jax"
    require((options.quantize is None or ours, "--quantize is for --to imagen_jax"))
    if options.to == "diffusers":
        if options.part == "text_encoder":
            conversion.text_encoder_to_huggingface(source, options.out, **files)
        elif options.part == "unet":
            conversion.network_to_diffusers(source, options.out, stage=options.stage, **files)
        else:
            lines = conversion.to_diffusers(source, options.out, stage=options.stage, **files)
            print(*lines, sep="\n")
    elif is_feature_network(source):
        require((options.quantize is None, "--quantize is not for feature networks"))
        convert_features(Path(source), options.out, options.dtype)
    else:
        files |= {"dtype": options.dtype or "bfloat16", "quantize": options.quantize}
        require(
            (options.part != "unet", "--part unet is for --to diffusers"),
            (options.stage is None, "--stage is for --to diffusers; imagen_jax gets all stages"),
        )
        if options.part == "text_encoder" or is_encoder(source):
            conversion.to_text_encoder(source, options.out, **files)
        else:
            conversion.to_model_directory(source, options.out, **files)


def convert_features(source: Path, directory: Path, dtype: str | None) -> None:
    """Writes a feature network in our form; FID's Inception may come as PyTorch's file."""
    from imagen_jax.convert.inception import params_from_pytorch
    from imagen_jax.evaluation.feature_files import PICKLE_SUFFIX, read_network, write_network
    from imagen_jax.evaluation.features import FeatureNetwork

    if source.suffix == PICKLE_SUFFIX:
        params = params_from_pytorch(read_pickle(source), str(source))
        network = FeatureNetwork(source.stem, None, params)
    else:
        network = read_network(source)
    write_network(directory, network, dtype)


def read_pickle(path: Path) -> dict[str, Any]:
    """The tensors of a state dict; none of the file's code runs."""
    expected, kinds = "a state dict of PyTorch", ("zip", "pickle")
    if not path.is_file():
        raise ValueError(absent(path))
    if look_at(path, kinds) is not None:  # which needs no PyTorch
        raise ValueError(refusal(path, expected, "", kinds))
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(refusal(path, expected, reason, kinds)) from None
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{path} is not a state dict of PyTorch: it holds more than tensors")
    return {name: tensor.numpy() for name, tensor in state.items()}


def run(options: argparse.Namespace) -> None:
    with output_folder(options.out):
        convert(options)
        sizes = [file.stat().st_size for file in options.out.rglob("*") if file.is_file()]
        print(f"{options.out}: {sum(sizes) / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
