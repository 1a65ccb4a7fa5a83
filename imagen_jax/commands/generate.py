"""Images from text: one PNG an image, and one grid of all with their prompts below.

    imagen-jax generate "student, outline style" "红苹果" --num_images 4 --out samples/
    imagen-jax generate --from_png samples/0003_student_outline_style.png --out again/

Each batch of images is written as soon as it is done: what is finished stays after Ctrl-C. A folder
that holds images already is refused without --overwrite.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import (
    EMA,
    GUIDANCE_FIELDS,
    MODERATION,
    add_guidance_options,
    make_parser,
    names,
    numbers,
    path,
    prompt,
    run_parsed,
    sources,
)
from imagen_jax.images.file_names import GRID_FILE, check_folder_name, own_images
from imagen_jax.pipeline.shipped import DEFAULT, list_models
from imagen_jax.storage.folders import output_folder

EXPLAIN_FILE = "explain.png"
# Options that all of a pipeline's methods take under the same name.
PIPELINE_OPTIONS = (
    "num_images",
    "size",
    "guidance",
    "guidance_kind",
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

# What the settings in an image say, so that it is not said twice.
OF_AN_IMAGE = (
    *("size", "guidance", "guidance_kind", *GUIDANCE_FIELDS, "steps", "sampler", "spacing", "seed"),
    *("negative_prompt", "label", "aug_level", "aspect_ratio", "image", "mask", "mask_alpha"),
    *("strength", "upscale"),
)


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("prompts", nargs="*", type=prompt, metavar="PROMPT", help="what the images show")
    add(
        "--model",
        type=sources,
        help=f"shipped model ({', '.join(list_models())}), model directory, training workdir or "
        f"name on the Hugging Face hub (default: {DEFAULT}); A,B to chain separately trained "
        "stages",
    )
    add("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    add("--quantize", help="keep kernels in int8, int4 (text encoder) or int8_dynamic")
    add("--variant", help="of DeepFloyd IF's weights, such as fp16")
    add("--ema", default=True, **EMA)
    add("--lora", type=path, metavar="FILE",
        help="adapter (LoRA): safetensors, or a folder of peft")  # fmt: skip
    add("--lora_scale", type=float, help="how much of the adapter (default: 1)")
    add("--num_images", type=int, default=4, help="images a prompt")
    add("--out", type=path, default=Path("samples"), help="directory for the images")
    add("--size", type=int, help="of the images: the stage to stop at (default: the largest)")
    add_sampling_options(parse)
    add("--seed", type=int, help="of the noise (default: a new one, which is printed)")
    add("--negative_prompt", type=prompt, help="what to lead away from")
    add("--label", nargs="+", help="classes by name or number, for a model of classes")
    add("--batch_size", type=int, help="images at a time (default: 4 on a CPU, else 16)")
    add("--from_png", type=path, metavar="FILE", help="make this image again, all else left out")
    add("--aspect_ratio", help="width to height, such as 16:9, instead of a square")
    add("--image", type=path, metavar="FILE", help="image to edit, or with --mask to inpaint")
    add("--mask", type=path, metavar="FILE", help="white where --image is to be regenerated")
    add(
        "--mask_alpha",
        choices=("transparent", "opaque"),
        help="which part of --mask is to be regenerated instead, whatever its color",
    )
    add("--strength", type=numbers(float),
        help="of the edit, in (0, 1]: less keeps more of --image")  # fmt: skip
    add("--upscale", type=path, metavar="FILE", help="image to upsample")
    add("--aug_level", type=numbers(float), help="noise on the input of super-resolution stages, "
        "in [0, 1]; or A,A,... by stage")  # fmt: skip
    add("--moderation", **MODERATION)
    add("--low_memory", action="store_true", help="only one stage's parameters at a time")
    add_output_options(parse)
    return parse


def add_sampling_options(parse: argparse.ArgumentParser) -> None:
    """How each stage is sampled; of imagen-jax dataset, too."""
    add = parse.add_argument
    add("--guidance", type=numbers(float), help="weight of the text; W, or W,W,... by stage")
    add_guidance_options(parse)
    add("--steps", type=numbers(int), help="of the sampler; N, or N,N,... by stage")
    add("--sampler", type=names, help="such as ddpm, heun or unipc; or S,S,... by stage")
    add("--spacing", type=names, help="of the steps, such as karras, or fast27 for IF; or S,S,...")


def add_output_options(parse: argparse.ArgumentParser) -> None:
    """Those of what is written."""
    add = parse.add_argument
    add("--explain", action="store_true", help="also write where each word counts: explain.png, "
        "and overlays and arrays in a folder for each image")  # fmt: skip
    add("--explain_layers", metavar="NAME", help="with --explain: only layers whose names begin "
        "so, such as mid, or all as DAAM (default: of a U-Net those on the way up)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace images of the same names in --out")
    add("--no_grid", action="store_true", help="no grid.png")
    add("--quiet", action="store_true", help="no progress bar, and not what is made by what")


def generate(options: argparse.Namespace) -> None:
    settings = None
    check_images(options)
    if not (options.prompts or options.label or options.model or options.from_png):
        raise ValueError('Give a prompt: imagen-jax generate "red heart".')
    check_folder(options.out, options.overwrite)
    # After the command line is read: a wrong option need not wait for JAX.
    from imagen_jax.images.image_file import read_settings, save_image

    if options.from_png is not None:
        settings = read_settings(options.from_png)
    with output_folder(options.out):
        with uncollected():
            pipeline = load(options, settings)
        count = 1 if settings else options.num_images * len(options.prompts or options.label or [0])
        if not options.quiet:
            print(first_line(pipeline, count, (settings or vars(options)).get("size")), flush=True)
        began = time.monotonic()
        with saving(options.out, count) as keep:
            if settings is None:
                images = sample(pipeline, options, keep)
            else:
                images = pipeline.generate_again(
                    settings, progress=not options.quiet, finished=keep
                )
        seconds = time.monotonic() - began
        if not options.no_grid and len(images) > 1:
            save_image(images.grid(), options.out / GRID_FILE)
            print(options.out / GRID_FILE)
    print(last_line(pipeline, images, options.out, seconds))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected meanwhile: of the million objects that an import of JAX makes all stay,
    and to look through them again and again takes a fifth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def first_line(pipeline: Any, count: int, size: int | None) -> str:
    """What is made by what: the model, the device, the stages up to the size asked for."""
    import jax

    from imagen_jax.devices.accelerators import describe

    stages = []
    for stage in pipeline.cascade.stages:
        guide = pipeline.guides.get(stage.name)
        by = f", guided by {guide.about['model']}" if guide is not None else ""
        stages.append(f"{stage.name} ({stage.resolution} pixels{by})")
    if size in pipeline.sizes:
        stages = stages[: pipeline.sizes.index(size) + 1]
    return (
        f"{pipeline.name} on {describe(jax.devices()[:1])}: {count} image{'s' * (count != 1)}, "
        f"{' -> '.join(stages)}"
    )


def last_line(pipeline: Any, images: Any, out: Path, seconds: float) -> str:
    """What was made, and all that decides it."""
    made = images[0].info["imagen_jax"]
    ran = pipeline.cascade.stages[: pipeline.sizes.index(made["size"]) + 1]
    stages = {
        stage.name: {key: entry[key] for key in ("sampler", "steps", "guidance")}
        for stage, entry in zip(ran, made["sampling"], strict=False)
    }
    return (
        f"{len(images)} image{'s' * (len(images) > 1)} of {made['size']} pixels in {out}, in "
        f"{seconds:.1f} s; seed {made['seed']}; {json.dumps(stages)}"
    )


def check_folder(out: Path, overwrite: bool) -> None:
    """ValueError where a folder holds images of an earlier run, which new ones could replace, or is
    named like an image.
    """
    check_folder_name(out, "--out")
    own = [] if overwrite or not out.is_dir() else own_images(out)
    if own:
        free = next(n for n in itertools.count(2) if not Path(f"{out}_{n}").exists())
        raise ValueError(
            f"--out {out} holds images of another run, such as {own[0]}: give another folder "
            f"(--out {out}_{free}), or --overwrite to replace images of the same names."
        )


@contextlib.contextmanager
def saving(out: Path, count: int) -> Iterator[Callable[[Any], None]]:
    """What saves the images of each batch; where not all are made, says how many are, and how to
    make the others. SIGTERM stops as Ctrl-C does.
    """
    from imagen_jax.pipeline.progress import print_beside_bars

    saved: list[Path] = []
    seeds: set[int] = set()

    def keep(batch: Any) -> None:
        seeds.add(batch[0].info["imagen_jax"]["seed"])
        for place in range(len(batch)):
            saved.extend(batch[place : place + 1].save(out))
            print_beside_bars(saved[-1])

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield keep
    except BaseException:
        if saved:
            print(
                f"{len(saved)} of {count} images are finished, in {out}. To make all {count}: the "
                f"same command with --seed {seeds.pop()} --overwrite.",
                file=sys.stderr,
            )
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def check_images(options: argparse.Namespace) -> None:
    """ValueError where options do not go together."""
    given = {name for name, value in vars(options).items() if value is not None}
    pairs = (
        ("mask", "image"),
        ("strength", "image"),
        ("mask_alpha", "mask"),
        ("lora_scale", "lora"),
        ("guide_step", "guide"),
        ("explain_layers", "explain"),
    )
    for name, of in pairs:
        if name in given and not getattr(options, of):
            raise ValueError(f"--{name} is for --{of}, which is not given.")
    if options.from_png is not None:
        if options.prompts:
            raise ValueError("--from_png makes one image again; give no prompts with it.")
        for name in OF_AN_IMAGE:
            if name in given:
                raise ValueError(
                    f"--from_png makes an image as its own settings say: --{name} does not go "
                    "with it."
                )
    for text in options.prompts:
        if text.endswith((".txt", ".csv", ".tsv", ".jsonl")) and os.path.isfile(text):
            raise ValueError(
                f"{text} is a file, and a prompt is what an image shows. Images for all lines of a "
                f"file: imagen-jax evaluate --model MODEL --prompts {text} --metrics images --out "
                "DIR."
            )
    if options.explain and (options.upscale or options.from_png or not options.prompts):
        raise ValueError("--explain needs a prompt, and does not go with --upscale or --from_png.")
    alone = [name for name in ("image", "upscale", "aspect_ratio") if getattr(options, name)]
    if len(alone) > 1:
        raise ValueError(f"--{alone[0]} and --{alone[1]} do not go together.")


def load(options: argparse.Namespace, settings: dict[str, Any] | None) -> Any:
    """The pipeline: of the options, or else of the settings of the image to be made again."""
    from imagen_jax.devices.accelerators import unused_accelerator
    from imagen_jax.images import signing
    from imagen_jax.pipeline.loading import load_guides, load_model
    from imagen_jax.pipeline.moderation import read_moderation

    signing.credentials()  # wrong ones are an error before a model is loaded
    moderation = None if options.moderation is None else read_moderation(options.moderation)
    if note := unused_accelerator():
        warnings.warn(note, stacklevel=1)
    model = options.model or (settings or {}).get("model", DEFAULT)
    dtype, guide = options.dtype, options.guide
    if guide is not None:
        guide = load_guides(guide, dtype=dtype, step=options.guide_step)
    try:
        given = {"variant": options.variant, "ema": options.ema, "quantize": options.quantize}
        pipeline = load_model(model, dtype=dtype, guide=guide, **given)
    except ValueError as error:
        hint = "" if settings is None else " Tell with --model where the image's model is."
        raise ValueError(f"{error}{hint}") from None
    if options.lora is not None:
        pipeline.load_lora(options.lora, 1.0 if options.lora_scale is None else options.lora_scale)
    check_guides(options, settings or {}, pipeline)
    pipeline.moderation = moderation
    if settings is not None and settings.get("fingerprint") != pipeline.fingerprint:
        print(
            f"Warning: {options.from_png} was made by other weights of {pipeline.name!r}, or in "
            "another dtype; the image will differ.",
            file=sys.stderr,
        )
    return pipeline


def check_guides(options: argparse.Namespace, settings: dict[str, Any], pipeline: Any) -> None:
    """ValueError where an image to be made again was guided by a model that is not there; a warning
    where it is another one.
    """
    for stage, wanted in (settings.get("guide") or {}).items():
        guide = pipeline.guides.get(stage)
        if guide is None:
            raise ValueError(
                f"Stage {stage!r} of {options.from_png} was guided by a second model, {wanted}: "
                "tell with --guide and --guide_step where it is."
            )
        if any(guide.about.get(key) != wanted.get(key) for key in ("fingerprint", "step")):
            print(
                f"Warning: {options.from_png} was guided by {wanted}, and this is "
                f"{dict(guide.about)}; the image will differ.",
                file=sys.stderr,
            )


def sample(pipeline: Any, options: argparse.Namespace, finished: Callable[[Any], None]) -> Any:
    """The images that the options ask for; `finished` is called with each batch of them."""
    from imagen_jax.diffusion.overrides import with_overrides

    given = {name: getattr(options, name) for name in PIPELINE_OPTIONS}
    given |= {"prompt": options.prompts or None, "progress": not options.quiet}
    given["finished"] = finished
    fields = {name: getattr(options, name) for name in GUIDANCE_FIELDS}
    given["sampling"] = with_overrides(pipeline.cascade.sampling, **fields)
    if options.explain:
        return explain(pipeline, options, given)
    if options.upscale is not None:
        return pipeline.upscale(options.upscale, **given)
    if options.image is None:
        return pipeline.generate_images(aspect_ratio=options.aspect_ratio, **given)
    if options.strength is not None:
        given["strength"] = options.strength
    if options.mask is not None:
        return pipeline.inpaint(options.image, options.mask, mask_alpha=options.mask_alpha, **given)
    return pipeline.edit(options.image, **given)


def explain(pipeline: Any, options: argparse.Namespace, given: dict[str, Any]) -> Any:
    """As `sample`, explained: writes explain.png, and a folder beside each image."""
    from imagen_jax.images.image_list import ImageList
    from imagen_jax.pipeline.explanation import folder_name, make_page

    more = ("image", "mask", "mask_alpha", "strength", "aspect_ratio")
    given |= {name: value for name in more if (value := getattr(options, name)) is not None}
    found = pipeline.explain(given.pop("prompt"), layers=options.explain_layers, **given)
    for each in found:
        each.save(options.out / folder_name(each))
    make_page(found).save(options.out / EXPLAIN_FILE)
    print(options.out / EXPLAIN_FILE)
    return ImageList(each.image for each in found)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), generate, arguments)
