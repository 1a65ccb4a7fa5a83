"""What training carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.models import t5
from imagen_jax.models.lora import LoraConfig, merge_lora
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.typing import Keys, Params

NETWORK, TEXT_ENCODER, LORA = "network", "text_encoder", "lora"


class TrainState(NamedTuple):
    """step: updates done. params: {"network": ..., "text_encoder": ... where it is trained}, or
    {"lora": ...} alone. ema: their average.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: Any


class Frozen(NamedTuple):
    """Parameters that the step reads and does not train; None for a part that is trained or absent.

    Beside a frozen network an adapter (`imagen_jax.models.lora`) is trained.
    """

    network: Params | None = None
    text_encoder: Params | None = None


def network_params(params: Params, frozen: Frozen | None, lora: LoraConfig | None) -> Params:
    """What the network is to be run with: `params` (or their average), merged into a frozen one."""
    if lora is None:
        return params[NETWORK]
    return merge_lora(frozen.network, params[LORA], lora.scale, "float32")


def encoder_params(params: Params, frozen: Frozen | None) -> Params:
    """The text encoder's parameters, frozen or not."""
    if frozen is None or frozen.text_encoder is None:
        return params[TEXT_ENCODER]
    return frozen.text_encoder


def init_state(
    stage: Stage,
    encoder: TextEncoder | None,
    optimizer: optax.GradientTransformation,
    key: Keys,
    *,
    with_ema: bool = True,
    start_from: Params | None = None,
) -> TrainState:
    """Step 0. `encoder` is one that is trained along, else None; `start_from` replaces the random
    parameters.
    """
    params = start_from
    if params is None:
        params = {NETWORK: init_params(stage, jax.random.fold_in(key, 0))}
        if encoder is not None:
            params[TEXT_ENCODER] = t5.init(encoder.config, jax.random.fold_in(key, 1))
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def update_ema(
    ema: Params, params: Params, step: Int[Array, ""], decay: float | Float[Array, ""]
) -> Params:
    """ema + (1 - d)(params - ema) with d = min(decay, (1 + step) / (10 + step)): a short memory at
    first.
    """
    early = (1.0 + step) / (10.0 + step)
    rate = 1.0 - jnp.minimum(jnp.asarray(decay, jnp.float32), early)
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)
