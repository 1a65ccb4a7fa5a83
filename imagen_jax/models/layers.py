"""Blocks that both U-Nets are made of. NHWC; parameters float32, compute in `dtype`, norms and
softmax float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from imagen_jax.devices.accelerators import runs_cudnn_attention
from imagen_jax.devices.cpu_fusion import computed_once
from imagen_jax.models.activations import ACTIVATIONS
from imagen_jax.models.attention import KEPT
from imagen_jax.models.attention_maps import COLLECTION
from imagen_jax.models.group_norm import GroupNorm
from imagen_jax.typing import TextEmbeddings

zeros = nn.initializers.zeros_init()
NHWC = ("NHWC", "HWIO", "NHWC")


def takes_fused(fused: bool | None, dtype: str, platform: str | None = None) -> bool:
    """Whether a network takes the form that is for GPUs. None: where it runs on one that has
    cuDNN's attention ("gpu"; None: as jax does), and not in float32, which that does not know.
    """
    if fused is not None:
        return fused
    if dtype == "float32":
        return False
    return runs_cudnn_attention() if platform is None else platform == "gpu"


def _is_product(primitive: Any, *shapes: Any, **params: Any) -> bool:
    """Whether an operation is a convolution or a dense layer, whose results "products" keeps.

    Attention's weights are products of activations: they take more memory than time.
    """
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    if primitive is not jax.lax.dot_general_p:
        return False
    _, batch_axes = params["dimension_numbers"]
    return batch_axes == ((), ())


def rematerialized(
    block: type[nn.Module], remat: bool | str, prevent_cse: bool = True
) -> type[nn.Module]:
    """The module, keeping for its backward pass what `remat`, one of bounds.REMATS, says.
    `prevent_cse` is needed outside of loops alone.
    """
    if remat is False:
        return block
    policy = None
    if remat == "products":
        named = jax.checkpoint_policies.save_only_these_names(KEPT)
        policy = jax.checkpoint_policies.save_from_both_policies(_is_product, named)
    return nn.remat(block, prevent_cse=prevent_cse, policy=policy)


def scanned(layer: type[nn.Module], length: int, unroll: int = 1) -> type[nn.Module]:
    """So many layers one after another, their parameters stacked on a first axis; `unroll` of them
    each time round the loop.

    A layer maps (carry, *what all layers read) to (carry, None).
    """
    return nn.scan(
        layer,
        variable_axes={"params": 0, COLLECTION: 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=unroll,
    )


def layer_stack(
    layer: type[nn.Module], length: int, remat: bool | str, scan_layers: bool | None
) -> type[nn.Module]:
    """So many layers, recomputed as `remat` says; in a loop if `scan_layers` (None: on
    accelerators). The parameters are the same either way.
    """
    loop = jax.default_backend() != "cpu" if scan_layers is None else scan_layers
    return scanned(
        rematerialized(layer, remat, prevent_cse=not loop), length, 1 if loop else length
    )


def sinusoidal_embedding(
    position: Float[Array, " batch"], width: int, max_period: float = 10_000.0
) -> Float[Array, "batch width"]:
    """[cos, sin] features of `position` (here 1000 * t), geometric frequencies (arXiv 1706.03762,
    section 3.5).
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = position.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def space_to_depth(x: Float[Array, "b h w c"], block: int) -> Float[Array, "b h2 w2 c2"]:
    """Folds each `block` x `block` patch into channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Float[Array, "b h w c"], block: int) -> Float[Array, "b h2 w2 c2"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * block, w * block, c // block**2)


def nearest_upsample(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c"]:
    """Repeats every pixel `factor` times in both directions."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2x2 mean pooling."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c outputs"], stride: int
) -> Float[Array, "b h2 w2 outputs"]:
    """A 3x3 convolution, zero padding. Small maps go through one matmul over patches: 1.5 times as
    fast on XLA:CPU.
    """
    height, width = x.shape[1:3]
    if height * width <= 16 and stride == 1:
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifts, -1) @ kernel.reshape(-1, kernel.shape[-1])
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC)


class Conv3x3(nn.Module):
    """`convolve`, and a bias; `add_bias` False gives (result, bias), for a norm that adds it."""

    channels: int
    dtype: jnp.dtype
    stride: int = 1
    kernel_init: Callable = nn.initializers.lecun_normal()
    add_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", zeros, (self.channels,))
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        out = convolve(x, kernel, self.stride)
        return out + bias.astype(self.dtype) if self.add_bias else (out, bias)


