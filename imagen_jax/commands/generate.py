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

from imagen_jax.storage.folders import output_folder


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parse.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint")
    add(
        "--model",
        type=names,
        help="shipped model, model directory, training workdir or name on the Hugging Face hub "
        "(default: emoji); stages trained apart in a row: A,B",
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
    add("--label", type=int, nargs="+", help="classes, for a model of classes instead of prompts")
    add("--batch_size", type=int, help="images at a time (default: 4 on a CPU, else 16)")
    add("--from_png", type=Path, metavar="FILE", help="make this image again, all else left out")
    add("--aspect_ratio", help="width to height, such as 16:9, instead of a square")
    add("--image", type=Path, metavar="FILE", help="image to edit, or with --mask to inpaint")
    add("--mask", type=Path, metavar="FILE", help="white where --image is to be drawn anew")
    add(
        "--strength", type=numbers(float), help="of the edit, in (0, 1]: less keeps more of --image"
    )
    add("--upscale", type=Path, metavar="FILE", help="image to enlarge")
    add(
        "--aug_level",
        type=numbers(float),
        help="noise on what stages enlarge, in [0, 1]; or A,A,... by stage",
    )
    add("--low_memory", action="store_true", help="only one stage's parameters at a time")
    add("--no_grid", action="store_true", help="no grid.png")
    add("--quiet", action="store_true", help="no progress bar")
    return parse


def numbers(kind: type):
    """A reader of "3" as a number and of "3,1" as numbers by stage."""

    def number(text: str):
        values = [kind(part) for part in text.split(",")]
        return values[0] if len(values) == 1 else values

    number.__name__ = kind.__name__  # what argparse calls a wrong value
    return number


def names(text: str) -> str | list[str]:
    values = text.split(",")
    return values[0] if len(values) == 1 else values


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
        pipeline, images = paint(options) if settings is None else paint_again(options, settings)
        seconds = time.monotonic() - began
        write(options, images)
    made = images[0].info["imagen_jax"]
    ran = pipeline.cascade.stages[: pipeline.sizes.index(made["size"]) + 1]
    stages = {
        stage.name: {key: entry[key] for key in ("sampler", "steps", "guidance")}
        for stage, entry in zip(ran, made["sampling"], strict=False)
    }
    print(
        f"{len(images)} images of {made['size']} pixels in {seconds:.1f} s; "
        f"seed {made['seed']}; {json.dumps(stages)}"
    )


def check_images(options: argparse.Namespace) -> None:
    """ValueError where options of editing, inpainting and enlarging do not go together."""
    needs = {"--mask": "--image", "--strength": "--image"}
    for name, needed in needs.items():
        given = getattr(options, name[2:]) is not None
        if given and getattr(options, needed[2:]) is None:
            raise ValueError(f"{name} is for {needed}, which is not given.")
    alone = [name for name in ("image", "upscale", "aspect_ratio") if getattr(options, name)]
    if len(alone) > 1:
        raise ValueError(f"--{alone[0]} and --{alone[1]} do not go together.")


def paint(options: argparse.Namespace) -> tuple[Any, Any]:
    """(the pipeline, images of the prompts)."""
    from imagen_jax.pipeline.loading import load_model

    pipeline = load_model(options.model or "emoji", dtype=options.dtype, variant=options.variant)
    if options.lora is not None:
        pipeline.load_lora(options.lora, options.lora_scale)
    prompts = options.prompts or None
    how = {
        "guidance": options.guidance,
        "steps": options.steps,
        "sampler": options.sampler,
        "spacing": options.spacing,
        "seed": options.seed,
        "negative_prompt": options.negative_prompt,
        "label": options.label,
        "batch_size": options.batch_size,
        "progress": not options.quiet,
        "aug_level": options.aug_level,
        "low_memory": options.low_memory,
    }
    count = {"num_images": options.num_images, "size": options.size}
    strength = {} if options.strength is None else {"strength": options.strength}
    if options.upscale is not None:
        images = pipeline.upscale(options.upscale, prompts, **count, **how)
    elif options.mask is not None:
        images = pipeline.inpaint(options.image, options.mask, prompts, **strength, **count, **how)
    elif options.image is not None:
        images = pipeline.edit(options.image, prompts, **strength, **count, **how)
    else:
        images = pipeline.generate_images(
            prompts, aspect_ratio=options.aspect_ratio, **count, **how
        )
    return pipeline, images


def paint_again(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[Any, Any]:
    """(the pipeline, the image of these settings)."""
    from imagen_jax.pipeline.loading import load_model

    try:
        pipeline = load_model(
            options.model or settings.get("model", "emoji"),
            dtype=options.dtype,
            variant=options.variant,
        )
    except ValueError as error:
        raise ValueError(f"{error} Tell with --model where the image's model is.") from None
    if options.lora is not None:
        pipeline.load_lora(options.lora, options.lora_scale)
    if settings.get("fingerprint") != pipeline.fingerprint:
        print(
            f"Warning: {options.from_png} was made by other weights of {pipeline.name!r}, or in "
            "another dtype; the image will differ.",
            file=sys.stderr,
        )
    return pipeline, pipeline.generate_again(settings, progress=not options.quiet)


def write(options: argparse.Namespace, images: Any) -> None:
    """One PNG an image and, of several, a grid; prints their names."""
    from imagen_jax.images.grid import font_for
    from imagen_jax.images.png import save_png

    made = [image.info["imagen_jax"] for image in images]
    digits = max(4, len(str(made[-1]["index"])))
    for image, entry in zip(images, made, strict=True):
        path = options.out / file_name(entry["index"], entry["prompt"], digits)
        save_png(image, path)
        print(path)
    if not options.no_grid and len(images) > 1:
        columns = options.num_images if 1 < options.num_images <= 8 else None
        images.grid(columns).save(options.out / "grid.png")
        print(options.out / "grid.png")
        for number, caption in enumerate(images.captions or [], start=1):
            if font_for(caption, 15) is None:
                print(f"  image {number} of the grid: {caption} (no font here draws it)")


def main() -> int:
    options = parser().parse_args()
    warnings.showwarning = lambda message, *rest: print(f"Warning: {message}", file=sys.stderr)
    try:
        generate(options)
    except (ValueError, OSError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
