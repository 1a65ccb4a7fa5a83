"""What a run is configured by: a typed section for each of a config's, checked where it is read."""

import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from imagen_jax import data, models
from imagen_jax.cascade.stage import KINDS, Stage
from imagen_jax.devices.sharding import MeshConfig
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models.lora import LoraConfig
from imagen_jax.models.t5 import T5Config
from imagen_jax.pipeline.power_ema import exponent
from imagen_jax.pipeline.request import check_batch
from imagen_jax.pipeline.snapshots import width_name
from imagen_jax.storage.codec import MERGED, Section, from_dict, nearest, require, to_dict
from imagen_jax.text import captions
from imagen_jax.text.encoder import Null, Padding, TextEncoder
from imagen_jax.text.tokenizers import make_tokenizer
from imagen_jax.training.optimizer import OptimizerConfig

SNAPSHOTS_OF_A_RUN = 32
STREAM, MIXTURE, MEMORY = "seqio", "mixture", "memory"


@dataclasses.dataclass(frozen=True)
class SetConfig:
    """An image set: `source`, a key of data.SOURCES or one of `others`; `path`, a file, folder,
    name, or pattern of shards; its `split`.

    Keys that only the source's reader knows go into `options`: filters, text, label, index_dir of
    tar; data_dir of tfds.
    """

    others: ClassVar[tuple[str, ...]] = ()
    source: str
    path: str | None = None
    split: str = "train"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={MERGED: True})

    def __post_init__(self):
        sources, options = [*data.SOURCES, *self.others], set()
        if self.source not in sources:
            raise ValueError(f"source is {self.source!r}{nearest(self.source, sources)}")
        if self.source in data.SOURCES:
            options = {*inspect.signature(data.SOURCES[self.source]).parameters} - {"conditioning"}
        known = options.union(field.name for field in dataclasses.fields(self)) - {"options"}
        for name in sorted(self.options.keys() - options):
            hint = nearest(name, sorted(known))
            raise ValueError(f"unknown key {name!r} for source {self.source!r}{hint}")


