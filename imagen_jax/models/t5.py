"""The encoder of T5 v1.1 (arXiv 1910.10683, 2002.05202) and its kin mT5, umT5 and ByT5; no dropout.

One block serves all of them: RMSNorm before each branch, attention logits without 1/sqrt(head_dim)
but with a learned bias for each bucket of relative positions, a gated feed-forward layer, no bias
vectors. T5, mT5 and ByT5 share the position bias among layers; umT5 (arXiv 2304.09151) learns one
in every layer.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagen_jax.models.bounds import check_bounds, check_choice
from imagen_jax.models.layers import RMSNorm, attend, scanned
from imagen_jax.models.quantized import quantized_layers
from imagen_jax.storage.codec import require
from imagen_jax.typing import Gather, Keys, Mask, Params, Tokens

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
LAYERS = "layers"  # the stacked parameters


@dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder.

    `dtype` is that of the matrix products; parameters, norms, softmax and residuals are float32.
    """

    vocab_size: int = 32128
    d_model: int = 512
    num_heads: int = 6
    head_dim: int = 64
    num_layers: int = 8
    d_ff: int = 1024
    activation: str = "gelu"  # one of ACTIVATIONS
    gated: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    bias_in_every_layer: bool = False
    norm_eps: float = 1e-6
    # Token embeddings are multiplier * table, the table's entries of this standard deviation at
    # initialization (T5: 1 and 1). Adam moves every weight by about the learning rate a step: a
    # small encoder trained from scratch learns its words sooner from a small table with a large
    # multiplier. Their product should stay near 1, or the layers drown the words.
    embedding_init_scale: float = 1.0
    embedding_multiplier: float = 1.0
    remat: bool = False
    dtype: str = "float32"  # or "bfloat16"

    def __post_init__(self):
        check_bounds(self)
        check_choice("T5Config.activation", self.activation, ACTIVATIONS)
        # float16 overflows in the residuals of T5-XXL.
        check_choice("T5Config.dtype", self.dtype, ("float32", "bfloat16"))
        require(
            (
                self.num_buckets >= 4 and self.num_buckets % 4 == 0,
                f"T5Config.num_buckets is {self.num_buckets}; it must be a multiple of 4.",
            ),
            (
                self.max_distance > self.num_buckets // 4,
                f"T5Config.max_distance is {self.max_distance}; it must exceed num_buckets / 4 = "
                f"{self.num_buckets // 4}, up to which each distance has its own bucket.",
            ),
        )


# The public T5 v1.1 sizes; the paper's text encoder is "xxl".
T5_V1_1 = {
    "small": T5Config(d_model=512, num_heads=6, num_layers=8, d_ff=1024),
    "base": T5Config(d_model=768, num_heads=12, num_layers=12, d_ff=2048),
    "large": T5Config(d_model=1024, num_heads=16, num_layers=24, d_ff=2816),
    "xl": T5Config(d_model=2048, num_heads=32, num_layers=24, d_ff=5120),
    "xxl": T5Config(d_model=4096, num_heads=64, num_layers=24, d_ff=10240),
}


def relative_position_buckets(
    distance: Int[np.ndarray, "..."], num_buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket of each distance (key position minus query position), half of them for each direction.

    Half of a direction's buckets hold one distance each, the others grow logarithmically up to
    `max_distance`, beyond which all share the last. Host numpy in float32, as T5 was trained.
    """
    one_way = num_buckets // 2
    exact = one_way // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / exact) / np.float32(
        np.log(max_distance / exact)
    )
    coarse = exact + (ratio * (one_way - exact)).astype(np.int32)
    bucket = np.where(size < exact, size, np.minimum(coarse, one_way - 1))
    return (bucket + np.where(distance > 0, one_way, 0)).astype(np.int32)


class RelativeBias(nn.Module):
    """The learned bias of the attention logits: one for each head and bucket of positions."""

    config: T5Config

    @nn.compact
    def __call__(
        self, buckets: Int[Array, "length length"]
    ) -> Float[Array, "1 heads length length"]:
        config = self.config
        table = self.param(
            "embedding",
            nn.initializers.normal(config.d_model**-0.5),
            (config.num_buckets, config.num_heads),
            jnp.float32,
        )
        return jnp.take(table.astype(jnp.float32), buckets, axis=0).transpose(2, 0, 1)[None]


def _dense(features: int, std: float, dtype: str, name: str) -> nn.Dense:
    return nn.Dense(
        features, use_bias=False, dtype=dtype, kernel_init=nn.initializers.normal(std), name=name
    )


class Attention(nn.Module):
    """Unscaled self-attention over the real tokens (`mask` True), biased by relative position."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        bias: Float[Array, "1 heads length length"],
        mask: Bool[Array, "batch 1 1 length"],
    ) -> Float[Array, "batch length width"]:
        config = self.config
        inner = config.num_heads * config.head_dim
        # T5 has no 1/sqrt(head_dim) on the logits: the initial query kernel carries it.
        stds = {
            "query": (config.d_model * config.head_dim) ** -0.5,
            "key": config.d_model**-0.5,
            "value": config.d_model**-0.5,
        }
        query, key, value = (
            _dense(inner, std, config.dtype, name)(x) for name, std in stds.items()
        )
        out = attend(query, key, value, config.num_heads, mask, bias=bias, scale=1.0)
        return _dense(config.d_model, inner**-0.5, config.dtype, "out")(out)


