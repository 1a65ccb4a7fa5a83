r"""Trains one stage.

    python scripts/train.py --config configs/emoji_base32.py --workdir runs/base32
    python scripts/train.py --config configs/emoji_base32.py --workdir runs/wide \
        --config.optimizer.learning_rate=3e-4 --config.stage.network.levels.0.channels=192
    python scripts/train.py --config configs/emoji_base32.py --dry_run

Any key of the config can be set by --config.KEY=VALUE. The same command resumes a run that was
stopped, killed or lost its machine, from its newest checkpoint. Stopped by a signal, a run saves a
checkpoint and ends with status 75 (EX_TEMPFAIL).

On several hosts the same command runs on each. SLURM, Open MPI and a TPU node pool are recognized;
a Cloud TPU pod needs --distributed; elsewhere each process is given
--coordinator_address=HOST:PORT --num_processes=N --process_id=I (launch/ has a file for each).
"""

import os
import sys
from collections.abc import Callable
from functools import partial

from absl import flags

from imagen_jax.commands.command_line import define_host_flags, one_line_errors, run_configured
from imagen_jax.storage.folders import check_local


def define_flags() -> Callable[[], None]:
    """Defines the options; returns what joins the hosts."""
    flags.DEFINE_string("config", None, "Python file with get_config().", required=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and samples.")
    flags.DEFINE_bool("dry_run", False, "Print the model table, look at the images, and stop.")
    flags.DEFINE_string("profile", None, "FIRST:LAST step of a profiler trace.")
    flags.DEFINE_string("init_from", None, "Short for --config.init_from.")
    return define_host_flags()


def train(join_hosts: Callable[[], None], overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.devices import memory
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.devices.hosts import say_on_first_host
        from imagen_jax.pipeline.loading import export_lora
        from imagen_jax.training import banner, loop, start, table
        from imagen_jax.training.memory import training_advice

    options = flags.FLAGS
    with one_line_errors(ValueError, *loop.RUN_ERRORS):
        join_hosts()
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
        use_compilation_cache()
        advice = training_advice(config, plan.mesh)
        with memory.explained(advice):
            run = start.open_run(plan, options.workdir)
        say_on_first_host(banner.start_banner(plan, run.source, run.workdir))
    with one_line_errors(*loop.RUN_ERRORS), memory.explained(advice):
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
    with one_line_errors(ValueError):
        join_hosts = define_flags()
    run_configured(partial(train, join_hosts), arguments, __doc__)
