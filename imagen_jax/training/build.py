"""From a ConfigDict to the objects of a run. Past this file nothing knows a ConfigDict."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import data, text
from imagen_jax.cascade import Cascade, SamplingSettings
from imagen_jax.cascade import to_dict as cascade_to_dict
from imagen_jax.diffusion.schedules import SCHEDULES
from imagen_jax.models import NETWORKS, t5
from imagen_jax.models.t5 import T5Config
from imagen_jax.stage import Stage
from imagen_jax.text import TextEncoder
from imagen_jax.training.config import Section, as_dict, keywords, nearest, typed
from imagen_jax.training.loop import Batch, Batches, LoopConfig
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.sharding import MeshConfig, gather_shards
from imagen_jax.training.state import init_state
from imagen_jax.training.step import make_train_step

KINDS = {"network": NETWORKS, "schedule": SCHEDULES}
STREAM = "seqio"
MEMORY = "memory"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text encoder. `tokenizer`: "bytes", or the path of a SentencePiece model.

    trainable: whether it is trained with the stage. dropout: the share of captions replaced by the
    null text. init_from: a model or workdir whose encoder's weights to start from, or to keep.
    """

    encoder: T5Config
    tokenizer: str = "bytes"
    max_length: int = 128
    trainable: bool = False
    dropout: float = 0.1
    init_from: str | None = None

    def __post_init__(self):
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"text.dropout must be in [0, 1], not {self.dropout}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Pictures: `source` npz, folder, tfds, seqio or memory; `path` a file, folder or name.

    `options` are the reader's own arguments (data_dir, image, text, label of tfds).
    """

    source: str
    path: str | None = None
    split: str = "train"
    shuffle: bool = True
    flip: bool = False
    max_broken_share: float = 0.01
    num_threads: int = 4
    prefetch: int = 8
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """One every `every` steps; the last `keep` stay, and the `keep_best` of lowest loss."""

    every: int = 1000
    keep: int = 3
    keep_best: int = 1


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Pictures drawn during training, every `every` steps and at the end. None: only at the end.

    prompts: for a model of text; labels: for one of classes; count: for one of neither.
    """

    every: int | None = None
    prompts: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    count: int = 8
    seed: int = 0
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All of a run. `init_from`: a model or workdir whose weights to start from."""

    stage: Stage
    data: DataConfig
    batch_size: int
    num_steps: int
    seed: int = 0
    text: TextConfig | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema_decay: float | None = 0.9999
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log_every: int = 100
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    sample: SampleConfig | None = None
    init_from: str | None = None

    def __post_init__(self):
        if self.stage.conditioning == "text" and self.text is None:
            raise ValueError("the stage is conditioned on text, but there is no section 'text'")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1) or None, not {self.ema_decay}")


def read_config(config: Section) -> RunConfig:
    """A ConfigDict (or dict) as a RunConfig. ValueError names an unknown, missing or bad key."""
    config = as_dict(config)
    config["data"] = _data_section(config.get("data") or {})
    if isinstance(config.get("sample"), dict):
        config["sample"] = _sample_section(config["sample"])
    return typed(RunConfig, config, "", KINDS)


def _data_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the keys that only this source's reader knows into `options`."""
    source = section.get("source")
    known_sources = [*data.SOURCES, STREAM, MEMORY]
    if source not in known_sources:
        hint = nearest(str(source), known_sources)
        raise ValueError(f"config key 'data.source' is {source!r}{hint}")
    own = [field.name for field in dataclasses.fields(DataConfig) if field.name != "options"]
    reader = data.SOURCES.get(source)
    options = keywords(reader, ("path", "split", "conditioning")) if reader else []
    for name in section:
        if name not in own and name not in options:
            hint = nearest(name, [*own, *options])
            raise ValueError(f"unknown config key 'data.{name}' for source {source!r}{hint}")
    chosen = {name: value for name, value in section.items() if name in own}
    return chosen | {"options": {k: v for k, v in section.items() if k in options}}


def _sample_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the sampler's keys (steps, guidance, ...) into `sampling`."""
    sampler = [field.name for field in dataclasses.fields(SamplingSettings)]
    own = [field.name for field in dataclasses.fields(SampleConfig) if field.name != "sampling"]
    for name in section:
        if name not in own and name not in sampler:
            raise ValueError(f"unknown config key 'sample.{name}'{nearest(name, own + sampler)}")
    chosen = {name: value for name, value in section.items() if name in own}
    return chosen | {"sampling": {k: v for k, v in section.items() if k in sampler}}


def loop_config(config: RunConfig, profile: tuple[int, int] | None = None) -> LoopConfig:
    """What the loop needs of a RunConfig."""
    return LoopConfig(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint.every,
        sample_every=config.sample.every if config.sample else None,
        profile=profile,
    )


