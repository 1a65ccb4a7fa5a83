"""Plans a run on TPUs that are not here: compiles its train step for them and says what it takes.

    python scripts/plan.py --config configs/imagen_base64.py --topology v5p:4x4x4
    python scripts/plan.py --config configs/imagen_base64.py --topology v5e:16x16 \
        --config.mesh.fsdp=16 --config.mesh.data=16 --json plan.json
    python scripts/plan.py --config configs/imagen_sr256.py --topology v5e:2x4 --sample

Needs the TPU compiler (pip install -e '.[tpu]') and no TPU; the paper's models take it about ten
minutes and 15 GB of memory. docs/scaling.md explains the figures.
"""

import json
from pathlib import Path

from absl import flags, logging

from imagen_jax.commands.command_line import one_line_errors, run_configured
from imagen_jax.training.config import apply_overrides, load_config

CONFIG = flags.DEFINE_string("config", None, "Python file with get_config().", required=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU and its shape: v5p:4x4x4.", required=True)
SAMPLE = flags.DEFINE_bool("sample", False, "Plan sampling instead of training.")
IMAGES = flags.DEFINE_integer(
    "images", None, "Images sampled at a time; default: one a chip.", lower_bound=1
)
JSON = flags.DEFINE_string("json", None, "File for all figures.")


def run(argv: list[str], overrides: dict[str, str]) -> None:
    logging.set_verbosity(logging.WARNING)
    with one_line_errors(ValueError):
        check_options(argv)
        import jax

        # The compiler is the TPU's; what runs besides, such as shapes, runs here.
        jax.config.update("jax_platforms", "cpu")
        from imagen_jax.planning.plan import plan, summary
        from imagen_jax.training import inherit
        from imagen_jax.training.run_config import read_config

        raw = load_config(CONFIG.value)
        apply_overrides(raw, overrides)
        if inherit.is_open(raw):
            raise ValueError(
                f"{CONFIG.value} leaves the network to the model that it tunes; a plan needs a "
                "config that names its levels"
            )
        figures = plan(read_config(raw), TOPOLOGY.value, sample=SAMPLE.value, images=IMAGES.value)
        print(summary(figures))
        if JSON.value is not None:
            content = {"config": CONFIG.value, "overrides": overrides, **figures}
            Path(JSON.value).write_text(json.dumps(content, indent=1) + "\n")


def check_options(argv: list[str]) -> None:
    """ValueError for options that are wrong whatever the config holds."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}")
    if IMAGES.value is not None and not SAMPLE.value:
        raise ValueError("--images is for --sample; training plans --config.batch_size")
    if JSON.value is not None and Path(JSON.value).is_dir():
        raise ValueError(f"--json {JSON.value} is a folder; give a file")
    if JSON.value is not None and not Path(JSON.value).absolute().parent.is_dir():
        raise ValueError(f"--json {JSON.value}: there is no such folder")


def main(arguments: list[str] | None = None) -> None:
    run_configured(run, arguments)
