"""The base U-Net (ADM / BigGAN blocks) of arXiv 2205.11487, section F.1."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.layers import Attention, Conv3x3, Embedding, GroupNorm, ResBlock, zeros
from imagen_jax.typing import TextEmbeddings


@dataclasses.dataclass(frozen=True)
class UNetLevel:
    """One resolution: its width, residual blocks, and attention (None, "self" with the text, or
    "cross").
    """

    channels: int
    num_res_blocks: int = 3
    attention: str | None = None


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A base U-Net, the highest resolution first. Resolution halves between levels, inside a
    residual block.

    `head_channels` is F.1's per_head_channels, `embedding_multiplier` the width of the time
    embedding in first-level widths. `num_classes` adds a class label, `low_res_channels` a
    low-resolution input beside x. `remat` recomputes every block in the backward pass.
    """

    levels: tuple[UNetLevel, ...]
    in_channels: int = 3
    out_channels: int = 3
    low_res_channels: int = 0
    head_channels: int = 64
    embedding_multiplier: int = 4
    num_classes: int | None = None
    dtype: str = "float32"
    remat: bool = False


class UNet(nn.Module):
    """`UNetConfig` as a network: images [B,H,W,C] and 1000*t [B] to images [B,H,W,out_channels]."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x, time, text: TextEmbeddings | None, label, low_res, aug_level):
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        wrap = nn.remat if cfg.remat else lambda module: module
        first = cfg.levels[0].channels
        pooling_heads = max(1, text.values.shape[-1] // 64) if text is not None else 1
        embedding = Embedding(
            first,
            first * cfg.embedding_multiplier,
            cfg.num_classes,
            pooling_heads,
            dtype,
            name="embedding",
        )(time, text, label, aug_level)

        def res_block(h, channels, name, resample=None):
            return wrap(ResBlock)(channels, dtype, resample, name=name)(h, embedding)

        def attend(h, kind, name):
            if kind is None:
                return h
            heads = max(1, h.shape[-1] // cfg.head_channels)
            return wrap(Attention)(kind, heads, h.shape[-1], dtype, name=name)(h, text)

        if cfg.low_res_channels:
            x = jnp.concatenate([x, low_res], axis=-1)
        h = Conv3x3(first, dtype, name="conv_in")(x.astype(dtype))
        skips = [h]
        last = len(cfg.levels) - 1
        for i, level in enumerate(cfg.levels):
            for j in range(level.num_res_blocks):
                h = res_block(h, level.channels, f"down{i}_block{j}")
                h = attend(h, level.attention, f"down{i}_attention{j}")
                skips.append(h)
            if i < last:
                h = res_block(h, level.channels, f"down{i}_resample", "down")
                skips.append(h)
        bottom = cfg.levels[-1]
        h = res_block(h, bottom.channels, "mid_block0")
        h = attend(h, bottom.attention, "mid_attention")
        h = res_block(h, bottom.channels, "mid_block1")
        for i, level in reversed(list(enumerate(cfg.levels))):
            for j in range(level.num_res_blocks + 1):
                h = res_block(
                    jnp.concatenate([h, skips.pop()], -1), level.channels, f"up{i}_block{j}"
                )
                h = attend(h, level.attention, f"up{i}_attention{j}")
            if i:
                h = res_block(h, level.channels, f"up{i}_resample", "up")
        h = nn.swish(GroupNorm(name="norm_out")(h))
        return Conv3x3(cfg.out_channels, jnp.dtype("float32"), kernel_init=zeros, name="conv_out")(
            h
        )
