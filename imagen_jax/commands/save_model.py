r"""Training runs to one model directory, like the shipped one: weights, settings, loss curves.

    imagen-jax save_model --model runs/base64,runs/sr256 --out models/mine \
        --sampler dpmpp_2m --steps 12,1 --guidance 2,1 --threshold static --aug_level 0.2

DIR then holds model.json, the weights, the tokenizer, <stage>_curve.json of each run
(which train.py compares later runs of the same stage with) and loss.png. Settings that are not
given are those of each run's config. Other files in DIR, such as a card, are kept.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import (
    EMA,
    make_parser,
    names,
    numbers,
    path,
    run_parsed,
    sources,
)
from imagen_jax.pipeline.shipped import DEFAULT
from imagen_jax.storage.folders import output_folder, user_path

SHARD_BYTES = 16 * 2**20  # of each file of weights: the shipped model lies in git
SHOWN_TENTHS = (1, 4, 7, 9)  # of t, in the plot of the loss


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add(
        "--model",
        type=sources,
        required=True,
        help="workdirs or model directories of the stages: A,B",
    )
    add("--out", type=path, required=True, metavar="DIR", help="directory of the model")
    add("--ema", default=True, **EMA)
    add("--name", help="of the model (default: that of DIR)")
    add("--sampler", type=names, help="such as ddpm, heun or unipc; or S,S,... by stage")
    add("--steps", type=numbers(int), help="of the sampler; N, or N,N,... by stage")
    add("--guidance", type=numbers(float), help="weight of the text; W of the first, or W,W,...")
    add("--threshold", type=names, help="static, dynamic or none; or T,T,... by stage")
    add("--aug_level", type=numbers(float), help="noise on low-resolution inputs; or A,A by stage")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
        help="of the weights on disk")  # fmt: skip
    add("--quantize", help="the kernels: int8, int4 or int8_dynamic")
    add(
        "--shared",
        choices=[DEFAULT],
        help="read from this shipped model what is the same there",
    )
    add("--image", type=path, metavar="FILE", help="plot of the loss (default: DIR/loss.png)")
    return parse


def save_model(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.diffusion.overrides import with_overrides
    from imagen_jax.pipeline.loading import join_pipelines, load_model
    from imagen_jax.pipeline.model_directory import Stored, write_model

    models = [options.model] if isinstance(options.model, str) else options.model
    pipelines = [load_model(model, ema=options.ema) for model in models]
    joined = join_pipelines(pipelines)
    settings = with_overrides(
        joined.cascade.sampling,
        guidance=options.guidance,
        steps=options.steps,
        sampler=options.sampler,
        threshold=options.threshold,
        aug_level=options.aug_level,
    )
    cascade = replace(joined.cascade, sampling=settings)
    write_model(
        options.out,
        cascade,
        joined.params,
        Stored(options.dtype, options.quantize, options.shared, SHARD_BYTES),
        name=options.name or options.out.resolve().name,
        notes=joined.notes,
    )
    stages = [pipeline.cascade.stages[0].name for pipeline in pipelines]
    write_curves(options, dict(zip(models, stages, strict=True)))
    for stage, entry in zip(cascade.stages, settings, strict=True):
        how = f"{entry.sampler}, {int(entry.steps)} steps, guidance {float(entry.guidance):g}"
        print(f"{stage.name}: {how}")
    size = sum(file.stat().st_size for file in options.out.iterdir() if file.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


def write_curves(options: argparse.Namespace, stages: dict[str, str]) -> None:
    """The loss curves of those sources that are runs, as JSON and as one image."""
    from imagen_jax.training.metrics import METRICS_FILE, read_curve

    curves = {}
    for source, stage in stages.items():
        if not (user_path(source) / METRICS_FILE).is_file():
            continue
        curve = read_curve(user_path(source))
        if curve.step:
            curves[stage] = curve
            curve.write(options.out / f"{stage}_curve.json")
        else:
            print(f"{source} has no report with all tenths of t, so no curve")
    if curves:
        plot(curves, options.image or options.out / "loss.png")


def plot(curves: dict[str, Any], path: Path) -> None:
    """Each stage's loss by step, over all t and in some tenths of it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no image of the loss: it needs matplotlib, pip install 'imagen_jax[train]'")
        return
    from imagen_jax.images.image_file import SHEET

    figure = Figure(figsize=(4.5 * len(curves), 3.2), layout="tight")
    row = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, curve) in zip(row, curves.items(), strict=True):
        axes.plot(curve.step, curve.loss, "k", linewidth=2, label="all t")
        for tenth in SHOWN_TENTHS:
            values = [losses[tenth] for losses in curve.loss_by_t]
            label = f"t {tenth / 10:.1f}-{(tenth + 1) / 10:.1f}"
            axes.plot(curve.step, values, linewidth=1, label=label)
        axes.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata=SHEET if path.suffix.lower() == ".png" else None)
    print(path)


def run(options: argparse.Namespace) -> None:
    with output_folder(options.out):
        save_model(options)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
