"""The pictures of a run: the config's section `data`, and the batches that it stands for."""

import dataclasses
import importlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import data, models, text
from imagen_jax.data.embeddings import read_embedded
from imagen_jax.stage import Stage
from imagen_jax.text import TextEncoder
from imagen_jax.training.config import keywords, nearest
from imagen_jax.training.feed import Batch, Batches
from imagen_jax.training.sharding import host_groups, host_rows

if TYPE_CHECKING:
    from imagen_jax.training.build import RunConfig

STREAM = "seqio"
MEMORY = "memory"
MIXTURE = "mixture"
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """A second picture set that a fine-tuned model shall not forget (DreamBooth, arXiv 2208.12242).

    source, path, split, prompt, options: as in DataConfig. share: of each batch's rows. weight: of
    these rows' mean loss beside the others' (eq. 2: lambda).
    """

    source: str
    path: str | None = None
    split: str = "train"
    prompt: str | None = None
    share: float = 0.5
    weight: float = 1.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")
        if not self.weight > 0:
            raise ValueError(f"weight must be positive, not {self.weight}")

    def rows(self, batch_size: int) -> int:
        """How many of a batch's rows, its last, are of this set."""
        rows = round(self.share * batch_size)
        if not 0 < rows < batch_size:
            raise ValueError(
                f"data.prior.share {self.share} of batch_size {batch_size} is {rows} pictures; "
                "both sets need at least one"
            )
        return rows


@dataclasses.dataclass(frozen=True)
class MixedConfig:
    """A set of a mixture; rate: how often it is drawn beside the others. The rest: DataConfig."""

    source: str
    path: str | None = None
    split: str = "train"
    rate: float = 1.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Pictures: `source` npz, folder, tar, array_record, tfrecord, tfds, seqio, mixture or memory;
    `path` a file, folder, name, or pattern of shards.

    prompt: the caption of every picture, for a set that has none. prior: a second set, whose
    pictures fill the last rows of each batch. sets: those of a mixture, by names of your own.
    embeddings: a directory of scripts/embed_text.py with the set's captions, embedded. module:
    imported first, where a Task of `path` is registered (seqio). crop: "centre" or "random"; None
    is random for a stage that trains on crops. buckets: [width, height] of batches of other shapes
    than squares. num_threads, prefetch: of sets with random access. `options` are the reader's own
    arguments (filters, text, label, index_dir of tar; data_dir of tfds).
    """

    source: str
    path: str | None = None
    split: str = "train"
    prompt: str | None = None
    prior: PriorConfig | None = None
    sets: tuple[MixedConfig, ...] = ()
    embeddings: str | None = None
    module: str | None = None
    shuffle: bool = True
    flip: bool = False
    crop: str | None = None
    buckets: tuple[tuple[int, int], ...] = ()
    max_broken_share: float = 0.01
    num_threads: int = 4
    prefetch: int = 8
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.source == STREAM and (self.prompt is not None or self.prior is not None):
            raise ValueError(
                f"source {STREAM!r} is a stream: it has captions of its own and no prior"
            )
        one_set = self.source not in (STREAM, MIXTURE) and self.prior is None
        own_captions = one_set and self.prompt is None
        if self.embeddings is not None and not own_captions:
            raise ValueError(
                "embeddings are for one set with random access and captions of its own"
            )
        if self.source == STREAM and self.flip:
            raise ValueError(f"flip is not for source {STREAM!r}: let the Task mirror its pictures")
        if self.source != STREAM and self.module is not None:
            raise ValueError(f"module is for source {STREAM!r}: it registers Tasks")
        if bool(self.sets) != (self.source == MIXTURE):
            raise ValueError(f"sets are what source {MIXTURE!r} mixes, and it needs them")
        if self.buckets and (self.prior is not None or self.source in (STREAM, MIXTURE)):
            raise ValueError("buckets are of one set with random access, without a prior")


def data_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the keys that only a source's reader knows into `options`, in its parts too."""
    known = [*data.SOURCES, STREAM, MIXTURE, MEMORY]
    sorted_out = _with_options(section, "data", DataConfig, known)
    sets = sorted_out.get("sets")
    if isinstance(sets, Mapping):
        sorted_out["sets"] = [
            _with_options(part, f"data.sets.{name}", MixedConfig, [*data.SOURCES])
            for name, part in sorted(sets.items())  # a ConfigDict has no order
        ]
    prior = sorted_out.get("prior")
    if isinstance(prior, Mapping):
        known = [*data.SOURCES, MEMORY]
        sorted_out["prior"] = _with_options(prior, "data.prior", PriorConfig, known)
    return sorted_out


def _with_options(
    section: Mapping[str, Any], path: str, cls: type, known_sources: list[str]
) -> dict[str, Any]:
    source = section.get("source")
    if source not in known_sources:
        hint = nearest(str(source), known_sources)
        raise ValueError(f"config key '{path}.source' is {source!r}{hint}")
    own = [field.name for field in dataclasses.fields(cls) if field.name != "options"]
    reader = data.SOURCES.get(source)
    options = keywords(reader, ("path", "split", "conditioning")) if reader else []
    for name in section:
        if name not in own and name not in options:
            hint = nearest(name, [*own, *options])
            raise ValueError(f"unknown config key '{path}.{name}' for source {source!r}{hint}")
    chosen = {name: value for name, value in section.items() if name in own}
    return chosen | {"options": {k: v for k, v in section.items() if k in options}}


