r"""Makes a data set of generated images: prompts in, shards with captions and settings out.

    imagen-jax dataset --model icons --prompts prompts.txt --num_images 4 --seed 1 --out data/made
    imagen-jax train --config folder_64 --workdir runs/made --config.data.source=tar \
        --config.data.path=data/made

FILE has a prompt a line, or is .csv, .tsv or .jsonl with a column prompt (or caption, text) and
perhaps seed and negative_prompt. A prompt that comes twice with the same seed counts once. Images
of a line with a seed are those that imagen-jax generate makes with it.

A shard is there whole or not at all; the same command goes on after a kill, and gives the same
bytes as a run that was never stopped. DIR/manifest.json says what made them, and images of other
settings never mix with them. Processes divide the work with --share, or as the hosts of one run.
"""

import argparse
import sys
import warnings
from pathlib import Path

from imagen_jax.commands.command_line import (
    EMA,
    GUIDANCE_FIELDS,
    MODERATION,
    add_host_options,
    count,
    join_hosts,
    make_parser,
    numbers,
    one_line_errors,
    path,
    prompt,
    run_parsed,
    sources,
)
from imagen_jax.commands.generate import add_sampling_options
from imagen_jax.pipeline.shipped import DEFAULT

# Fields of the request to the model that are options of the same name.
OF_MODEL = (
    *("model", "dtype", "variant", "ema", "guide", "guide_step", "prompts", "num", "num_images"),
    *("steps", "sampler", "guidance_kind", *GUIDANCE_FIELDS, "size", "seed"),
)


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--prompts", type=path, required=True, metavar="FILE", help="what the images show")
    add("--out", type=path, required=True, metavar="DIR", help="folder of the shards")
    add("--model", type=sources, default=DEFAULT, help=f"as of generate (default: {DEFAULT})")
    add("--format", default="tar", help="tar (webdataset, default) or array_record")
    add("--shard_size", type=count, default=1000, metavar="N", help="images a shard (default: "
        "1000): as many may be lost by a kill")  # fmt: skip
    add("--num", type=count, metavar="N", help="the first N prompts")
    add("--num_images", type=count, default=1, metavar="N", help="images a prompt (default: 1)")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--negative_prompt", type=prompt, help="what to lead away from, of lines without their own")
    add("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    add("--variant", help="of DeepFloyd IF's weights, such as fp16")
    add("--ema", default=True, **EMA)
    add("--size", type=count, help="of the images: the stage to stop at (default: the largest)")
    add_sampling_options(parse)
    add("--aug_level", type=numbers(float), help="noise on the input of super-resolution stages, "
        "in [0, 1]; or A,A,... by stage")  # fmt: skip
    add("--batch_size", type=count, help="images at a time (default: 4 on a CPU, else 16)")
    add("--moderation", **MODERATION)
    add("--share", metavar="I/N", help="make only this share of the shards, from 1")
    add_host_options(parse)
    return parse


def make(options: argparse.Namespace) -> None:
    # After the options are read: a wrong one need not wait for JAX.
    import jax

    from imagen_jax.bulk_data.generation import DataSetRequest, make_data_set
    from imagen_jax.devices import memory
    from imagen_jax.devices.accelerators import unused_accelerator
    from imagen_jax.devices.hosts import say_on_first_host
    from imagen_jax.evaluation.request import EvaluationRequest
    from imagen_jax.evaluation.shards import Shard, read_shard
    from imagen_jax.pipeline.moderation import read_moderation
    from imagen_jax.storage.lock import ended_by_sigterm

    share = read_shard(options.share)
    join_hosts(options)
    if jax.process_count() > 1:
        if options.share is not None:
            raise ValueError("--share is for processes that are not the hosts of one run")
        share = Shard(jax.process_index(), jax.process_count())
    if note := unused_accelerator():
        warnings.warn(note, stacklevel=1)
    values = {name: getattr(options, name) for name in OF_MODEL} | {"prompts": str(options.prompts)}
    model = EvaluationRequest(**values)
    more = ("shard_size", "negative_prompt", "guidance", "aug_level", "spacing", "batch_size")
    given = {name: getattr(options, name) for name in more}
    if options.moderation is not None:
        given["moderation"] = read_moderation(options.moderation)
    request = DataSetRequest(model, Path(options.out), options.format, share=share, **given)
    advice = f"--batch_size is {options.batch_size or 'left to the device'}: give less."
    try:
        with one_line_errors(ValueError), memory.explained(advice), ended_by_sigterm():
            made = make_data_set(request, say_on_first_host)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, KeyboardInterrupt) or not isinstance(error.code, str):
            print(f"stopped; the same command goes on with {options.out}", file=sys.stderr)
        raise
    print(f"{made:,} images made, in {options.out}; to train on them: --config.data.source="
          f"{options.format} --config.data.path={options.out}")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), make, arguments)