@dataclasses.dataclass(frozen=True)
class PriorConfig(SetConfig):
    """A second image set that a fine-tuned model should not forget (DreamBooth, arXiv 2208.12242).

    prompt: the caption of its images. share: of each batch's rows. weight: of these rows' mean
    loss beside the others' (eq. 2: lambda).
    """

    others: ClassVar[tuple[str, ...]] = (MEMORY,)
    prompt: str | None = None
    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require(
            (0 < self.share < 1, f"share must be between 0 and 1, not {self.share}"),
            (self.weight > 0, f"weight must be positive, not {self.weight}"),
        )

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
class MixedConfig(SetConfig):
    """A set of a mixture; rate: how often its images are chosen beside those of the others."""

    rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig(SetConfig):
    """The images that a run trains on.

    prompt: the caption of every image, for a set that has none. prior: a second set, whose
    images fill the last rows of each batch. sets: those of a mixture, by names of your own.
    embeddings: a directory of imagen-jax embed_text with the set's captions, embedded. module:
    imported first, where a Task of `path` is registered (seqio). crop: "centre" or "random"; None
    is random for a stage that trains on crops. buckets: [width, height] of batches of other shapes
    than squares. weights: draw images in proportion to their field `weight`. on_device: put all
    images of a set in memory on each device once, and send a step only their numbers; batches are
    the same. num_threads, prefetch: of sets with random access.
    """

    others: ClassVar[tuple[str, ...]] = (STREAM, MIXTURE, MEMORY)
    prompt: str | None = None
    prior: PriorConfig | None = None
    sets: Mapping[str, MixedConfig] = dataclasses.field(default_factory=dict)
    embeddings: str | None = None
    module: str | None = None
    shuffle: bool = True
    flip: bool = False
    crop: str | None = None
    buckets: tuple[tuple[int, int], ...] = ()
    weights: bool = False
    on_device: bool = False
    max_broken_share: float = 0.01
    num_threads: int = 4
    prefetch: int = 8

    def __post_init__(self):
        super().__post_init__()
        stream, mixture = self.source == STREAM, self.source == MIXTURE
        one_set = not stream and not mixture and self.prior is None
        in_memory = one_set and self.source in ("npz", MEMORY)
        require(
            (
                not stream or (self.prompt is None and self.prior is None),
                f"source {STREAM!r} is a stream: it has its own captions, and no prior",
            ),
            (
                self.embeddings is None or (one_set and self.prompt is None),
                "embeddings are for one set with random access and its own captions",
            ),
            (
                not (stream and self.flip),
                f"flip is not for source {STREAM!r}: let the Task mirror its images",
            ),
            (
                stream or self.module is None,
                f"module is for source {STREAM!r}: it registers Tasks",
            ),
            (
                bool(self.sets) == mixture,
                f"sets are what source {MIXTURE!r} mixes, and it needs them",
            ),
            (
                not self.buckets or one_set,
                "buckets are for one set with random access, without a prior",
            ),
            (
                not self.weights or (one_set and not self.buckets),
                "weights are for one set with random access, without a prior or buckets",
            ),
            (
                not self.on_device or (in_memory and not (self.embeddings or self.buckets)),
                "on_device is for one set in memory (source 'npz'), without a prior, embeddings or "
                "buckets",
            ),
        )


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
    null: Null = "zeros"
    padding: Padding = "zeros"
    caption: captions.Kind | None = None

    def __post_init__(self):
        require((0 <= self.dropout <= 1, f"text.dropout must be in [0, 1], not {self.dropout}"))

    def text_encoder(self) -> TextEncoder:
        """The encoder and its tokenizer, whose file is read when it is first used."""
        choices = self.max_length, self.null, self.padding, self.caption
        return TextEncoder(self.encoder, make_tokenizer(self.tokenizer), *choices)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """One every `every` steps; the last `keep` stay, and the `keep_best` of lowest loss."""

    every: int = 1000
    keep: int = 3
    keep_best: int = 1

    def __post_init__(self):
        require(
            (self.every >= 1, f"every must be 1 or more, not {self.every}"),
            (self.keep >= 1, f"keep must be 1 or more, not {self.keep}"),
            (self.keep_best >= 0, f"keep_best must be 0 or more, not {self.keep_best}"),
        )


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """Power-law averages (arXiv 2312.02696), beside that of `ema_decay` or in its place.

    widths: relative widths, of which two let any other be put together afterwards. every: steps
    from one snapshot of them to the next; None makes SNAPSHOTS_OF_A_RUN of `num_steps`. dtype: of
    the snapshots on disk: float16 is too coarse where the learning rate decays to nothing.
    """

    widths: tuple[float, ...] = (0.05, 0.1)
    every: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self):
        names = [width_name(width) for width in self.widths if exponent(width)]
        require(
            (names, "ema.widths is empty: give one or more, such as 0.05 and 0.1"),
            (len(set(names)) == len(names), f"ema.widths has one twice: {', '.join(names)}"),
            (
                self.every is None or self.every >= 1,
                f"ema.every must be 1 or more, or None, not {self.every}",
            ),
        )

    def interval(self, num_steps: int) -> int:
        """Steps from one snapshot to the next."""
        return self.every or max(1, num_steps // SNAPSHOTS_OF_A_RUN)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Images sampled during training, every `every` steps and at the end. None: only at the end.

    prompts: for a model of text; labels: for one of classes; count: for one of neither.
    """

    every: int | None = None
    prompts: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    count: int = 8
    seed: int = 0
    sampling: Sampling = dataclasses.field(default_factory=Sampling, metadata={MERGED: True})

    def __post_init__(self):
        object.__setattr__(self, "sampling", check_sampling(self.sampling))
        if self.sampling.guidance_kind == "auto":
            raise ValueError(
                "sample.guidance_kind is 'auto', which needs a second model, and a run has none: "
                "give it when generating, load_model(WORKDIR, guide=OTHER)."
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Figures of a fixed list of prompts, every `every` steps and at the end, for a base model.

    prompts: a file, as for imagen-jax evaluate; its first `num`. features: directories of networks
    (imagen-jax convert): with a reference Inception gives FID, DINOv2 FD-DINOv2 and CLIP CMMD; CLIP
    also the CLIP score.
    reference: a file of imagen-jax evaluate --make_reference. Images are sampled as the section
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
class DistillConfig:
    """What is learned from a teacher instead of the images, see `training.distillation`.

    teacher: a model or workdir. guidance: its weight; None is the one that it ships with.
    steps: the numbers of steps that the student is for, each half of the next: one for
    "progressive", none for "guidance". teacher_steps: how many of the teacher's steps lead from
    noise to image; None is twice as many as the student's most.
    stage, sampling: the teacher's, which `training.inherit` fills in.
    """

    teacher: str
    kind: Literal["guidance", "progressive", "flow_map"] = "flow_map"
    guidance: float | None = None
    steps: tuple[int, ...] = ()
    teacher_steps: int | None = None
    stage: Stage | None = None
    sampling: Sampling | None = None

    def __post_init__(self):
        steps = sorted(self.steps)
        halves = all(2 * few == many for few, many in itertools.pairwise(steps))
        wanted = {"guidance": not steps, "progressive": len(steps) == 1, "flow_map": bool(steps)}
        require(
            (
                wanted[self.kind] and halves and not (steps and steps[0] < 1),
                f"distill.steps {list(self.steps)} do not suit kind {self.kind!r}: it takes "
                f"{STEPS_OF_KIND[self.kind]}",
            ),
        )
        teacher_steps, most = self.teacher_steps, max(self.steps, default=1)
        require(
            (
                teacher_steps is None
                or (bool(steps) and teacher_steps > 0 and teacher_steps % most == 0),
                f"distill.teacher_steps {teacher_steps} must be a multiple of the student's most "
                f"steps, {most}; for kind 'guidance' leave it out",
            ),
        )

    @property
    def steps_of_one(self) -> int:
        """The steps of the teacher that the student's shortest step is learned from."""
        return 2 if self.teacher_steps is None else self.teacher_steps // max(self.steps)


STEPS_OF_KIND = {
    "guidance": "none",
    "progressive": "one number, such as [8]",
    "flow_map": "numbers of which each is half of the next, such as [1, 2, 4]",
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All of a run. `init_from`: a model or workdir whose weights to start from.

    ema: power-law averages, beside that of `ema_decay` or in its place.
    lora: train an adapter alone, and leave the weights of `init_from` as they are. distill: train a
    student of another model. frozen_dtype: of the parameters that are read and not trained.
    frozen_split: devices along fsdp share these too; whole on each they take more memory, and
    nothing waits for them. label_dropout: share of the class labels that are dropped, for guidance
    (of texts: text.dropout). skip_batches: numbers of batches to leave out, "1200:1210" or several
    of these with commas.
    """

    stage: Stage
    data: DataConfig
    batch_size: int
    num_steps: int
    seed: int = 0
    text: TextConfig | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema_decay: float | None = 0.9999
    ema: EmaConfig | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log_every: int = 100
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    sample: SampleConfig | None = None
    evaluate: EvaluateConfig | None = None
    init_from: str | None = None
    lora: LoraConfig | None = None
    distill: DistillConfig | None = None
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    frozen_split: bool = True
    label_dropout: float = 0.1
    skip_batches: str | None = None

    def __post_init__(self):
        counts = {
            "num_steps": self.num_steps,
            "log_every": self.log_every,
            "sample.every": self.sample and self.sample.every,
            "evaluate.every": self.evaluate and self.evaluate.every,
            "evaluate.num": self.evaluate and self.evaluate.num,
            "evaluate.batch_size": self.evaluate and self.evaluate.batch_size,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        check_batch(self.batch_size)
        if self.data.prior is not None:
            self.data.prior.rows(self.batch_size)
        read_ranges(self.skip_batches)
        stage, buckets, step = self.stage, self.data.buckets, models.reduction(self.stage.network)
        odd = [list(size) for size in buckets if min(size) < 1 or any(side % step for side in size)]
        text, decay_steps = self.text, self.optimizer.decay_steps
        frozen_text = text is not None and not text.trainable
        maps = self.distill is not None and self.distill.kind == "flow_map"
        require(
            (
                not buckets or (stage.low_resolution is None and stage.crop is None),
                f"data.buckets are for base models on whole images, not {stage.name!r}",
            ),
            (
                not odd,
                f"data.buckets has {', '.join(map(str, odd))}; sides must be multiples of {step}",
            ),
            (
                self.lora is None or self.init_from is not None,
                "lora adapts a model that is trained: init_from must say which",
            ),
            (
                self.lora is None or text is None or frozen_text,
                "lora trains an adapter alone: text.trainable must be False",
            ),
            (
                self.distill is None or text is None or frozen_text,
                "distill trains a network alone: text.trainable must be False",
            ),
            (
                self.distill is None or self.lora is None,
                "distill trains all of a network, lora an adapter alone: leave one of them out",
            ),
            (
                not stage.is_flow_map or maps,
                f"stage {stage.name!r} is a flow map (network.target_time), which distill.kind "
                "'flow_map' alone trains",
            ),
            (
                stage.is_flow_map or not maps,
                "distill.kind 'flow_map' needs network.target_time, which networks of kind unet, "
                "efficient_unet and transformer have",
            ),
            (
                not (stage.is_flow_map and self.optimizer.keep_zeros),
                "optimizer.keep_zeros would keep network.target_time without effect: prune the "
                "student when it is trained",
            ),
            (
                stage.conditioning != "text" or text is not None,
                "the stage is conditioned on text, but there is no section 'text'",
            ),
            (
                self.data.embeddings is None or (frozen_text and text.null == "zeros"),
                "data.embeddings is for text of a frozen encoder: text.trainable must be False and "
                "text.null 'zeros'",
            ),
            (
                0 <= self.label_dropout <= 1,
                f"label_dropout must be in [0, 1], not {self.label_dropout}",
            ),
            (
                self.ema_decay is None or 0 <= self.ema_decay < 1,
                f"ema_decay must be in [0, 1) or None, not {self.ema_decay}",
            ),
            (
                decay_steps is None or self.num_steps <= decay_steps,
                f"num_steps {self.num_steps} goes past optimizer.decay_steps {decay_steps}, where "
                "the learning rate is 0: raise it, too, or set it to None for a constant rate",
            ),
        )


def read_ranges(text: str | None) -> tuple[tuple[int, int], ...]:
    """ "12:15,20:20" -> ((12, 15), (20, 20))."""
    parts = [part.strip().partition(":") for part in (text or "").split(",") if part.strip()]
    numbers = all(first.isdigit() and last.isdigit() for first, _, last in parts)
    ranges = tuple((int(first), int(last)) for first, _, last in parts) if numbers else ()
    if not numbers or any(first > last for first, last in ranges):
        raise ValueError(
            f"skip_batches is {text!r}; it must be FIRST:LAST with FIRST <= LAST, for example "
            "1200:1210"
        )
    return ranges


def read_config(config: Section) -> RunConfig:
    """A ConfigDict (or dict) as a RunConfig. ValueError names an unknown, missing or bad key."""
    return from_dict(RunConfig, to_dict(config), "config", KINDS)
