r"""Plans a run on TPUs or GPUs that are not here: compiles its train step for them and says what
it takes.

    imagen-jax plan --config imagen_base64 --topology v5p:4x4x4
    imagen-jax plan --config imagen_base64 --topology v5e:16x16 \
        --config.frozen_split=True --json plan.json
    imagen-jax plan --config imagen_sr256 --topology v5e:2x4 --sample
    imagen-jax plan --config imagen_base64_small --topology h100:8

Needs the compiler of the accelerator, and not the accelerator: for TPUs
pip install 'imagen_jax[tpu]', for GPUs Python 3.12 and pip install 'imagen_jax[cuda-plan]'. The
paper's models take it about ten minutes and 15 GB of memory. docs/scaling.md explains the figures.
"""

import argparse
from pathlib import Path

from imagen_jax.commands.command_line import (
    CONFIG,
    count,
    make_parser,
    one_line_errors,
    path,
    run_configured,
)
from imagen_jax.storage.codec import require
from imagen_jax.storage.json_file import write_object
from imagen_jax.training.config import apply_overrides, load_config


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--config", **CONFIG)
    add("--topology", required=True, metavar="KIND:SHAPE", help="v5p:4x4x4, h100:8, h100:2x8")
    add("--sample", action="store_true", help="plan sampling instead of training")
    add("--images", type=count, help="images sampled at a time (default: one a device)")
    add("--json", type=path, metavar="FILE", help="file for all figures")
    return parse


def run(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    with one_line_errors(ValueError):
        check_options(options.sample, options.images, options.json)
        import jax

        # The compiler is the accelerator's; all else, such as shapes, is worked out on this CPU.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)  # compiling is what is looked at
        from imagen_jax.planning.plan import plan
        from imagen_jax.planning.summary import summary
        from imagen_jax.training import inherit
        from imagen_jax.training.run_config import read_config

        raw = load_config(options.config)
        apply_overrides(raw, overrides)
        if inherit.is_open(raw):
            raise ValueError(
                f"{options.config} leaves the network to the model that it tunes; a plan needs a "
                "config that names its network"
            )
        sizes = {"sample": options.sample, "images": options.images}
        figures = plan(read_config(raw), options.topology, **sizes)
        print(summary(figures))
        if options.json is not None:
            about = {"config": str(options.config), "overrides": overrides}
            write_object(options.json, about | figures)


def check_options(sample: bool, images: int | None, json_file: Path | None) -> None:
    """ValueError for options that are wrong whatever the config holds."""
    require(
        (images is None or sample, "--images is for --sample; training plans --config.batch_size"),
        (
            json_file is None or not json_file.is_dir(),
            f"--json {json_file} is a folder; give a file",
        ),
        (
            json_file is None or json_file.absolute().parent.is_dir(),
            f"--json {json_file}: there is no such folder",
        ),
    )


def main(arguments: list[str] | None = None) -> None:
    run_configured(parser(), run, arguments)
