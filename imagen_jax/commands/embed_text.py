"""Embeds the captions of a config's image set with its frozen text encoder, ahead of training.

    python scripts/embed_text.py --config configs/imagen_base64.py --out /data/embeddings \
        --config.text.init_from=T5_XXL --config.data.path=...
    python scripts/train.py --config configs/imagen_base64.py --workdir runs/base \
        --config.data.path=... --config.data.embeddings=/data/embeddings

Several hosts share the work when each is started as for training (see scripts/train.py): a shard
belongs to one of them. A shard is written whole or not at all, so the same command goes on after an
interruption, on any number of hosts.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags, logging

from imagen_jax.commands.command_line import define_host_flags, one_line_errors, run_configured
from imagen_jax.storage.folders import make_folder

CONFIG = flags.DEFINE_string("config", None, "Python file with get_config().", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the shards.", required=True)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Captions at a time on each host.", 1)
SHARD_SIZE = flags.DEFINE_integer("shard_size", 4096, "Examples in a shard.", 1)

with one_line_errors(ValueError):
    JOIN_HOSTS = define_host_flags()


def run(argv: list[str], overrides: dict[str, str]) -> None:
    logging.set_verbosity(logging.WARNING)
    with one_line_errors(ValueError):
        if len(argv) > 1:
            raise ValueError(f"unknown argument {argv[1]!r}")
        JOIN_HOSTS()
        import jax

        from imagen_jax.data import embeddings
        from imagen_jax.data.loader import TooManyBroken, captions_of
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.devices.hosts import check_shared

        use_compilation_cache()
        config, encoder = prepare(overrides)
        source = captions_alone(config)
        out = Path(OUT.value).absolute()
        make_folder(out, "--out")
        check_shared(out, "--out")
        manifest = describe(config, encoder, len(source))
        embeddings.write_manifest(out, manifest)
        paths = [embeddings.shard_path(out, manifest, i) for i in range(manifest.shards)]
        own = range(jax.process_index(), manifest.shards, jax.process_count())
        missing = [number for number in own if not paths[number].exists()]
        print(f"{len(own) - len(missing)} of {len(own)} shards are there", flush=True)
        embed = make_embed(config, encoder) if missing else None
        for number in missing:
            first = number * manifest.shard_size
            rows = range(first, min(first + manifest.shard_size, manifest.examples))
            with one_line_errors(TooManyBroken):
                examples = captions_of(source, rows, config.data.max_broken_share)
            embeddings.write_shard(paths[number], records(examples, embed))
            print(f"wrote {paths[number]}", flush=True)
        # JAX ends the others when one process has left for long.
        while jax.process_count() > 1 and not all(path.exists() for path in paths):
            time.sleep(1)


def prepare(overrides: dict[str, str]) -> tuple[Any, Any]:
    """(typed config, text encoder), checked."""
    from imagen_jax.pipeline.encoder_files import with_encoder
    from imagen_jax.training import build
    from imagen_jax.training import config as config_room
    from imagen_jax.training.run_config import read_config

    raw = config_room.load_config(CONFIG.value)
    config_room.apply_overrides(raw, overrides)
    config = read_config(with_encoder(raw))
    encoder = build.make_text_encoder(config)
    if encoder is None:
        raise ValueError("the config's stage reads no text")
    if config.text.trainable or build.encoder_source(config) is None:
        raise ValueError(
            "only a frozen encoder can be run ahead: text.trainable must be False, and "
            "text.init_from say where it is"
        )
    if encoder.null != "zeros":
        raise ValueError(f"text.null is {encoder.null!r}; embeddings are for 'zeros'")
    return config, encoder


def captions_alone(config: Any) -> Any:
    """The image set; where it can, without its images."""
    from imagen_jax.training.batches import make_source
    from imagen_jax.training.run_config import STREAM

    if config.data.source == STREAM or config.data.prompt is not None:
        raise ValueError("embeddings are for sets with random access and captions of their own")
    source = make_source(replace(config, data=replace(config.data, embeddings=None)))
    return replace(source, with_images=False) if hasattr(source, "with_images") else source


def describe(config: Any, encoder: Any, examples: int) -> Any:
    """What is going to be written."""
    from imagen_jax.data.embeddings import Manifest
    from imagen_jax.pipeline.encoder_files import text_fingerprint
    from imagen_jax.training.build import encoder_source

    return Manifest(
        examples,
        SHARD_SIZE.value,
        encoder.max_length,
        encoder.config.d_model,
        config.frozen_dtype,
        text_fingerprint(encoder, encoder_source(config)),
    )


def make_embed(config: Any, encoder: Any) -> Any:
    """captions -> the embeddings of each one's tokens, on this host's devices.

    Batches always have the same size, so that a shard does not depend on what was done before.
    """
    import jax
    import numpy as np

    from imagen_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh
    from imagen_jax.pipeline.loading import load_encoder
    from imagen_jax.text import encoder as text
    from imagen_jax.training.build import encoder_source

    devices = jax.local_devices()
    mesh = make_mesh(MeshConfig(data=1, fsdp=None), devices)
    _, params = load_encoder(encoder_source(config), dtype=config.frozen_dtype, mesh=mesh)
    size = -(-BATCH_SIZE.value // len(devices)) * len(devices)

    def embed(captions: Sequence[str]) -> Iterator[Any]:
        for start in range(0, len(captions), size):
            part = list(captions[start : start + size])
            ids, mask = text.tokenize(encoder, part + [""] * (size - len(part)), warn=False)
            placed = jax.device_put((ids, mask), batch_sharding(mesh))
            values = text.encode_tokens(encoder.config, params, *placed, encoder.padding).values
            lengths = [encoder.max_length] * size if encoder.padding == "encoded" else mask.sum(1)
            for row, length in zip(np.asarray(values)[: len(part)], lengths, strict=False):
                yield row[:length]

    return embed


def records(examples: Sequence[tuple[str, Any]], embed: Any) -> Iterator[bytes]:
    """The record of each example's (key, captions)."""
    from imagen_jax.data.embeddings import pack

    texts = embed([caption for _, captions in examples for caption, _ in captions])
    for key, captions in examples:
        yield pack(key, captions, [next(texts) for _ in captions])


def main() -> None:
    run_configured(run, sys.argv)
