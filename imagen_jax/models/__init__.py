"""Networks. The only place that knows flax.linen: everyone else sees `init(config, key)` and
`apply(config, params, ...)`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagen_jax.devices.sharding import STACKED
from imagen_jax.models.attention import Attention, fused_attention
from imagen_jax.models.attention_maps import COLLECTION, TextMaps, by_layer
from imagen_jax.models.efficient_unet import EfficientLevel, EfficientUNet, EfficientUNetConfig
from imagen_jax.models.layers import TextDraft, takes_fused
from imagen_jax.models.prx import PRX, PRXConfig
from imagen_jax.models.quantized import quantized_layers
from imagen_jax.models.transformer import Transformer, TransformerConfig
from imagen_jax.models.unet import UNet, UNetConfig, UNetLevel
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.typing import Gather, Images, Keys, Params, TextEmbeddings

__all__ = [
    "NETWORKS",
    "EfficientLevel",
    "EfficientUNetConfig",
    "NetworkConfig",
    "PRXConfig",
    "TextMaps",
    "TrainingParams",
    "TransformerConfig",
    "UNetConfig",
    "UNetLevel",
    "WatchedParams",
    "apply",
    "compute_params",
    "draft",
    "fused_attention",
    "init",
    "on_platform",
    "pooling_heads",
    "reduction",
    "takes_target_time",
]

NetworkConfig = UNetConfig | EfficientUNetConfig | TransformerConfig | PRXConfig
NETWORKS = {
    "unet": UNetConfig,
    "efficient_unet": EfficientUNetConfig,
    "transformer": TransformerConfig,
    "prx": PRXConfig,
}
MODULES = {
    UNetConfig: UNet,
    EfficientUNetConfig: EfficientUNet,
    TransformerConfig: Transformer,
    PRXConfig: PRX,
}
# The last layers compute in float32, whatever the config's dtype.
FLOAT32 = ("conv_out/", "skip_gains/", "patch_out/")


class TrainingParams(NamedTuple):
    """Parameters as a train step has them. gather: makes those whole that devices share, of layers
    in a loop one layer at a time. dropout: a key for each example. attention: the fused one of
    these devices, where they have one.
    """

    params: Params
    gather: Gather | None = None
    dropout: Keys | None = None
    attention: Attention | None = None


class WatchedParams(NamedTuple):
    """Parameters of a network that is asked how much its pixels attend to the text: `apply` gives
    that, by layer, and no image.
    """

    params: Params


def reduction(config: NetworkConfig) -> int:
    """The factor by which the network shrinks its input at the bottom; image sides must be
    multiples of it.
    """
    if isinstance(config, UNetConfig):
        return 2 ** (len(config.levels) - 1)
    if isinstance(config, TransformerConfig | PRXConfig):
        return config.patch_size
    return config.patch_size * math.prod(level.stride for level in config.levels)


def pooling_heads(config: NetworkConfig, text_width: int) -> int:
    """The heads that pool the text, which must divide its width; 1 where nothing does."""
    if isinstance(config, UNetConfig):
        return config.pooling_heads or 1
    if isinstance(config, TransformerConfig | PRXConfig):
        return 1
    return max(1, text_width // 64)


def takes_target_time(config: NetworkConfig) -> bool:
    """Whether the network is told the time that a step leads to."""
    return getattr(config, "target_time", False)


def on_platform(config: NetworkConfig, platform: str) -> NetworkConfig:
    """The network as it would run on "cpu", "gpu" or "tpu": with what it leaves to the platform
    decided.
    """
    chosen = {}
    if getattr(config, "scan_layers", True) is None:
        chosen["scan_layers"] = platform != "cpu"
    if getattr(config, "fused", False) is None:
        chosen["fused"] = takes_fused(None, config.dtype, platform)
    return dataclasses.replace(config, **chosen)


def init(config: NetworkConfig, key, *, resolution: int, text_width: int | None = None) -> Params:
    """Random float32 parameters. `text_width` is the width of the text embeddings, None without
    text.
    """
    x = jnp.zeros((1, resolution, resolution, config.in_channels))
    text = None
    if text_width is not None:
        text = TextEmbeddings(jnp.zeros((1, 2, text_width)), jnp.ones((1, 2), bool))
    label = jnp.zeros((1,), jnp.int32) if config.num_classes is not None else None
    low_res = x[..., : config.low_res_channels] if config.low_res_channels else None
    aug_level = jnp.zeros((1,)) if config.low_res_channels else None
    inputs = [x, jnp.zeros((1,)), text, label, low_res, aug_level]
    if takes_target_time(config):
        inputs.append(jnp.zeros((1,)))
    return jax.jit(MODULES[type(config)](config).init)(key, *inputs)["params"]


def compute_params(config: NetworkConfig, params: Params) -> Params:
    """The parameters with kernels in the dtype that their layers multiply in, as each layer would
    make them: so that devices which share parameters send each other half as much.
    """

    flat = flatten(params)
    kernels = {path for path in flat if path.endswith("/kernel") and not path.startswith(FLOAT32)}
    return unflatten({p: x.astype(config.dtype) if p in kernels else x for p, x in flat.items()})


def draft(
    config: EfficientUNetConfig, params: Params, text: TextEmbeddings, resolution: int
) -> Images:
    """The guess from the text alone that a network with `config.draft` starts from."""
    module = TextDraft((resolution, resolution, config.in_channels), jnp.dtype(config.dtype))
    return module.apply({"params": params["draft"]}, text)


def apply(
    config: NetworkConfig,
    params: Params | TrainingParams | WatchedParams,
    x: Images,
    time: Float[Array, " batch"],
    *,
    text: TextEmbeddings | None = None,
    label: Int[Array, " batch"] | None = None,
    low_res: Images | None = None,
    aug_level: Float[Array, " batch"] | None = None,
    target: Float[Array, " batch"] | None = None,
) -> Float[Array, "batch height width out_channels"] | TextMaps:
    """Runs the network: x in [-1,1] plus noise, `time` = 1000 t, `aug_level` = 1000 level,
    `low_res` of x's size; `target` = 1000 s where the network takes the time that a step leads to.
    """
    gather = dropout = attention = None
    if isinstance(params, TrainingParams):
        params, gather, dropout, attention = params
    inputs = [x, time, text, label, low_res, aug_level]
    if takes_target_time(config):
        inputs.append(target)
    if isinstance(params, WatchedParams):
        return _text_maps(config, params.params, inputs)
    if not isinstance(config, TransformerConfig):
        whole = params if gather is None else gather(params)
        fused = {"attention": attention} if isinstance(config, UNetConfig) else {}
        with quantized_layers(whole):
            return MODULES[type(config)](config, **fused).apply({"params": whole}, *inputs)
    if gather is not None:
        stacked = {name: part for name, part in params.items() if STACKED.search(f"{name}/")}
        params = gather({name: params[name] for name in params.keys() - stacked}) | stacked
    network = Transformer(config, gather, attention)
    with quantized_layers(params):
        return network.apply({"params": params}, *inputs, keys=dropout)


def _text_maps(config: NetworkConfig, params: Params, inputs: Sequence[Any]) -> TextMaps:
    """How much pixels attend to the text, of a network with these inputs."""
    with quantized_layers(params):
        _, kept = MODULES[type(config)](config).apply(
            {"params": params}, *inputs, mutable=[COLLECTION]
        )
    patch = getattr(config, "patch_size", 1)
    height, width = inputs[0].shape[1:3]
    return by_layer(kept.get(COLLECTION, {}), height // patch, width // patch)
