"""Images from text: one PNG an image, and one grid of all with their prompts below.

python scripts/generate.py "a smiling cat with heart eyes" "红苹果" --num_images 4 --out samples/
python scripts/generate.py --from_png samples/0003_red_heart.png --out again/
"""

import argparse
import json
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import make_parser, names, numbers, run_parsed
from imagen_jax.storage.folders import output_folder

# Options that all of a pipeline's methods take under the same name.
PIPELINE_OPTIONS = (
    "num_images",
    "size",
    "guidance",
    "steps",
    "sampler",
    "spacing",
    "seed",
    "negative_prompt",
    "label",
    "batch_size",
    "aug_level",
    "low_memory",
)


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what the images show")
    add(
        "--model",
        type=names,
        help="shipped model, model directory, training workdir or name on the Hugging Face hub "
        "(default: emoji); A,B to chain separately trained stages",
    )
    add("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    add("--variant", help="of DeepFloyd IF's weights, such as fp16")
    add("--lora", type=Path, metavar="FILE", help="adapter to load into the model, safetensors")
    add("--lora_scale", type=float, default=1.0, help="how much of the adapter (default: 1)")
    add("--num_images", type=int, default=4, help="images a prompt")
    add("--out", type=Path, default=Path("samples"), help="directory for the images")
    add("--size", type=int, help="of the images: the stage to stop at (default: the largest)")
    add("--guidance", type=numbers(float), help="weight of the text; W, or W,W,... by stage")
    add("--steps", type=numbers(int), help="of the sampler; N, or N,N,... by stage")
    add("--sampler", type=names, help="ddpm, ddim, dpmpp_2m or heun; or S,S,... by stage")
    add("--spacing", type=names, help="of the steps, such as fast27 for IF; or S,S,... by stage")
    add("--seed", type=int, help="of the noise (default: a new one, which is printed)")
    add("--negative_prompt", help="what to lead away from")
    add("--label", nargs="+", help="classes by name or number, for a model of classes")
    add("--batch_size", type=int, help="images at a time (default: 4 on a CPU, else 16)")
    add("--from_png", type=Path, metavar="FILE", help="make this image again, all else left out")
    add("--aspect_ratio", help="width to height, such as 16:9, instead of a square")
    add("--image", type=Path, metavar="FILE", help="image to edit, or with --mask to inpaint")
    add("--mask", type=Path, metavar="FILE", help="white where --image is to be regenerated")
    add(
        "--mask_alpha",
        choices=("transparent", "opaque"),
        help="which part of --mask is to be regenerated instead, whatever its color",
    )
    add(
        "--strength", type=numbers(float), help="of the edit, in (0, 1]: less keeps more of --image"
    )
    add("--upscale", type=Path, metavar="FILE", help="image to upsample")
    add(
        "--aug_level",
        type=numbers(float),
        help="noise on the input of super-resolution stages, in [0, 1]; or A,A,... by stage",
    )
    add("--low_memory", action="store_true", help="only one stage's parameters at a time")
    add("--no_grid", action="store_true", help="no grid.png")
    add("--quiet", action="store_true", help="no progress bar")
    return parse


def file_name(index: int, prompt: str | None, digits: int) -> str:
    """0007_red_heart.png: letters and digits of any script, the rest as underscores."""
    words = re.sub(r"\W+", "_", prompt or "").strip("_")[:40].strip("_")
    return f"{index:0{digits}d}_{words}.png" if words else f"{index:0{digits}d}.png"


def generate(options: argparse.Namespace) -> None:
    # After the command line is read: a wrong option need not wait for JAX.
    from imagen_jax.images.png import read_settings

    settings = None
    check_images(options)
    if options.from_png is not None:
        if options.prompts:
            raise ValueError("--from_png makes one image again; give no prompts with it.")
        settings = read_settings(options.from_png)
    elif not options.prompts and options.label is None and options.model is None:
        raise ValueError('Give a prompt: scripts/generate.py "a smiling cat with heart eyes".')
    with output_folder(options.out):
        began = time.monotonic()
        pipeline = load(options, settings)
        if settings is None:
            images = sample(pipeline, options)
        else:
            images = pipeline.generate_again(settings, progress=not options.quiet)
        seconds = time.monotonic() - began
        write(options, images)
    made = images[0].info["imagen_jax"]
    ran = pipeline.cascade.stages[: pipeline.sizes.index(made["size"]) + 1]
    stages = {
        stage.name: {key: entry[key] for key in ("sampler", "steps", "guidance")}
        for stage, entry in zip(ran, made["sampling"], strict=False)
    }
    print(
        f"{len(images)} image{'s' * (len(images) > 1)} of {made['size']} pixels "
        f"in {seconds:.1f} s; "
        f"seed {made['seed']}; {json.dumps(stages)}"
    )


def check_images(options: argparse.Namespace) -> None:
    """ValueError where options of editing, inpainting and upsampling do not go together."""
    for name in ("mask", "strength"):
        if getattr(options, name) is not None and options.image is None:
            raise ValueError(f"--{name} is for --image, which is not given.")
    if options.mask_alpha is not None and options.mask is None:
        raise ValueError("--mask_alpha is for --mask, which is not given.")
    alone = [name for name in ("image", "upscale", "aspect_ratio") if getattr(options, name)]
    if len(alone) > 1:
        raise ValueError(f"--{alone[0]} and --{alone[1]} do not go together.")


def load(options: argparse.Namespace, settings: dict[str, Any] | None) -> Any:
    """The pipeline: of the options, or else of the settings of the image to be made again."""
    from imagen_jax.devices.accelerators import unused_accelerator
    from imagen_jax.pipeline.loading import load_model

    if note := unused_accelerator():
        warnings.warn(note, stacklevel=1)
    model = options.model or (settings or {}).get("model", "emoji")
    try:
        pipeline = load_model(model, dtype=options.dtype, variant=options.variant)
    except ValueError as error:
        hint = "" if settings is None else " Tell with --model where the image's model is."
        raise ValueError(f"{error}{hint}") from None
    if options.lora is not None:
        pipeline.load_lora(options.lora, options.lora_scale)
    if settings is not None and settings.get("fingerprint") != pipeline.fingerprint:
        print(
            f"Warning: {options.from_png} was made by other weights of {pipeline.name!r}, or in "
            "another dtype; the image will differ.",
            file=sys.stderr,
        )
    return pipeline


def sample(pipeline: Any, options: argparse.Namespace) -> Any:
    """The images that the options ask for."""
    given = {name: getattr(options, name) for name in PIPELINE_OPTIONS}
    given |= {"prompt": options.prompts or None, "progress": not options.quiet}
    if options.upscale is not None:
        return pipeline.upscale(options.upscale, **given)
    if options.image is None:
        return pipeline.generate_images(aspect_ratio=options.aspect_ratio, **given)
    if options.strength is not None:
        given["strength"] = options.strength
    if options.mask is not None:
        return pipeline.inpaint(options.image, options.mask, mask_alpha=options.mask_alpha, **given)
    return pipeline.edit(options.image, **given)


def write(options: argparse.Namespace, images: Any) -> None:
    """One PNG an image and, of several, a grid; prints their names."""
    from imagen_jax.images.grid import font_for
    from imagen_jax.images.png import save_png, save_sheet

    made = [image.info["imagen_jax"] for image in images]
    digits = max(4, len(str(made[-1]["index"])))
    for image, entry in zip(images, made, strict=True):
        path = options.out / file_name(entry["index"], entry["prompt"], digits)
        save_png(image, path)
        print(path)
    if not options.no_grid and len(images) > 1:
        columns = options.num_images if 1 < options.num_images <= 8 else None
        save_sheet(images.grid(columns), options.out / "grid.png")
        print(options.out / "grid.png")
        for number, caption in enumerate(images.captions or [], start=1):
            if font_for(caption, 15) is None:
                print(f"  image {number} of the grid: {caption} (no font here has its characters)")


def main(arguments: list[str] | None = None) -> None:
    warnings.showwarning = lambda message, *rest: print(f"Warning: {message}", file=sys.stderr)
    run_parsed(parser(), generate, arguments)
