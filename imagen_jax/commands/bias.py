"""Reports how a model's images of people spread over gender, skin tone and other attributes.

    imagen-jax bias --model icons --data data/icons --out results/bias
    imagen-jax bias --model MODEL --clip models/clip --out results/bias
    imagen-jax bias --model MODEL --clip models/clip --lists lists.json --out results/bias

Images of each subject, such as an occupation, are made by prompts that name no attribute. With
--data, for a model of icons, an image has the value of the icon that it looks like most among the
person's; otherwise that of the text that CLIP finds nearest. More images, whose prompts name a
value, show how often it is recognized.

lists.json replaces the lists that come with the package:

    {"template": "a photo of a {}", "subjects": ["doctor", "nurse"],
     "attributes": {"gender": {"woman": "a photo of a woman", "man": "a photo of a man"}}}

DIR gets bias.html, bias.csv, bias.json and all images: a run that was killed resumes.
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
    add("--data", type=path, metavar="DIR", help="icons that imagen-jax prepare_icons wrote, which "
        "the images are compared with")  # fmt: skip
    add("--clip", type=path, metavar="DIR", help="a CLIP model (default: models/clip)")
    add("--lists", type=path, metavar="FILE", help="subjects and attributes as JSON, for CLIP")
    add("--out", type=path, required=True, metavar="DIR", help="for the report and the images")
    add("--num", type=count, default=20, metavar="N", help="images of each subject")
    add("--language", choices=("en", "zh"), default="en", help="of the icons' prompts")
    add("--styles", type=entries, metavar="S,S", help="of the icons, in turn (default: all)")
    add("--size", type=count, metavar="N", help="of the images (default: the largest; of icons the "
        "base stage's)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the noise")
    add("--batch_size", type=count, default=32, help="images at a time")
    return parse


def run(options: argparse.Namespace) -> None:
    for_icons = [name for name in ("clip", "lists") if getattr(options, name) is not None]
    if options.data is not None and for_icons:
        raise ValueError(f"--data and --{for_icons[0]} exclude each other: icons need no CLIP.")
    if options.data is None and (options.styles or options.language != "en"):
        raise ValueError("--styles and --language are of icons: give --data DIR, too.")
    # After the options are read: a wrong one need not wait for JAX.
    from imagen_jax.devices import memory
    from imagen_jax.evaluation.bias_report import BiasRequest, write_bias_report

    with memory.explained(f"--batch_size is {options.batch_size}: give less."):
        write_bias_report(BiasRequest(**vars(options)))


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
