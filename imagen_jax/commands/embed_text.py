r"""Embeds the captions of a config's image set with its frozen text encoder, ahead of training.

    imagen-jax embed_text --config imagen_base64 --out /data/embeddings \
        --config.text.init_from=T5_XXL --config.data.path=...
    imagen-jax train --config imagen_base64 --workdir runs/base \
        --config.data.path=... --config.data.embeddings=/data/embeddings

Several hosts share the work when each is started as for training (see imagen-jax train): each shard
belongs to one of them. A shard is written whole or not at all, so the same command continues after
an interruption, on any number of hosts.
"""

import argparse
from functools import partial

from imagen_jax.commands.command_line import (
    CONFIG,
    add_host_options,
    count,
    join_hosts,
    make_parser,
    one_line_errors,
    path,
    run_configured,
)
from imagen_jax.storage.folders import make_folder


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--config", **CONFIG)
    add("--out", type=path, required=True, metavar="DIR", help="folder for the shards")
    add("--batch_size", type=count, default=64, help="captions at a time on each host")
    add("--shard_size", type=count, default=4096, help="examples in a shard")
    add_host_options(parse)
    return parse


def run(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.data.counts import TooManyBroken
        from imagen_jax.devices import memory
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.devices.hosts import check_shared
        from imagen_jax.training import text_embedding

    advice = memory.explained(f"--batch_size is {options.batch_size}: give less.")
    with one_line_errors(ValueError, TooManyBroken), advice:
        join_hosts(options)
        use_compilation_cache()
        out = options.out.absolute()
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
    run_configured(parser(), run, arguments)
