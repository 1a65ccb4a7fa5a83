r"""Benchmark of a model of icons: fixed prompts, seed, steps and guidance.

imagen-jax prepare_icons --out data/icons
imagen-jax benchmark_icons --model icons --data data/icons --out results/icons

Retrieval: an image of the base stage counts where the icon that was asked for is the nearest among
all of its style, by mean squared error at 32x32 (top-1), or among the nearest five. Rows: things
that were trained on, held-out pairs of a thing and a style, held-out families, and variants (skin
tones, gender); in English and Chinese. Style obeyed: the nearest icon of all styles has the asked
one. Held-out icons that look like a trained one of their style are left out.
Super-resolution: PSNR from true images downsampled, beside bicubic, on held-out families.
Matching: which of the captions in match.md belong to which images of match.png? match_key.json
knows.
Attention (only with --parts attention): does the attention map of a thing's word lie on the thing,
more than its share of the image (imagen-jax generate --explain)?

DIR gets benchmark.json, benchmark.md, sheets of the first prompts, and all images: a run that was
killed resumes, and one with --num is the beginning of a whole one.
"""

import argparse

from imagen_jax.commands.command_line import (
    count,
    entries,
    make_parser,
    path,
    run_parsed,
    sources,
)


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--model", type=sources, default="icons", help="shipped model, model directory or training "
        "workdir; A,B chains separately trained stages")  # fmt: skip
    add("--data", type=path, default=path("data/icons"), metavar="DIR", help="what prepare_icons.py"
        " wrote")  # fmt: skip
    add("--out", type=path, required=True, metavar="DIR", help="for the report and the images")
    add("--own_sampling", action="store_true", help="sample the base stage as the model ships, "
        "instead of as the protocol says; a student of few steps is always sampled so")  # fmt: skip
    add("--steps", type=count, metavar="N", help="of the base stage, instead of 16 or its own")
    add("--styles", type=entries, metavar="S,S", help="ask for these styles only, named as in the "
        "data: noto-v1, not classic")  # fmt: skip
    add("--plain_prompts", action="store_true", help="prompts without a style, for a model that "
        "knows one only")  # fmt: skip
    add("--parts", type=entries, metavar="P,P", help="of retrieval, super_resolution, matching "
        "(default: those that there are images and stages for), and attention")  # fmt: skip
    add("--num", type=count, metavar="N", help="the first N icons of each row, for a quick look")
    add("--sr_images", type=count, default=128, metavar="N", help="icons for super-resolution")
    add("--batch_size", type=count, default=32, help="images of the base stage at a time")
    return parse


def run(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.devices import memory
    from imagen_jax.evaluation.icon_benchmark import ALL_PARTS, BenchmarkRequest, benchmark

    if unknown := [part for part in options.parts or () if part not in ALL_PARTS]:
        raise ValueError(f"--parts has {unknown[0]!r}; known are {', '.join(ALL_PARTS)}.")
    with memory.explained(f"--batch_size is {options.batch_size}: give less."):
        benchmark(BenchmarkRequest(**vars(options)))


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
