"""From a run's config to its text encoder, its train step, and the description of its model."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.description import to_dict as cascade_to_dict
from imagen_jax.cascade.stage import init_params
from imagen_jax.devices.sharding import check_batch
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models import t5
from imagen_jax.models.lora import init_lora, target_kernels
from imagen_jax.storage.codec import Section, to_dict
from imagen_jax.text import encoder as text
from imagen_jax.training.optimizer import make_optimizer
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.state import LORA, NETWORK, TEXT_ENCODER, Frozen, init_state
from imagen_jax.training.step import make_train_step
from imagen_jax.typing import Keys, Params


def make_text_encoder(config: RunConfig) -> text.TextEncoder | None:
    """The encoder and its tokenizer, or None where the stage reads no text."""
    if config.text is None or config.stage.conditioning != "text":
        return None
    encoder = config.text.text_encoder()
    text.check_vocabulary(encoder)
    return encoder


def make_cascade(config: RunConfig, encoder: text.TextEncoder | None) -> Cascade:
    """The run's stage with its sampling settings, as a cascade of its own."""
    sampling = config.sample.sampling if config.sample else Sampling()
    return Cascade((config.stage,), (sampling,), encoder)


def describe(
    config: RunConfig,
    encoder: text.TextEncoder | None,
    raw: Section,
    class_names: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What goes into each checkpoint: the config as written, and the model for a pipeline."""
    cascade = replace(make_cascade(config, encoder), class_names=class_names)
    return {"config": to_dict(raw), "model": cascade_to_dict(cascade)}


def make_training(
    config: RunConfig, encoder: text.TextEncoder | None, mesh: jax.sharding.Mesh
) -> tuple[Any, Any, Frozen]:
    """(train_step, init, frozen) of a run on a mesh.

    train_step: (state, batch, key, frozen) -> (state, metrics). init: key -> state. frozen: shapes
    of the parameters that the step reads and does not train.

    Raises:
        ValueError: the batch does not divide by the micro-batches or the mesh, an adapter's targets
            find nothing, or a frozen encoder has no source.
    """
    frozen = frozen_shapes(config, encoder)
    if config.lora is not None:
        target_kernels(frozen.network, config.lora)
    accumulation = config.optimizer.accumulation
    if config.batch_size % accumulation:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide by optimizer.accumulation "
            f"{accumulation}"
        )
    check_batch(mesh, config.batch_size // accumulation)

    def init(key):
        if config.lora is not None:
            params = {LORA: init_lora(frozen.network, config.lora, key)}
        else:
            params = init_parameters(config, encoder, key)
        optimizer = make_optimizer(config.optimizer)
        widths = () if config.ema is None else config.ema.widths
        return init_state(params, optimizer, with_ema=config.ema_decay is not None, widths=widths)

    return make_train_step(config, encoder, mesh), init, frozen


def init_parameters(config: RunConfig, encoder: text.TextEncoder | None, key: Keys) -> Params:
    """Random parameters of the network, and of the text encoder where it is trained too."""
    params = {NETWORK: init_params(config.stage, jax.random.fold_in(key, 0))}
    if encoder is not None and config.text.trainable:
        params[TEXT_ENCODER] = t5.init(encoder.config, jax.random.fold_in(key, 1))
    return params


def encoder_source(config: RunConfig) -> str | None:
    """Where the text encoder is read from: text.init_from, else init_from."""
    return config.text.init_from or config.init_from


def frozen_shapes(config: RunConfig, encoder: text.TextEncoder | None) -> Frozen:
    """Shapes of the parameters that are read and not trained."""
    network = text_encoder = teacher = None
    key = jax.random.key(0)
    if config.lora is not None:
        network = jax.eval_shape(partial(init_params, config.stage), key)
    if config.distill is not None:
        teacher = jax.eval_shape(partial(init_params, config.distill.stage), key)
    embedded = config.data.embeddings is not None
    if encoder is not None and not config.text.trainable and not embedded:
        if encoder_source(config) is None:
            raise ValueError(
                "text.trainable is False, and both text.init_from and init_from are None: an "
                "encoder that is neither trained nor read from somewhere gives noise"
            )
        text_encoder = jax.eval_shape(partial(t5.init, encoder.config), key)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.frozen_dtype),
        Frozen(network, text_encoder, teacher),
    )
