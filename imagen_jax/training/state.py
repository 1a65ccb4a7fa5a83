"""What training carries from step to step, and what it reads beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from imagen_jax.models.lora import LoraConfig, merge_lora
from imagen_jax.pipeline.power_ema import exponent
from imagen_jax.pipeline.snapshots import width_name
from imagen_jax.typing import Params

NETWORK, TEXT_ENCODER, LORA = "network", "text_encoder", "lora"


class TrainState(NamedTuple):
    """step: number of updates. params: {"network": ..., "text_encoder": ... where it is trained},
    or only {"lora": ...}. ema: their average. power_ema: their power-law averages by width.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params | None
    opt_state: Any
    power_ema: dict[str, Params] | None = None


class Frozen(NamedTuple):
    """Parameters that the step reads and does not train; None for a part that is trained or absent.

    With a frozen network an adapter (`imagen_jax.models.lora`) is trained. teacher: the network
    that another is distilled from.
    """

    network: Params | None = None
    text_encoder: Params | None = None
    teacher: Params | None = None


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
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    with_ema: bool = True,
    widths: tuple[float, ...] = (),
) -> TrainState:
    """Step 0 with these parameters; their average, where one is kept, starts as a copy. widths:
    those of power-law averages, which start at step 1 with its parameters.
    """
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    powers = {width_name(width): jax.tree.map(jnp.zeros_like, params) for width in widths}
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, ema, optimizer.init(params), powers or None)


def update_ema(
    ema: Params, params: Params, step: Int[Array, ""], decay: float | Float[Array, ""]
) -> Params:
    """ema + (1 - d)(params - ema) with d = min(decay, (1 + step) / (10 + step)): a short memory at
    first.
    """
    early = (1.0 + step) / (10.0 + step)
    rate = 1.0 - jnp.minimum(jnp.asarray(decay, jnp.float32), early)
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)


def update_power_ema(
    averages: dict[str, Params], params: Params, step: Int[Array, ""]
) -> dict[str, Params]:
    """beta average + (1 - beta) params with beta = (1 - 1 / step)^(gamma + 1) (arXiv 2312.02696,
    eq. 127), of each width; at step 1 the parameters themselves.
    """
    # log1p(-1 / step), and expm1: in float32, 1 - beta of a late step would have few digits left.
    past = jnp.log1p(-1.0 / step)

    def update(width: str, average: Params) -> Params:
        rate = -jnp.expm1((exponent(float(width)) + 1) * past)
        return jax.tree.map(lambda e, p: e + rate * (p - e), average, params)

    return {width: update(width, average) for width, average in averages.items()}


def averaged(state: Any) -> Params:
    """What samples are made with: the average where one is kept, of power-law averages alone the
    narrowest, else the parameters.
    """
    if state.ema is not None:
        return state.ema
    powers = getattr(state, "power_ema", None)
    return state.params if powers is None else powers[min(powers, key=float)]