class RMSNorm(nn.Module):
    """x / rms(x) * scale in float32, without centering."""

    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.dtype)


class ResBlock(nn.Module):
    """GroupNorm-activation-conv3 twice with a shortcut; the embedding enters as scale and shift of
    the second norm.

    With `resample` "down" or "up" both branches are resampled inside the block (BigGAN-deep, arXiv
    1809.11096; ADM, arXiv 2105.05233). Without it this is the ResNetBlock of the Efficient U-Net
    (arXiv 2205.11487, fig. A.27). `activate_embedding` False is for an embedding that has been
    through its activation. The sum of both branches is divided by `output_scale_factor`. `fused`:
    the norms' form (`GroupNorm`).
    """

    channels: int
    dtype: jnp.dtype
    resample: str | None = None
    activation: str = "swish"
    norm_groups: int = 32
    norm_eps: float = 1e-5
    activate_embedding: bool = True
    output_scale_factor: float = 1.0
    fused: bool = False

    @nn.compact
    def __call__(self, x, embedding):
        activation, x = ACTIVATIONS[self.activation], computed_once(x)
        norm = functools.partial(
            GroupNorm, self.norm_groups, self.norm_eps, activation, fused=self.fused
        )
        h = norm(name="norm1")(x)
        if self.resample:
            change = {"down": average_pool, "up": nearest_upsample}[self.resample]
            h, x = computed_once(change(h)), change(x)
        h, bias = Conv3x3(self.channels, self.dtype, add_bias=False, name="conv1")(h)
        if self.activate_embedding:
            embedding = activation(embedding)
        scale_shift = nn.Dense(
            2 * self.channels, dtype=self.dtype, kernel_init=zeros, name="scale_shift"
        )(embedding)
        h = norm(name="norm2")(h, scale_shift, bias)
        h = Conv3x3(self.channels, self.dtype, kernel_init=zeros, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        out = x + h
        return out if self.output_scale_factor == 1 else out / self.output_scale_factor


def attend(
    query: Float[Array, "b queries width"],
    key: Float[Array, "b keys width"],
    value: Float[Array, "b keys width"],
    heads: int,
    mask: Bool[Array, "#b 1 #queries keys"] | None = None,
    bias: Float[Array, "#b heads queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b queries width"]:
    """Attention by several heads, each of an equal share of the width, where `mask` is True.

    `bias` is added to the logits; `scale` multiplies them (None: 1/sqrt of a head's width). A query
    that may attend to nothing gets the mean of all values.
    """
    query, key, value = (
        x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (query, key, value)
    )
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    logits *= query.shape[-1] ** -0.5 if scale is None else scale
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min / 2)
    highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    # Divided by their sum after the product, not before: that is a pass over all weights less.
    out = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
    out = (out / weights.sum(-1, keepdims=True)).astype(value.dtype)
    return out.transpose(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], -1)


def real_tokens_first(text: TextEmbeddings | None) -> TextEmbeddings | None:
    """So that lengths say which tokens are keys, the form of a mask that cuDNN's attention takes.
    Tokens have no positions here: nothing else changes.
    """
    if text is None:
        return None
    order = jnp.argsort(~text.mask, axis=1, stable=True)
    values = jnp.take_along_axis(text.values, order[..., None], axis=1)
    return TextEmbeddings(values, jnp.take_along_axis(text.mask, order, axis=1))


def masked_mean(
    values: Float[Array, "b length width"], mask: Bool[Array, "b length"]
) -> Float[Array, "b 1 width"]:
    """The mean of the vectors where `mask` is True; 0 where it nowhere is."""
    weight = mask[..., None].astype(jnp.float32)
    total = (values * weight).sum(1, keepdims=True)
    return total / jnp.maximum(weight.sum(1, keepdims=True), 1)


