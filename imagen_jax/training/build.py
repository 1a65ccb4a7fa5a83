"""From a ConfigDict to the objects of a run. Past this file nothing knows a ConfigDict."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.cascade.cascade import Cascade, SamplingSettings
from imagen_jax.cascade.description import to_dict as cascade_to_dict
from imagen_jax.cascade.stage import init_params
from imagen_jax.devices.sharding import check_batch
from imagen_jax.models import t5
from imagen_jax.models.lora import init_lora, target_kernels
from imagen_jax.storage.codec import Section, to_dict
from imagen_jax.text.encoder import TextEncoder, check_vocabulary
from imagen_jax.text.tokenizers import copy_tokenizer
from imagen_jax.training.loop import LoopConfig
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.run_config import RunConfig, read_ranges
from imagen_jax.training.state import LORA, Frozen, init_state
from imagen_jax.training.step import Prior, make_train_step


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
    encoder = config.text.text_encoder()
    check_vocabulary(encoder)
    return encoder


def make_cascade(config: RunConfig, encoder: TextEncoder | None) -> Cascade:
    """The run's stage with its sampling settings, as a cascade of its own."""
    sampling = config.sample.sampling if config.sample else SamplingSettings()
    return Cascade((config.stage,), (sampling,), encoder)


def describe(config: RunConfig, encoder: TextEncoder | None, raw: Section) -> dict[str, Any]:
    """What goes into each checkpoint: the config as written, and the model for a pipeline."""
    return {"config": to_dict(raw), "model": cascade_to_dict(make_cascade(config, encoder))}


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
        copy_tokenizer(encoder.tokenizer, workdir)


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
