"""Trains a text encoder from scratch to guess the image from the caption, without a U-Net.

    imagen-jax pretrain_text --config icons_base64_cpu --workdir runs/text

Diffusion teaches words slowly: only its noisiest steps need them, and every step pays for the
U-Net. This regression is about ten times as fast per image, and all of it is about words. It writes
a checkpoint with the encoder, the network's draft and fresh parameters for the rest. Training goes
on from it with --config.init_from=DIR where the config's network has a draft, else with
--config.text.init_from=DIR for the encoder alone. A pretrained encoder (T5) makes it unnecessary.
"""

import argparse
import contextlib
from dataclasses import replace

from imagen_jax.commands.command_line import (
    CONFIG,
    count,
    make_parser,
    one_line_errors,
    path,
    run_configured,
)


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--config", **CONFIG)
    add("--workdir", type=path, required=True, metavar="DIR", help="where to write the checkpoint")
    add("--steps", type=count, default=10_000, help="optimizer steps")
    add("--batch_size", type=count, default=16, help="images a step")
    add("--init_from", type=path, metavar="DIR", help="workdir of an earlier run to continue from")
    add("--learning_rate", type=float, default=1e-3, help="at its peak")
    return parse


def run(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.devices import memory
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.training import banner, loop, text_pretraining, workdir

    with contextlib.ExitStack() as held, one_line_errors(*loop.RUN_ERRORS):
        with one_line_errors(ValueError):
            overrides = overrides | {"batch_size": str(options.batch_size)}
            plan = text_pretraining.read_plan(
                options.config, overrides, options.steps, options.learning_rate
            )
            use_compilation_cache()
            folder = held.enter_context(workdir.held(options.workdir))
            earlier = options.init_from and str(options.init_from)
            run = text_pretraining.open_run(plan, folder, earlier)
            told = plan._replace(config=replace(plan.config, init_from=earlier))
            print(banner.start_banner(told, run.source, folder))
        with memory.explained(f"--batch_size is {options.batch_size}: give less."):
            loop.train(plan.config, run)
            run.checkpoints.close()
        print(f"wrote {folder}")


def main(arguments: list[str] | None = None) -> None:
    run_configured(parser(), run, arguments)