class AttentionPooling(nn.Module):
    """One vector for a text: its mean token attends to all tokens (feature_pooling_type attention,
    F.1).
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: TextEmbeddings) -> Float[Array, "batch width"]:
        tokens = nn.LayerNorm(dtype=jnp.float32, name="norm_in")(text.values)
        mean, hidden = masked_mean(tokens, text.mask), tokens.shape[-1]
        query = nn.Dense(hidden, dtype=self.dtype, name="query")(mean)
        key_value = nn.Dense(2 * hidden, dtype=self.dtype, name="key_value")(tokens)
        key, value = jnp.split(key_value, 2, axis=-1)
        out = attend(query, key, value, self.heads, text.mask[:, None, None, :])
        out = nn.Dense(hidden, dtype=self.dtype, name="out")(out)
        return nn.LayerNorm(dtype=jnp.float32, name="norm_out")((out + mean)[:, 0])


class ClassTokenPooling(nn.Module):
    """One vector of `width` for a text: a class token, the mean plus a learned vector, attends to
    itself and to all tokens.

    DeepFloyd IF's form of F.1's attention pooling. `mask_text` False counts padding as well.
    """

    heads: int
    width: int
    dtype: jnp.dtype
    mask_text: bool = True

    @nn.compact
    def __call__(self, text: TextEmbeddings) -> Float[Array, "batch width"]:
        # PyTorch's epsilon: the variance of T5's outputs is small enough for it to count.
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=jnp.float32)
        tokens = norm(name="norm_in")(text.values)
        batch, _, hidden = tokens.shape
        if hidden % self.heads:
            raise ValueError(f"Text of width {hidden} does not split into {self.heads} heads.")
        mask = text.mask if self.mask_text else jnp.ones_like(text.mask)
        initial = nn.initializers.normal(hidden**-0.5)
        class_token = masked_mean(tokens, mask) + self.param("class_token", initial, (hidden,))
        tokens = jnp.concatenate([class_token, tokens], axis=1)
        mask = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)
        query, key, value = (
            nn.Dense(hidden, dtype=self.dtype, name=name)(values)
            for name, values in (("query", class_token), ("key", tokens), ("value", tokens))
        )
        out = attend(query, key, value, self.heads, mask[:, None, None, :])
        return norm(name="norm_out")(nn.Dense(self.width, dtype=self.dtype, name="out")(out[:, 0]))


class TextDraft(nn.Module):
    """An image of `shape` (height, width, channels) guessed from the pooled text by two layers.

    `imagen-jax pretrain_text` trains it, and the text encoder with it, without a U-Net around it.
    """

    shape: tuple[int, int, int]
    dtype: jnp.dtype
    hidden: int = 512

    @nn.compact
    def __call__(self, text: TextEmbeddings) -> Float[Array, "batch height width channels"]:
        heads = max(1, text.values.shape[-1] // 64)
        h = AttentionPooling(heads, self.dtype, name="pooling")(text)
        h = nn.swish(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(h))
        small = nn.initializers.normal(1e-3)
        out = nn.Dense(math.prod(self.shape), dtype=self.dtype, kernel_init=small, name="out")(h)
        return out.reshape(-1, *self.shape)


class Embedding(nn.Module):
    """Time, pooled text, class label, augmentation level and target time, added into one vector of
    `width` (F.1: added). Where there is a target time, it counts nothing at first, so that training
    can go on from a network without one.

    The text is pooled by `AttentionPooling` and two layers, or, with `class_token`, by
    `ClassTokenPooling`; `pooling_heads` None leaves it out.
    """

    features: int
    width: int
    num_classes: int | None
    pooling_heads: int | None
    dtype: jnp.dtype
    activation: str = "swish"
    class_token: bool = False
    mask_text: bool = True

    @nn.compact
    def __call__(self, time, text: TextEmbeddings | None, label, aug_level, target=None):
        dense = functools.partial(nn.Dense, self.width, dtype=self.dtype)

        def mlp(x, name, **last):
            x = ACTIVATIONS[self.activation](dense(name=f"{name}_in")(x))
            return dense(name=f"{name}_out", **last)(x)

        embedding = mlp(sinusoidal_embedding(time, self.features), "time")
        if aug_level is not None:
            embedding += mlp(sinusoidal_embedding(aug_level, self.features), "aug_level")
        if target is not None:
            encoded = sinusoidal_embedding(target, self.features)
            embedding += mlp(encoded, "target", kernel_init=zeros)
        if text is not None and self.pooling_heads is not None:
            heads, dtype = self.pooling_heads, self.dtype
            if self.class_token:
                pooling = ClassTokenPooling(
                    heads, self.width, dtype, self.mask_text, name="pooling"
                )
                embedding += pooling(text)
            else:
                embedding += mlp(AttentionPooling(heads, dtype, name="pooling")(text), "text")
        if self.num_classes is not None:
            # The row after the last class stands for "no class" (classifier-free guidance).
            embedding += nn.Embed(self.num_classes + 1, self.width, name="label")(label)
        return embedding
