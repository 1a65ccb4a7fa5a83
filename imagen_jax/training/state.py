"""What training carries from step to step, and what it reads beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from imagen_jax.models.lora import LoraConfig, merge_lora
from imagen_jax.typing import Params

NETWORK, TEXT_ENCODER, LORA = "network", "text_encoder", "lora"


class TrainState(NamedTuple):
    """step: number of updates. params: {"network": ..., "text_encoder": ... where it is trained},
    or only {"lora": ...}. ema: their average.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: Any


class Frozen(NamedTuple):
    """Parameters that the step reads and does not train; None for a part that is trained or absent.

    With a frozen network an adapter (`imagen_jax.models.lora`) is trained.
    """

    network: Params | None = None
    text_encoder: Params | None = None


def network_params(params: Params, frozen: Frozen, lora: LoraConfig | None) -> Params:
    """The network's parameters: those of `params` (or of their average), an adapter's merged into
    the frozen ones.
    """
    if lora is None:
        return params[NETWORK]
    return merge_lora(frozen.network, params[LORA], lora.scale, "float32")


def encoder_params(params: Params, frozen: Frozen) -> Params:
    """The text encoder's parameters, frozen or not."""
    return params[TEXT_ENCODER] if frozen.text_encoder is None else frozen.text_encoder


def init_state(
    params: Params, optimizer: optax.GradientTransformation, *, with_ema: bool = True
) -> TrainState:
    """Step 0 with these parameters; their average, where one is kept, starts as a copy."""
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