def read_set(
    section: DataConfig | PriorConfig | MixedConfig, conditioning: str | None
) -> data.Source:
    """A picture set with random access. With a prompt it needs no captions of its own."""
    if not isinstance(section, MixedConfig) and section.prompt is not None:
        conditioning = None
    if isinstance(section, DataConfig) and section.source == MIXTURE:
        parts = [read_set(part, conditioning) for part in section.sets]
        return data.MixtureSource(parts, [part.rate for part in section.sets])
    wheres = {DataConfig: "data", PriorConfig: "data.prior", MixedConfig: "data.sets"}
    where = wheres[type(section)]
    if section.source == MEMORY:
        raise ValueError(f"{where}.source 'memory' is for calls from Python that give the source")
    if section.path is None:
        raise ValueError(f"{where}.path is None; source {section.source!r} needs one")
    read = data.SOURCES[section.source]
    return read(section.path, split=section.split, conditioning=conditioning, **section.options)


def check_buckets(section: DataConfig, stage: Stage) -> None:
    """ValueError where a stage cannot train on pictures of these shapes."""
    if section.buckets and (stage.low_resolution is not None or stage.crop is not None):
        raise ValueError(f"data.buckets are for base models on whole pictures, not {stage.name!r}")
    step = models.reduction(stage.network)
    for size in section.buckets:
        if min(size) < 1 or any(side % step for side in size):
            raise ValueError(f"data.buckets has {list(size)}; sides must be multiples of {step}")


def crop_kind(config: "RunConfig") -> str:
    """What is kept of a picture: "centre", or "random" by default where a stage trains on crops."""
    default = "centre" if config.stage.crop is None else "random"
    return config.data.crop or default


def make_source(config: "RunConfig") -> data.Source:
    """The run's picture set, but for that of the prior; with the embeddings where it has some."""
    source = read_set(config.data, config.stage.conditioning)
    directory = config.data.embeddings
    return source if directory is None else read_embedded(source, directory)


def make_loader(
    config: "RunConfig",
    encoder: TextEncoder | None,
    source: data.Source | None = None,
    prior_source: data.Source | None = None,
    mesh: Mesh | None = None,
) -> data.Loader | data.PriorLoader:
    """The loader of this host's rows, of all where `mesh` is None. `source`, `prior_source`:
    pictures in memory.
    """
    section, prior = config.data, config.data.prior
    own_rows = None
    if mesh is not None:
        own_rows = host_rows(mesh, config.batch_size, jax.process_index())

    def loader(own: DataConfig | PriorConfig, source, **options):
        if source is None:
            own_set = own is section
            source = make_source(config) if own_set else read_set(own, config.stage.conditioning)
        check_labels(config, source)
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
            max_broken_share=section.max_broken_share,
            num_threads=section.num_threads,
            prefetch=section.prefetch,
            **options,
        )

    if prior is None:
        return loader(
            section, source, batch_size=config.batch_size, seed=config.seed, rows=own_rows
        )
    rows = prior.rows(config.batch_size)
    # Sets of one size would else be drawn in the same order, always in the same pairs.
    prior_seed = (config.seed + LARGEST_SEED // 2) % LARGEST_SEED
    return data.PriorLoader(
        loader(section, source, batch_size=config.batch_size - rows, seed=config.seed),
        loader(prior, prior_source, batch_size=rows, seed=prior_seed),
        rows=own_rows,
    )


def make_stream(config: "RunConfig", mesh: Mesh | None = None) -> Any:
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


def check_labels(config: "RunConfig", source: data.Source) -> None:
    """ValueError where the set has labels that the network has no class for."""
    labels = getattr(source, "labels", None)
    if config.stage.conditioning != "label" or labels is None:
        return
    lowest, highest = int(np.min(labels)), int(np.max(labels))
    classes = config.stage.network.num_classes
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"the labels of {config.data.path} go from {lowest} to {highest}, but "
            f"stage.network.num_classes is {classes}: it must be at least {highest + 1}"
        )


class Tokenizer:
    """Captions to ids and mask; says once what share of the captions is cut."""

    COUNTED = 1000

    def __init__(self, encoder: TextEncoder):
        self.encoder, self.seen, self.cut = encoder, 0, 0

    def __call__(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.seen < self.COUNTED:
            limit = self.encoder.max_length - 1
            lengths = [len(ids) for ids in text.token_ids(self.encoder.tokenizer, captions)]
            before, self.seen = self.seen, self.seen + len(captions)
            self.cut += sum(length > limit for length in lengths)
            if self.cut and before < self.COUNTED <= self.seen:
                logging.warning(
                    "%.1f %% of the first %d captions have more than text.max_length - 1 = %d "
                    "tokens and are cut",
                    100 * self.cut / self.seen,
                    self.seen,
                    limit,
                )
        return text.tokenize(self.encoder, captions, warn=False)


def make_batches(
    config: "RunConfig",
    encoder: TextEncoder | None,
    source: data.Source | None = None,
    prior_source: data.Source | None = None,
    mesh: Mesh | None = None,
) -> Batches:
    """(step, iterator state) -> batches from that step on: this host's rows on a mesh, all where
    it is None.
    """
    if config.data.source == STREAM and source is None:
        stream = make_stream(config, mesh)
        return stream.batches
    loader = make_loader(config, encoder, source, prior_source, mesh)

    def batches(start: int, state: Any) -> Iterator[Batch]:
        yield from loader.batches(start)  # batch N needs no state

    return batches


def abstract_batch(config: "RunConfig") -> dict[str, jax.ShapeDtypeStruct]:
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
