"""Trains a text encoder from scratch to guess the image from the caption, without a U-Net.

    python scripts/pretrain_text.py --config configs/emoji_base32.py --workdir runs/text

Diffusion teaches words slowly: only its noisiest steps need them, and every step pays for the
U-Net. This regression is about ten times as fast per image, and all of it is about words. It writes
a checkpoint with the encoder, the network's `draft` and fresh parameters for the rest, from which
train.py starts (`--config.init_from`, `--config.text.init_from`). A pretrained encoder (T5) makes
it unnecessary.
"""

from dataclasses import replace
from pathlib import Path

from absl import flags

from imagen_jax.commands.command_line import one_line_errors, run_configured


def define_flags() -> None:
    flags.DEFINE_string("config", None, "Config of a stage with network.draft.", required=True)
    flags.DEFINE_string("workdir", None, "Where to write the checkpoint.", required=True)
    flags.DEFINE_integer("steps", 10_000, "Optimizer steps.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 16, "Images a step.", lower_bound=1)
    flags.DEFINE_string("init_from", None, "Workdir of an earlier run to continue from.")
    flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")


def run(overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.devices import memory
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.training import banner, loop, text_pretraining

    options = flags.FLAGS
    workdir = Path(options.workdir).absolute()
    with one_line_errors(ValueError, *loop.RUN_ERRORS):
        overrides = overrides | {"batch_size": str(options.batch_size)}
        plan = text_pretraining.read_plan(
            options.config, overrides, options.steps, options.learning_rate
        )
        use_compilation_cache()
        run = text_pretraining.open_run(plan, workdir, options.init_from)
        told = plan._replace(config=replace(plan.config, init_from=options.init_from))
        print(banner.start_banner(told, run.source, workdir))
    advice = memory.explained(f"--batch_size is {options.batch_size}: give less.")
    with one_line_errors(*loop.RUN_ERRORS), advice:
        loop.train(plan.config, run)
        run.checkpoints.close()
    print(f"wrote {workdir}")


def main(arguments: list[str] | None = None) -> None:
    define_flags()
    run_configured(run, arguments, __doc__)