class FeedForward(nn.Module):
    """activation(x wi_0) * (x wi_1), then wo (arXiv 2002.05202, eq. 6); T5 1.0 has no gate."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        config = self.config
        std = config.d_model**-0.5
        hidden = ACTIVATIONS[config.activation](_dense(config.d_ff, std, config.dtype, "wi_0")(x))
        if config.gated:
            hidden = hidden * _dense(config.d_ff, std, config.dtype, "wi_1")(x)
        return _dense(config.d_model, config.d_ff**-0.5, config.dtype, "wo")(hidden)


class Layer(nn.Module):
    """One encoder layer as a scan body: the residual stream, in float32, is the carry."""

    config: T5Config

    @nn.compact
    def __call__(self, x, shared_bias, buckets, mask):
        config = self.config
        bias = (
            RelativeBias(config, name="relative_bias")(buckets)
            if config.bias_in_every_layer
            else shared_bias
        )
        normed = RMSNorm(config.norm_eps, config.dtype, name="attention_norm")(x)
        x = x + Attention(config, name="attention")(normed, bias, mask).astype(jnp.float32)
        normed = RMSNorm(config.norm_eps, config.dtype, name="feed_forward_norm")(x)
        x = x + FeedForward(config, name="feed_forward")(normed).astype(jnp.float32)
        return x, None


class Encoder(nn.Module):
    """Token ids to one vector a token; the layers' parameters are stacked on axis 0 and scanned.

    `gather` is applied to a layer's parameters where the layer begins.
    """

    config: T5Config
    gather: Gather | None = None

    @nn.compact
    def __call__(self, ids: Tokens, mask: Mask) -> Float[Array, "batch length width"]:
        config = self.config
        table = self.param(
            "token_embedding",
            nn.initializers.normal(config.embedding_init_scale),
            (config.vocab_size, config.d_model),
            jnp.float32,
        )
        x = jnp.take(table, ids, axis=0).astype(jnp.float32) * config.embedding_multiplier
        positions = np.arange(ids.shape[1])
        distance = positions[None, :] - positions[:, None]
        buckets = jnp.asarray(
            relative_position_buckets(distance, config.num_buckets, config.max_distance)
        )
        bias = (
            None
            if config.bias_in_every_layer
            else RelativeBias(config, name="relative_bias")(buckets)
        )
        layer = Layer
        if self.gather is not None:
            layer = nn.map_variables(layer, "params", self.gather)
        if config.remat:
            layer = nn.remat(layer, prevent_cse=False)
        layers = scanned(layer, config.num_layers)(config, name=LAYERS)
        x, _ = layers(x, bias, buckets, mask[:, None, None, :])
        return RMSNorm(config.norm_eps, "float32", name="final_norm")(x)


def init(config: T5Config, key: Keys) -> Params:
    """Fresh float32 parameters."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return Encoder(config).init(key, ids, ids == 0)["params"]


def encode(
    config: T5Config,
    params: Params,
    ids: Tokens,
    mask: Mask,
    *,
    zero_padding: bool = True,
    gather: Gather | None = None,
) -> Float[Array, "batch length width"]:
    """One float32 vector a token, zero where `mask` (True = real token) is False.

    Zeroing makes the result independent of how an implementation treats padded queries. Without it
    they attend to the real tokens, as Hugging Face's do. `gather` makes whole what devices share:
    each layer's parameters just before their use, the others at once.
    """
    if gather is not None:
        rest = {name: values for name, values in params.items() if name != LAYERS}
        params = gather(rest) | {LAYERS: params[LAYERS]}
    with quantized_layers(params):
        values = Encoder(config, gather).apply({"params": params}, ids, mask)
    if not zero_padding:
        return values
    return jnp.where(mask[:, :, None], values, 0.0)
