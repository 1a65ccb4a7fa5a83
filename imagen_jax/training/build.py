"""From a ConfigDict to the objects of a run. Past this file nothing knows a ConfigDict."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from imagen_jax import text
from imagen_jax.cascade import Cascade, SamplingSettings
from imagen_jax.cascade import to_dict as cascade_to_dict
from imagen_jax.diffusion.schedules import SCHEDULES
from imagen_jax.lora import LoraConfig, init_lora, target_kernels
from imagen_jax.models import NETWORKS, t5
from imagen_jax.models.t5 import T5Config
from imagen_jax.stage import Stage, init_params
from imagen_jax.text import TextEncoder
from imagen_jax.training.batches import DataConfig, check_buckets, data_section
from imagen_jax.training.config import Section, as_dict, nearest, typed
from imagen_jax.training.loop import LoopConfig
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.sharding import MeshConfig, check_batch
from imagen_jax.training.state import LORA, Frozen, init_state
from imagen_jax.training.step import Prior, make_train_step

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
class EvaluateConfig:
    """Figures of a fixed list of prompts, every `every` steps and at the end, for a base model.

    prompts: a file, as for scripts/evaluate.py; its first `num`. features: directories of networks
    (scripts/convert.py): Inception gives FID, CLIP the CLIP score and, with a reference, CMMD.
    reference: a file of scripts/evaluate.py --make_reference. Pictures are sampled as the section
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
        score_every=config.evaluate.every if config.evaluate else None,
        profile=profile,
        skip_batches=read_ranges(config.skip_batches),
        num_classes=config.stage.network.num_classes,
    )


def make_text_encoder(config: RunConfig) -> TextEncoder | None:
    """The encoder and its tokenizer, or None where the stage reads no text."""
    if config.text is None or config.stage.conditioning != "text":
        return None
    if config.text.tokenizer == "bytes":
        tokenizer = text.make_tokenizer("bytes")
    else:
        tokenizer = text.make_tokenizer("sentencepiece", config.text.tokenizer)
    choices = {name: getattr(config.text, name) for name in text.OPTIONAL}
    encoder = TextEncoder(config.text.encoder, tokenizer, config.text.max_length, **choices)
    text.check_vocabulary(encoder)
    return encoder


def make_cascade(config: RunConfig, encoder: TextEncoder | None) -> Cascade:
    """The run's stage with its sampling settings, as a cascade of its own."""
    sampling = config.sample.sampling if config.sample else SamplingSettings()
    return Cascade((config.stage,), (sampling,), encoder)


def describe(config: RunConfig, encoder: TextEncoder | None, raw: Section) -> dict[str, Any]:
    """What goes into each checkpoint: the config as written, and the model for a pipeline."""
    return {"config": as_dict(raw), "model": cascade_to_dict(make_cascade(config, encoder))}


def write_description(workdir: Path, description: Mapping[str, Any], encoder: TextEncoder | None):
    """Puts config.json and the tokenizer's file into the workdir, which then needs nothing else.

    The first host does, for all.
    """
    if jax.process_index() != 0:
        return
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
    of the parameters that the step reads and does not train, a `Frozen`; None where there are none.
    """
    optimizer = make_optimizer(config.optimizer)
    frozen = frozen_shapes(config, encoder)
    if config.lora is not None:
        target_kernels(frozen.network, config.lora)
    prior, parts = config.data.prior, config.optimizer.accumulation
    if prior is not None:
        prior = Prior(prior.rows(config.batch_size), prior.weight)
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide by optimizer.accumulation {parts}"
        )
    if parts > 1:
        check_batch(mesh, config.batch_size // parts)

    train_step = make_train_step(
        config.stage,
        encoder,
        optimizer,
        ema_decay=config.ema_decay,
        dropout=config.text.dropout if encoder is not None else config.label_dropout,
        accumulation=parts,
        mesh=mesh,
        lora=config.lora,
        prior=prior,
    )

    def init(key):
        trained = encoder if encoder is not None and config.text.trainable else None
        adapter = None
        if config.lora is not None:
            adapter = {LORA: init_lora(frozen.network, config.lora, key)}
        with_ema = config.ema_decay is not None
        return init_state(
            config.stage, trained, optimizer, key, with_ema=with_ema, start_from=adapter
        )

    return train_step, init, frozen


def encoder_source(config: RunConfig) -> str | None:
    """Where a frozen text encoder is read: text.init_from, else init_from."""
    return config.text.init_from or config.init_from


def frozen_shapes(config: RunConfig, encoder: TextEncoder | None) -> Frozen | None:
    """Shapes of the parameters that are read and not trained; None where there are none."""
    network = text_encoder = None
    if config.lora is not None:
        network = jax.eval_shape(lambda key: init_params(config.stage, key), jax.random.key(0))
    embedded = config.data.embeddings is not None
    if encoder is not None and not config.text.trainable and not embedded:
        if encoder_source(config) is None:
            raise ValueError(
                "text.trainable is False, and both text.init_from and init_from are None: an "
                "encoder that is neither trained nor read from somewhere gives noise"
            )
        text_encoder = jax.eval_shape(lambda key: t5.init(encoder.config, key), jax.random.key(0))
    if network is None and text_encoder is None:
        return None
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.frozen_dtype),
        Frozen(network, text_encoder),
    )
