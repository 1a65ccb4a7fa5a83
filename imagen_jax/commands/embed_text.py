r"""Embeds the captions of a config's image set with its frozen text encoder, ahead of training.

    python scripts/embed_text.py --config configs/imagen_base64.py --out /data/embeddings \
        --config.text.init_from=T5_XXL --config.data.path=...
    python scripts/train.py --config configs/imagen_base64.py --workdir runs/base \
        --config.data.path=... --config.data.embeddings=/data/embeddings

Several hosts share the work when each is started as for training (see scripts/train.py): each shard
belongs to one of them. A shard is written whole or not at all, so the same command continues after
an interruption, on any number of hosts.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import flags

from imagen_jax.commands.command_line import define_host_flags, one_line_errors, run_configured
from imagen_jax.storage.folders import make_folder


def define_flags() -> Callable[[], None]:
    """Defines the options; returns what joins the hosts."""
    flags.DEFINE_string("config", None, "Python file with get_config().", required=True)
    flags.DEFINE_string("out", None, "Folder for the shards.", required=True)
    flags.DEFINE_integer("batch_size", 64, "Captions at a time on each host.", lower_bound=1)
    flags.DEFINE_integer("shard_size", 4096, "Examples in a shard.", lower_bound=1)
    return define_host_flags()


def run(join_hosts: Callable[[], None], overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.data.loader import TooManyBroken
        from imagen_jax.devices import memory
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.devices.hosts import check_shared
        from imagen_jax.training import text_embedding

    options = flags.FLAGS
    advice = memory.explained(f"--batch_size is {options.batch_size}: give less.")
    with one_line_errors(ValueError, TooManyBroken), advice:
        join_hosts()
        use_compilation_cache()
        out = Path(options.out).absolute()
        config, encoder = text_embedding.read_embedding(options.config, overrides, out)
        source = text_embedding.captions_source(config)
        make_folder(out, "--out")
        check_shared(out, "--out")
        text_embedding.embed_captions(
            config,
            encoder,
            source,
            out,
            batch_size=options.batch_size,
            shard_size=options.shard_size,
            say=partial(print, flush=True),
        )


def main(arguments: list[str] | None = None) -> None:
    with one_line_errors(ValueError):
        join_hosts = define_flags()
    run_configured(partial(run, join_hosts), arguments, __doc__)