def make_text_encoder(config: RunConfig) -> TextEncoder | None:
    """The encoder and its tokenizer, or None where the stage reads no text."""
    if config.text is None or config.stage.conditioning != "text":
        return None
    if config.text.tokenizer == "bytes":
        tokenizer = text.make_tokenizer("bytes")
    else:
        tokenizer = text.make_tokenizer("sentencepiece", config.text.tokenizer)
    encoder = TextEncoder(config.text.encoder, tokenizer, config.text.max_length)
    text.check_vocabulary(encoder)
    return encoder


def make_source(config: RunConfig) -> data.Source:
    """The picture set of a source with random access."""
    section = config.data
    if section.path is None:
        raise ValueError(f"data.path is None; source {section.source!r} needs one")
    read = data.SOURCES[section.source]
    conditioning = config.stage.conditioning
    return read(section.path, split=section.split, conditioning=conditioning, **section.options)


def make_loader(
    config: RunConfig, encoder: TextEncoder | None, source: data.Source | None = None
) -> data.Loader:
    """The loader of this host's rows. `source`: pictures in memory, for data.source "memory"."""
    if source is None:
        if config.data.source == MEMORY:
            raise ValueError("data.source 'memory' is for calls from Python that give the source")
        source = make_source(config)
    return data.Loader(
        source=source,
        batch_size=config.batch_size,
        resolution=config.stage.resolution,
        seed=config.seed,
        tokenize=(lambda captions: text.tokenize(encoder, captions, warn=False))
        if encoder is not None
        else None,
        conditioning=config.stage.conditioning,
        shuffle=config.data.shuffle,
        flip=config.data.flip,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_broken_share=config.data.max_broken_share,
        num_threads=config.data.num_threads,
        prefetch=config.data.prefetch,
    )


def make_batches(
    config: RunConfig, encoder: TextEncoder | None, source: data.Source | None = None
) -> Batches:
    """(step, iterator state) -> batches from that step on."""
    if config.data.source == STREAM and source is None:
        # Imported here: a stream brings TensorFlow.
        from imagen_jax.data.seqio_tasks import StreamLoader

        stream = StreamLoader(
            task=config.data.path,
            batch_size=config.batch_size,
            resolution=config.stage.resolution,
            length=config.text.max_length if config.text else 128,
            seed=config.seed,
            split=config.data.split,
            conditioning=config.stage.conditioning,
            shuffle=config.data.shuffle,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return stream.batches
    loader = make_loader(config, encoder, source)

    def batches(start: int, state: Any) -> Iterator[Batch]:
        yield from loader.batches(start)  # batch N needs no state

    return batches


def abstract_batch(config: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a whole batch, without data."""
    size, resolution = config.batch_size, config.stage.resolution
    batch = {"image": jax.ShapeDtypeStruct((size, resolution, resolution, 3), np.uint8)}
    if config.stage.conditioning == "text":
        length = config.text.max_length
        batch["ids"] = jax.ShapeDtypeStruct((size, length), np.int32)
        batch["mask"] = jax.ShapeDtypeStruct((size, length), bool)
    elif config.stage.conditioning == "label":
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    return batch


def describe(config: RunConfig, encoder: TextEncoder | None, raw: Section) -> dict[str, Any]:
    """What goes into each checkpoint: the config as written, and the model for a pipeline."""
    sampling = config.sample.sampling if config.sample else SamplingSettings()
    cascade = Cascade((config.stage,), (sampling,), encoder)
    return {"config": as_dict(raw), "model": cascade_to_dict(cascade)}


def write_description(workdir: Path, description: Mapping[str, Any], encoder: TextEncoder | None):
    """Puts config.json and the tokenizer's file into the workdir, which then needs nothing else."""
    workdir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(description["config"], indent=1, ensure_ascii=False)
    (workdir / "config.json").write_text(content + "\n", encoding="utf-8")
    if encoder is not None:
        text.copy_tokenizer(encoder.tokenizer, workdir)


def make_training(
    config: RunConfig, encoder: TextEncoder | None, mesh: Mesh
) -> tuple[Any, Any, Any]:
    """(train_step, init, frozen) of a run on a mesh.

    train_step: (state, batch, key, frozen) -> (state, metrics). init: key -> state. frozen: shapes
    of the text encoder that the step reads and does not train, else None.
    """
    optimizer = make_optimizer(config.optimizer)
    frozen = None
    if encoder is not None and not config.text.trainable:
        if config.text.init_from is None:
            raise ValueError(
                "text.trainable is False and text.init_from is None: an encoder that is neither "
                "trained nor read from somewhere gives noise"
            )
        frozen = jax.eval_shape(lambda key: t5.init(encoder.config, key), jax.random.key(0))

    train_step = make_train_step(
        config.stage,
        encoder,
        optimizer,
        ema_decay=config.ema_decay,
        text_dropout=config.text.dropout if config.text else 0.1,
        gather=lambda params: gather_shards(params, mesh),
    )

    def init(key):
        trained = encoder if frozen is None else None
        with_ema = config.ema_decay is not None
        return init_state(config.stage, trained, optimizer, key, with_ema=with_ema)

    return train_step, init, frozen
