r"""Trains one stage.

    imagen-jax train --config icons_base64_cpu --workdir runs/base64
    imagen-jax train --config icons_base64_cpu --workdir runs/wide \
        --config.optimizer.learning_rate=3e-4 --config.stage.network.levels.0.channels=192
    imagen-jax train --config fine_tune --workdir runs/mine \
        --config.data.path=IMAGES
    imagen-jax train --config icons_base64_cpu --dry_run

Any key of the config can be set by --config.KEY=VALUE. The same command resumes a run that was
stopped, killed or lost its machine, from its newest checkpoint. Stopped by a signal, a run saves a
checkpoint and ends with status 75 (EX_TEMPFAIL).

On several hosts the same command runs on each. SLURM, Open MPI and a TPU node pool are recognized;
a Cloud TPU pod needs --distributed; elsewhere each process is given
--coordinator_address=HOST:PORT --num_processes=N --process_id=I (launch/ has a file for each).
"""

import argparse
import contextlib
import os
import sys
from dataclasses import replace

from imagen_jax.commands.command_line import (
    CONFIG,
    add_host_options,
    join_hosts,
    make_parser,
    one_line_errors,
    path,
    run_configured,
    source,
)
from imagen_jax.storage.folders import check_local


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--config", **CONFIG)
    add("--workdir", type=path, metavar="DIR", help="folder for checkpoints, metrics and samples")
    add(
        "--dry_run", action="store_true", help="print the model table, look at the images, and stop"
    )
    add("--profile", metavar="FIRST:LAST", help="steps of a profiler trace")
    add("--wandb", metavar="PROJECT", help="log to Weights & Biases, too; its own environment "
        "variables apply, such as WANDB_MODE=offline, WANDB_NAME and WANDB_ENTITY")  # fmt: skip
    add("--init_from", type=source, metavar="MODEL", help="short for --config.init_from")
    add_host_options(parse)
    return parse


def train(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    with one_line_errors():
        import jax
        import tensorboardX  # noqa: F401 - its lack is told before anything is compiled

        from imagen_jax.devices import memory
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.devices.hosts import say_on_first_host
        from imagen_jax.pipeline.loading import export_lora
        from imagen_jax.training import banner, loop, start, table, workdir, writers
        from imagen_jax.training.memory import training_advice

    with contextlib.ExitStack() as held, one_line_errors(*loop.RUN_ERRORS):
        with one_line_errors(ValueError):
            join_hosts(options)
            profile = parse_profile(options.profile)
            if options.workdir is None and not options.dry_run:
                raise ValueError("--workdir is needed, except with --dry_run")
            check_local(options.workdir or "", "--workdir")
            if options.init_from:
                overrides = {"init_from": repr(options.init_from), **overrides}
            plan = start.read_plan(options.config, overrides)
            config = plan.config
            if options.dry_run:
                print(table.model_table(config, plan.train_step, plan.init, plan.mesh, plan.frozen))
                print(banner.start_banner(plan, banner.look_at_images(config), options.workdir))
                return
            wandb = options.wandb if jax.process_index() == 0 else None
            if wandb is not None:
                writers.check_wandb()
            use_compilation_cache()
            folder = held.enter_context(workdir.held(options.workdir))
            advice = training_advice(config, plan.mesh)
            with memory.explained(advice):
                run = start.open_run(plan, folder)
            say_on_first_host(banner.start_banner(plan, run.source, folder))
            if wandb is not None:
                writer = writers.WandbRun(folder, wandb, run.description["config"])
                run = replace(run, writers=(held.enter_context(contextlib.closing(writer)),))
                print(f"{'W&B':<12}{writer.where}")
        with memory.explained(advice):
            state = loop.train(config, run, profile=profile)
            run.checkpoints.close()
            if config.lora is not None:
                path = export_lora(run.workdir, run.workdir / "lora.safetensors")
                say_on_first_host(f"the adapter: {path}")
            if int(state.step) < config.num_steps:
                sys.exit(os.EX_TEMPFAIL)


def parse_profile(value: str | None) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15)."""
    if value is None:
        return None
    first, _, last = value.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(
            f"--profile is {value!r}; it must be FIRST:LAST with 1 <= FIRST <= LAST, for example "
            "10:15"
        )
    return int(first), int(last)


def main(arguments: list[str] | None = None) -> None:
    run_configured(parser(), train, arguments)
