"""Embedding the captions of a run's image set with its frozen text encoder, ahead of training."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from imagen_jax import data
from imagen_jax.data import embeddings
from imagen_jax.data.captions import Captions
from imagen_jax.data.loader import captions_of
from imagen_jax.data.shard_writing import write_records
from imagen_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh
from imagen_jax.pipeline import encoder_files, loading
from imagen_jax.text import encoder as text
from imagen_jax.training import batches, build, start
from imagen_jax.training.run_config import RunConfig, read_config


def read_embedding(
    path: str | Path, overrides: dict[str, str], out: Path
) -> tuple[RunConfig, text.TextEncoder]:
    """(typed config, text encoder) of a run that will read the embeddings in `out`.

    Raises:
        ValueError: a key is unknown or has a bad value, or the run cannot read embeddings.
    """
    overrides = overrides | {"data.embeddings": repr(str(out))}
    config = read_config(start.read_raw(path, overrides))
    encoder = build.make_text_encoder(config)
    if encoder is None or build.encoder_source(config) is None:
        raise ValueError(
            "only a frozen text encoder can be run ahead of training: the stage must read text, "
            "and text.init_from say where the encoder is"
        )
    return config, encoder


def captions_source(config: RunConfig) -> data.Source:
    """The image set; where it can, without its images."""
    source = batches.make_source(replace(config, data=replace(config.data, embeddings=None)))
    return replace(source, with_images=False) if hasattr(source, "with_images") else source


def embed_captions(
    config: RunConfig,
    encoder: text.TextEncoder,
    source: data.Source,
    out: Path,
    *,
    batch_size: int,
    shard_size: int,
    say: Callable[[str], None] = print,
) -> None:
    """Writes this host's share of the shards that are missing in `out`, and waits for the others.

    Args:
        batch_size: captions at a time on each host.
        shard_size: examples in a shard.

    Raises:
        ValueError: what is in `out` was made differently, or the encoder cannot be read.
        TooManyBroken: too many examples of a shard cannot be read.
    """
    manifest = embeddings.Manifest(
        len(source),
        shard_size,
        encoder.max_length,
        encoder.config.d_model,
        config.frozen_dtype,
        encoder_files.text_fingerprint(encoder, build.encoder_source(config)),
    )
    embeddings.write_manifest(out, manifest)
    paths = [embeddings.shard_path(out, manifest, number) for number in range(manifest.shards)]
    own = range(jax.process_index(), manifest.shards, jax.process_count())
    missing = [number for number in own if not paths[number].exists()]
    say(f"{len(own) - len(missing)} of {len(own)} shards are there")
    shortened = text.Shortened(encoder.max_length - 1)
    embed = make_embed(config, encoder, batch_size, shortened) if missing else None
    for number in missing:
        first = number * shard_size
        rows = range(first, min(first + shard_size, len(source)))
        examples = captions_of(source, rows, config.data.max_broken_share)
        write_records(paths[number], records(examples, embed))
        say(f"wrote {paths[number]}")
    if str(shortened):
        say(f"Warning: {shortened} See text.max_length.")
    # JAX ends the others when one process has been gone for long.
    while jax.process_count() > 1 and not all(path.exists() for path in paths):
        time.sleep(1)


def make_embed(
    config: RunConfig, encoder: text.TextEncoder, batch_size: int, shortened: text.Shortened
) -> Callable[[Sequence[str]], Iterator[np.ndarray]]:
    """captions -> the embeddings of each one's tokens, on this host's devices.

    Batches always have the same size, so that a shard does not depend on what was done before.
    Captions that are cut are counted in `shortened`.
    """
    devices = jax.local_devices()
    mesh = make_mesh(MeshConfig(data=1, fsdp=None), devices)
    _, params = loading.load_encoder(
        build.encoder_source(config), dtype=config.frozen_dtype, mesh=mesh
    )
    size = -(-batch_size // len(devices)) * len(devices)

    def embed(captions: Sequence[str]) -> Iterator[np.ndarray]:
        for first in range(0, len(captions), size):
            batch = list(captions[first : first + size])
            filled = np.arange(size).clip(max=len(batch) - 1)
            ids, mask = (rows[filled] for rows in text.tokenize(encoder, batch, shortened))
            placed = jax.device_put((ids, mask), batch_sharding(mesh))
            values = text.encode_tokens(encoder.config, params, *placed, encoder.padding).values
            lengths = [encoder.max_length] * size if encoder.padding == "encoded" else mask.sum(1)
            for row, length in zip(np.asarray(values)[: len(batch)], lengths, strict=False):
                yield row[:length]

    return embed


def records(
    examples: Sequence[tuple[str, Captions]], embed: Callable[[Sequence[str]], Iterator[np.ndarray]]
) -> Iterator[bytes]:
    """The record of each example's (key, captions)."""
    tokens = embed([caption for _, captions in examples for caption, _ in captions])
    for key, captions in examples:
        yield embeddings.pack(key, captions, [next(tokens) for _ in captions])
