r"""Measures a model, or a folder of images: FID, KID, CMMD, CLIP score and more, with a report.

    imagen-jax evaluate FOLDER_A FOLDER_B          # FID of A's images from B's
    imagen-jax evaluate --make_reference val2014/ --size 256 --reference coco.safetensors
    imagen-jax evaluate --model runs/mine --prompts coco30k --metrics fid,kid,cmmd,clip \
        --reference coco.safetensors --out results/coco
    imagen-jax evaluate --model icons --metrics psnr --data data/icons/256/heldout-00000.tar \
        --text json.captions --split all --num 100 --out results/psnr

The networks are looked for in models/inception, models/clip and models/dinov2; --features names
others.
--make_reference with --out makes the reference first and then measures.
fid, kid: distance of Inception's features from the reference's. fd_dinov2, kd_dinov2: of DINOv2's.
cmmd: of CLIP's.
clip: mean cosine of image and caption. r_precision: whether an image's own caption is the
nearest of 100.
psnr, ssim: of each super-resolution stage, given the true images of --data downsampled, beside
bicubic; or of --images beside --truth. In dB, and in [-1, 1].
images: no figure, only the images.

Several weights or levels (--guidance 1 1.35 2 --aug_level 0 0.1) make a curve: curve.csv and
curve.png set distance against alignment. DIR/report.json and DIR/report.html hold the figures, what
decides them, and why a figure cannot be compared with published ones. Images and features stay in
DIR: a run that was killed resumes. docs/evaluation.md explains the protocols.
"""

import argparse
import os
import warnings

from imagen_jax.commands.command_line import (
    EMA,
    add_guidance_options,
    entries,
    make_parser,
    names,
    numbers,
    path,
    run_parsed,
    sources,
)


def parser() -> argparse.ArgumentParser:
    # EvaluationRequest has the defaults.
    parse = make_parser(__doc__, argument_default=argparse.SUPPRESS)
    add = parse.add_argument
    add("folders", nargs="*", type=path, metavar="FOLDER", help="A B: --images A --reference B")
    add("--model", type=sources, help="shipped model, model directory or training workdir "
        "(default: icons); A,B chains separately trained stages")  # fmt: skip
    add("--dtype", help="of the parameters: float32 (default) or bfloat16")
    add("--variant", help="of DeepFloyd IF's weights, such as fp16")
    add("--ema", **EMA)
    add("--images", type=path, metavar="DIR", help="measure these images instead of a model's: "
        "named after the prompts' ids, else in the order of their names, 2 before 10")  # fmt: skip
    add("--truth", type=path, metavar="DIR", help="true images, of the same names, for psnr, ssim")
    add("--prompts", help="what a model generates images of: coco30k, drawbench or a file")
    add("--data", type=path, help="file of coco30k or drawbench; for psnr and ssim of a model, npz "
        "file or tars of true images with captions")  # fmt: skip
    add("--metrics", type=words, help="of fid, kid, fd_dinov2, cmmd, clip, ...: A,B (default: "
        "fid with a reference, psnr,ssim with --truth)")  # fmt: skip
    add("--features", type=folders, metavar="DIR,DIR", help="converted weights of Inception, "
        "CLIP or DINOv2 (default: models/inception, ...), or random_inception: random ones, whose "
        "figures are not FID")  # fmt: skip
    add("--resize", type=words, help="for Inception, of legacy_tensorflow (default), pytorch_fid, "
        "clean; for DINOv2, of dgm_eval (default), edm2: A,B")  # fmt: skip
    add("--reference", type=path, metavar="DIR|FILE", help="folder of true images, or the file of "
        "their features")  # fmt: skip
    add("--make_reference", metavar="DIR", help="write --reference of a folder, an npz file "
        "or tfds:NAME:SPLIT")  # fmt: skip
    add("--split", help="of npz files and tars: train, heldout (default) or all")
    add("--text", help="where tars of --data have the captions (default: txt), such as "
        "json.captions")  # fmt: skip
    add("--num", type=int, help="the first N prompts; of --data, N images, always the same ones")
    add("--num_images", type=int, help="images a prompt (default: 1)")
    add("--guidance", type=by_stage, nargs="+", metavar="W", help="weights of the text: W W ... "
        "are the points of a curve; W,W by stage")  # fmt: skip
    add_guidance_options(parse)
    add("--aug_level", type=by_stage, nargs="+", metavar="A", help="noise on the low-resolution "
        "input of stages, in [0, 1]: A A ...; A,A by stage")  # fmt: skip
    add("--steps", type=numbers(int), help="of the sampler; N, or N,N,... by stage")
    add("--sampler", type=names, help="such as ddpm, heun or unipc; or S,S,... by stage")
    add("--size", type=int, help="of the images (default: 256 for coco30k, else the largest)")
    add("--seed", type=int, help="of the noise (default: 0)")
    add("--batch_size", type=int, help="images at a time (default: 16)")
    add("--share", metavar="I/N", help="do only this share of the work, from 1; then run without")
    add("--skip_broken", action="store_true", help="leave images out that cannot be read")
    add("--out", type=path, metavar="DIR", help="directory for report.json and all else; without "
        "it the figures of given images are only printed")  # fmt: skip
    return parse


def by_stage(text: str) -> float | tuple[float, ...]:
    """ "1" -> 1.0 and "2,8" -> (2.0, 8.0), as the other commands read it."""
    value = numbers(float)(text)
    return tuple(value) if isinstance(value, list) else value


def folders(text: str) -> tuple[str, ...]:
    """Names separated by commas; a folder that is there may have commas in its name."""
    found = sources(text)
    return (found,) if isinstance(found, str) else tuple(found)


def words(text: str) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b"), as the other commands read it."""
    return tuple(entries(text))


def run(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.devices import memory
    from imagen_jax.devices.accelerators import unused_accelerator
    from imagen_jax.evaluation.request import KNOWN_METRICS, EvaluationRequest
    from imagen_jax.evaluation.run import evaluate

    if note := unused_accelerator():
        warnings.warn(note, stacklevel=1)
    values = vars(options)
    given = values.pop("folders", [])
    for name in map(str, given):
        if name in KNOWN_METRICS and not os.path.exists(name):
            raise ValueError(f"There is no folder {name}; --metrics takes a list with commas: A,B.")
    for name, folder in zip(("images", "reference"), given, strict=False):
        if name in values or len(given) > 2:
            raise ValueError(
                f"FOLDER {given[-1]} is one too many: A B is short for --images A --reference B."
            )
        values[name] = folder
    request = EvaluationRequest(**values)
    with memory.explained(f"--batch_size is {request.batch_size}: give less."):
        evaluate(request)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
