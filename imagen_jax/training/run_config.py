"""What a run is configured by: a typed section for each of a config's, checked where it is read."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from imagen_jax import data, models
from imagen_jax.cascade.stage import Stage
from imagen_jax.devices.sharding import MeshConfig
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import SCHEDULES
from imagen_jax.models import NETWORKS
from imagen_jax.models.lora import LoraConfig
from imagen_jax.models.t5 import T5Config
from imagen_jax.storage.codec import Section, as_dict, nearest, typed
from imagen_jax.training.config import keywords
from imagen_jax.training.optimizer import OptimizerConfig

STREAM = "seqio"


MEMORY = "memory"


MIXTURE = "mixture"


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """A second image set that a fine-tuned model shall not forget (DreamBooth, arXiv 2208.12242).

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
                f"data.prior.share {self.share} of batch_size {batch_size} is {rows} images; "
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
    """ImageList: `source` npz, folder, tar, array_record, tfrecord, tfds, seqio, mixture or memory;
    `path` a file, folder, name, or pattern of shards.

    prompt: the caption of every image, for a set that has none. prior: a second set, whose
    images fill the last rows of each batch. sets: those of a mixture, by names of your own.
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
            raise ValueError(f"flip is not for source {STREAM!r}: let the Task mirror its images")
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


def check_buckets(section: DataConfig, stage: Stage) -> None:
    """ValueError where a stage cannot train on images of these shapes."""
    if section.buckets and (stage.low_resolution is not None or stage.crop is not None):
        raise ValueError(f"data.buckets are for base models on whole images, not {stage.name!r}")
    step = models.reduction(stage.network)
    for size in section.buckets:
        if min(size) < 1 or any(side % step for side in size):
            raise ValueError(f"data.buckets has {list(size)}; sides must be multiples of {step}")


KINDS = {"network": NETWORKS, "schedule": SCHEDULES, "aug_schedule": SCHEDULES}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text encoder. `tokenizer`: "bytes", or the path of a SentencePiece model.

    trainable: whether it is trained with the stage. dropout: the share of captions replaced by the
    null text. init_from: where the weights of the encoder are: a model, a workdir, or an encoder
    of Hugging Face or T5X by itself; None: where the run's own `init_from` has them.
    null, padding, caption: as of TextEncoder.
    """

    encoder: T5Config
    tokenizer: str = "bytes"
    max_length: int = 128
    trainable: bool = False
    dropout: float = 0.1
    init_from: str | None = None
    null: str = "zeros"
    padding: str = "zeros"
    caption: str | None = None

    def __post_init__(self):
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"text.dropout must be in [0, 1], not {self.dropout}")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """One every `every` steps; the last `keep` stay, and the `keep_best` of lowest loss."""

    every: int = 1000
    keep: int = 3
    keep_best: int = 1

    def __post_init__(self):
        for name, lowest in (("every", 1), ("keep", 1), ("keep_best", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be {lowest} or more, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Images drawn during training, every `every` steps and at the end. None: only at the end.

    prompts: for a model of text; labels: for one of classes; count: for one of neither.
    """

    every: int | None = None
    prompts: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    count: int = 8
    seed: int = 0
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def __post_init__(self):
        object.__setattr__(self, "sampling", check_sampling(self.sampling))


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Figures of a fixed list of prompts, every `every` steps and at the end, for a base model.

    prompts: a file, as for scripts/evaluate.py; its first `num`. features: directories of networks
    (scripts/convert.py): Inception gives FID, CLIP the CLIP score and, with a reference, CMMD.
    reference: a file of scripts/evaluate.py --make_reference. Images are sampled as the section
    `sample` says.
    """

    prompts: str
    features: tuple[str, ...]
    reference: str | None = None
    every: int | None = None
    num: int | None = None
    seed: int = 0
    batch_size: int = 16


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All of a run. `init_from`: a model or workdir whose weights to start from.

    lora: train an adapter alone, and leave the weights of `init_from` as they are. frozen_dtype: of
    the parameters that are read and not trained. label_dropout: share of the class labels that are
    dropped, for guidance (of texts: text.dropout). skip_batches: numbers of batches to leave out,
    "1200:1210" or several of these with commas.
    """

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
    evaluate: EvaluateConfig | None = None
    init_from: str | None = None
    lora: LoraConfig | None = None
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    label_dropout: float = 0.1
    skip_batches: str | None = None

    def __post_init__(self):
        if self.data.prior is not None:
            self.data.prior.rows(self.batch_size)
        check_buckets(self.data, self.stage)
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora adapts a model that is trained: init_from must say which")
        if self.lora is not None and self.text is not None and self.text.trainable:
            raise ValueError("lora trains an adapter alone: text.trainable must be False")
        if self.stage.conditioning == "text" and self.text is None:
            raise ValueError("the stage is conditioned on text, but there is no section 'text'")
        if self.data.embeddings is not None and (
            self.text is None or self.text.trainable or self.text.null != "zeros"
        ):
            raise ValueError(
                "data.embeddings is for text of a frozen encoder: text.trainable must be False and "
                "text.null 'zeros'"
            )
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be in [0, 1], not {self.label_dropout}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1) or None, not {self.ema_decay}")
        decay_steps = self.optimizer.decay_steps
        if decay_steps is not None and self.num_steps > decay_steps:
            raise ValueError(
                f"num_steps {self.num_steps} goes past optimizer.decay_steps {decay_steps}, where "
                "the learning rate is 0: raise it, too, or set it to None for a constant rate"
            )
        read_ranges(self.skip_batches)


def read_ranges(text: str | None) -> tuple[tuple[int, int], ...]:
    """ "12:15,20:20" -> ((12, 15), (20, 20))."""
    parts = [part.strip().partition(":") for part in (text or "").split(",") if part.strip()]
    if not all(first.isdigit() and last.isdigit() for first, _, last in parts):
        raise ValueError(f"skip_batches is {text!r}; it must be FIRST:LAST, for example 1200:1210")
    return tuple((int(first), int(last)) for first, _, last in parts)


def read_config(config: Section) -> RunConfig:
    """A ConfigDict (or dict) as a RunConfig. ValueError names an unknown, missing or bad key."""
    config = as_dict(config)
    config["data"] = data_section(config.get("data") or {})
    if isinstance(config.get("sample"), dict):
        config["sample"] = _sample_section(config["sample"])
    return typed(RunConfig, config, "", KINDS)


def _sample_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the sampler's keys (steps, guidance, ...) into `sampling`."""
    sampler = [field.name for field in dataclasses.fields(Sampling)]
    own = [field.name for field in dataclasses.fields(SampleConfig) if field.name != "sampling"]
    for name in section:
        if name not in own and name not in sampler:
            raise ValueError(f"unknown config key 'sample.{name}'{nearest(name, own + sampler)}")
    chosen = {name: value for name, value in section.items() if name in own}
    return chosen | {"sampling": {k: v for k, v in section.items() if k in sampler}}
