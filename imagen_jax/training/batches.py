"""The images of a run: the config's section `data`, and the batches that it stands for."""

import importlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import data
from imagen_jax.data.classes import class_names, mixed_classes, numbered_by
from imagen_jax.data.embeddings import read_embedded
from imagen_jax.devices.sharding import host_groups, host_rows, make_mesh
from imagen_jax.storage.codec import require
from imagen_jax.text import encoder as text
from imagen_jax.training.feed import Batches, check_labels
from imagen_jax.training.on_device import from_device
from imagen_jax.training.run_config import (
    MEMORY,
    MIXTURE,
    STREAM,
    DataConfig,
    MixedConfig,
    PriorConfig,
    RunConfig,
)

LARGEST_SEED = 2**32 - 1


def read_set(
    section: DataConfig | PriorConfig | MixedConfig, conditioning: str | None
) -> data.Source:
    """An image set with random access. With a prompt it needs no captions of its own."""
    if not isinstance(section, MixedConfig) and section.prompt is not None:
        conditioning = None
    if isinstance(section, DataConfig) and section.source == MIXTURE:
        sets = [section.sets[name] for name in sorted(section.sets)]
        sources = mixed_classes([read_set(own, conditioning) for own in sets])
        return data.MixtureSource(sources, [own.rate for own in sets])
    wheres = {DataConfig: "data", PriorConfig: "data.prior", MixedConfig: "data.sets"}
    where = wheres[type(section)]
    require(
        (
            section.source != MEMORY,
            f"{where}.source 'memory' is for calls from Python that give the source",
        ),
        (
            section.path is not None,
            f"{where}.path is None: say where the images are, with --config.{where}.path=",
        ),
    )
    read = data.SOURCES[section.source]
    return read(section.path, split=section.split, conditioning=conditioning, **section.options)


def crop_kind(config: RunConfig) -> str:
    """What is kept of an image: "centre", or "random" by default where a stage trains on crops."""
    return config.data.crop or ("centre" if config.stage.crop is None else "random")


def make_source(config: RunConfig) -> data.Source:
    """The run's image set (not the prior's), with embedded captions where the config has them."""
    source = read_set(config.data, config.stage.conditioning)
    if config.data.embeddings is None:
        return source
    return read_embedded(source, config.data.embeddings)


