"""Attention from a feature map of a U-Net, to itself and to the text."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from imagen_jax.devices.cpu_fusion import computed_once
from imagen_jax.models.attention import Attention as FusedAttention
from imagen_jax.models.attention import cudnn_attention, cudnn_takes, narrow_heads
from imagen_jax.models.attention_maps import keep_map, keeps_maps
from imagen_jax.models.group_norm import GroupNorm
from imagen_jax.models.layers import attend, zeros
from imagen_jax.typing import TextEmbeddings

# Pixels of a feature map from which on a TPU's fused attention serves: its blocks are 128 tokens.
FUSED_FROM = 256


class Weights(nn.Module):
    """The parameters of an `nn.Dense`: kernel and bias."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array]:
        initial = nn.initializers.lecun_normal()
        kernel = self.param("kernel", initial, (width, self.features))
        return kernel, self.param("bias", zeros, (self.features,))


class Attention(nn.Module):
    """Residual attention from the feature map: to itself and the text together, or to the text
    alone.

    `kind` "self": text keys and values are put beside the image's own (arXiv 2205.11487, section
    F.1); "cross": text only (F.3). `hidden` is the width of all heads together. `text_norm`:
    "layer" (a LayerNorm a token), "group" (one GroupNorm over all tokens) or None. `mask_text`
    False attends to padding too. `joint`: key and value share one matrix. `fused`: the norm's form
    (`GroupNorm`), one product for what reads the same, and where it can attention by cuDNN.
    `attention`: a TPU's, for large feature maps. Both want the text's real tokens first.
    """

    kind: str
    heads: int
    hidden: int
    dtype: jnp.dtype
    text_norm: str | None = "layer"
    mask_text: bool = True
    joint: bool = True
    norm_groups: int = 32
    fused: bool = False
    attention: FusedAttention | None = None

    @nn.compact
    def __call__(self, x, text: TextEmbeddings | None):
        x = computed_once(x)
        b, height, width, channels = x.shape
        norm = functools.partial(GroupNorm, fused=self.fused)
        h = norm(self.norm_groups, name="norm")(x).reshape(b, height * width, channels)
        key_value = {"key_value": 2} if self.joint else {"key": 1, "value": 1}
        sources = []
        if self.kind == "self":
            query, *parts = self._project(h, {"query": 1} | key_value)
            sources.append((*parts, jnp.ones((b, height * width), bool)))
        else:
            (query,) = self._project(h, {"query": 1})
        if text is not None:
            context, mask = text
            if self.text_norm == "layer":
                context = nn.LayerNorm(dtype=jnp.float32, name="text_norm")(context)
            elif self.text_norm == "group":
                context = norm(name="text_norm")(context[:, :, None])[:, :, 0]
            parts = self._project(context, {f"text_{name}": n for name, n in key_value.items()})
            sources.append((*parts, mask if self.mask_text else jnp.ones_like(mask)))
        if not sources:
            return x
        key, value, mask = (jnp.concatenate(parts, axis=1) for parts in zip(*sources, strict=True))
        masked = self.mask_text and text is not None
        lengths = mask.sum(1, dtype=jnp.int32) if masked else None
        if text is not None and keeps_maps(self):
            heads = (x.reshape(*x.shape[:2], self.heads, -1) for x in (query, key))
            start = key.shape[1] - text.mask.shape[1]
            keep_map(self, *heads, mask if masked else None, slice(start, None))
        if self.attention is not None and self.kind == "self" and height * width >= FUSED_FROM:
            query *= (self.hidden // self.heads) ** -0.5
            parts = (narrow_heads(x, self.heads) for x in (query, key, value))
            out = self.attention(*parts, lengths)
            out = jnp.swapaxes(out, 1, 2).reshape(b, height * width, self.hidden)
        elif self.fused and cudnn_takes(self.hidden // self.heads, self.dtype):
            out = cudnn_attention(query, key, value, self.heads, lengths)
        else:
            out = attend(query, key, value, self.heads, mask[:, None, None] if masked else None)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(out)
        return x + out.reshape(x.shape)

    def _project(self, x, counts: dict[str, int]) -> list[Array]:
        """Linear maps of x, each to `hidden` channels, so many from the matrix of each name."""
        if self.fused:
            weights = [
                (kernel.reshape(-1, n, self.hidden), bias.reshape(n, self.hidden))
                for name, n in counts.items()
                for kernel, bias in [Weights(n * self.hidden, name=name)(x.shape[-1])]
            ]
            # Side by side on an axis of their own: channels may be split over devices.
            kernels, biases = zip(*weights, strict=True)
            kernel = jnp.concatenate([kernel.astype(self.dtype) for kernel in kernels], axis=1)
            out = jnp.einsum("bnc,cph->bnph", x.astype(self.dtype), kernel)
            out = out + jnp.concatenate(biases).astype(self.dtype)
            return [out[:, :, i] for i in range(sum(counts.values()))]
        outs = (
            jnp.split(nn.Dense(n * self.hidden, dtype=self.dtype, name=name)(x), n, axis=-1)
            for name, n in counts.items()
        )
        return [part for out in outs for part in out]