def make_loader(
    config: RunConfig,
    encoder: text.TextEncoder | None,
    source: data.Source | None = None,
    prior_source: data.Source | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> data.Loader | data.PriorLoader:
    """The loader of this host's rows, of all where `mesh` is None. `source`, `prior_source`:
    images in memory.
    """
    section, prior, host = config.data, config.data.prior, jax.process_index()
    own_rows = None if mesh is None else host_rows(mesh, config.batch_size, host)

    def loader(own: DataConfig | PriorConfig, source: data.Source, **options):
        check_labels(getattr(source, "labels", None), config.stage.network.num_classes)
        return data.Loader(
            source=source,
            resolution=config.stage.resolution,
            tokenize=None if encoder is None else Tokenizer(encoder),
            conditioning=config.stage.conditioning,
            prompt=own.prompt,
            shuffle=section.shuffle,
            flip=section.flip,
            crop=crop_kind(config),
            crop_size=config.stage.crop,
            buckets=section.buckets,
            weights=section.weights,
            on_device=section.on_device,
            max_broken_share=section.max_broken_share,
            num_threads=section.num_threads,
            prefetch=section.prefetch,
            **options,
        )

    if source is None:
        source = make_source(config)
    if prior is None:
        return loader(
            section, source, batch_size=config.batch_size, seed=config.seed, rows=own_rows
        )
    if prior_source is None:
        prior_source = read_set(prior, config.stage.conditioning)
        if names := class_names(source):
            prior_source = numbered_by(prior_source, names)
    rows = prior.rows(config.batch_size)
    # Otherwise sets of one size would come in the same order, always in the same pairs.
    prior_seed = (config.seed + LARGEST_SEED // 2) % LARGEST_SEED
    return data.PriorLoader(
        loader(section, source, batch_size=config.batch_size - rows, seed=config.seed),
        loader(prior, prior_source, batch_size=rows, seed=prior_seed),
        rows=own_rows,
    )


def make_stream(config: RunConfig, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The loader of a seqio Task or Mixture: hosts that hold the same rows read the same part.

    Raises:
        ValueError: there is no such Task, or its vocabulary is not the encoder's.
    """
    # Imported here: a stream brings TensorFlow.
    from imagen_jax.data.seqio_tasks import StreamLoader

    if config.data.module is not None:
        try:
            importlib.import_module(config.data.module)
        except ModuleNotFoundError as error:
            raise ValueError(f"data.module {config.data.module!r}: {error}") from error
    groups = [[jax.process_index()]] if mesh is None else host_groups(mesh)
    own = next(i for i, hosts in enumerate(groups) if jax.process_index() in hosts)
    return StreamLoader(
        task=config.data.path,
        batch_size=config.batch_size,
        resolution=config.stage.resolution,
        length=config.text.max_length if config.text else 128,
        vocab_size=config.text.encoder.vocab_size if config.text else None,
        seed=config.seed,
        split=config.data.split,
        conditioning=config.stage.conditioning,
        shuffle=config.data.shuffle,
        crop=crop_kind(config),
        crop_size=config.stage.crop,
        process_index=own,
        process_count=len(groups),
        max_broken_share=config.data.max_broken_share,
    )


class Tokenizer:
    """Captions to ids and mask, each distinct one once as long as there is room to keep it; says
    once what share of the captions is cut.
    """

    COUNTED, KEPT_TOKENS = 1000, 2**23  # captions that are counted; tokens that are kept

    def __init__(self, encoder: text.TextEncoder):
        self.encoder, self.said = encoder, False
        self.shortened = text.Shortened(encoder.max_length - 1)
        self.kept: dict[str, tuple[bytes, bytes]] = {}

    def __call__(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not self.said:
            return self._count(captions)
        rows = {caption: self.kept.get(caption) for caption in captions}
        if new := [caption for caption, row in rows.items() if row is None]:
            made = text.tokenize(self.encoder, new, self.shortened)
            made = [tuple(row.tobytes() for row in pair) for pair in zip(*made, strict=True)]
            rows.update(zip(new, made, strict=True))
            if len(self.kept) * self.encoder.max_length < self.KEPT_TOKENS:
                self.kept.update(zip(new, made, strict=True))
        ids, mask = map(b"".join, zip(*(rows[caption] for caption in captions), strict=True))
        shape = len(captions), self.encoder.max_length
        return np.frombuffer(ids, np.int32).reshape(shape), np.frombuffer(mask, bool).reshape(shape)

    def _count(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = text.tokenize(self.encoder, captions, self.shortened)
        if self.shortened.seen >= self.COUNTED and not self.said:
            self.said = True
            if str(self.shortened):
                logging.warning("%s", f"{self.shortened} See text.max_length.")
        return found


def make_batches(
    config: RunConfig,
    encoder: text.TextEncoder | None,
    source: data.Source | None = None,
    prior_source: data.Source | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Batches:
    """(step, iterator state) -> batches from that step on: this host's rows on a mesh, all where
    it is None.
    """
    if config.data.source == STREAM and source is None:
        return make_stream(config, mesh).batches
    loader = make_loader(config, encoder, source, prior_source, mesh)
    if config.data.on_device:
        return from_device(loader, mesh or make_mesh(config.mesh))
    return lambda start, state: loader.batches(start)  # batch N needs no state


def abstract_batch(config: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a whole batch, without data."""
    size, side = config.batch_size, config.stage.training_side
    batch = {"image": jax.ShapeDtypeStruct((size, side, side, 3), np.uint8)}
    if config.stage.conditioning == "text":
        length = config.text.max_length
        if config.data.embeddings is None:
            batch["ids"] = jax.ShapeDtypeStruct((size, length), np.int32)
        else:
            width = config.text.encoder.d_model
            batch["text"] = jax.ShapeDtypeStruct((size, length, width), jnp.bfloat16)
        batch["mask"] = jax.ShapeDtypeStruct((size, length), bool)
    elif config.stage.conditioning == "label":
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    return batch
