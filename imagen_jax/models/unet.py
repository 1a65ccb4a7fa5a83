"""The base U-Net (ADM / BigGAN blocks) of arXiv 2205.11487, section F.1.

DeepFloyd IF's three stages are configurations of it.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.attention import Attention as FusedAttention
from imagen_jax.models.bounds import ATTENTIONS, check_bounds, check_choice, check_network
from imagen_jax.models.group_norm import GroupNorm
from imagen_jax.models.image_attention import Attention
from imagen_jax.models.layers import (
    ACTIVATIONS,
    Conv3x3,
    Embedding,
    ResBlock,
    real_tokens_first,
    rematerialized,
    takes_fused,
    zeros,
)
from imagen_jax.typing import TextEmbeddings


@dataclasses.dataclass(frozen=True)
class UNetLevel:
    """One resolution: its width, residual blocks, and attention (None, "self" with the text, or
    "cross").
    """

    channels: int
    num_res_blocks: int = 3
    attention: str | None = None

    def __post_init__(self):
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A base U-Net, the highest resolution first. Resolution halves between levels, inside a
    residual block. The defaults are the paper's.

    `head_channels` is F.1's per_head_channels, `embedding_width` that of the time embedding (None:
    four first-level widths). `low_res_channels` adds a low-resolution input beside x and the
    embedding of its augmentation level, `num_classes` a class label. `activation`: "swish" or
    "gelu". `remat` recomputes every block in the backward pass. `fused` takes the form of norms and
    attention that is for NVIDIA's GPUs (None: there, in 16 bits); the parameters are the same.

    Embedding: `embedding_activation` is applied once to the sum, or None; `activate_embedding`
    lets every residual block apply its own (both may be). The sum of a residual block's branches
    is divided by `output_scale_factor`, in the middle by `mid_output_scale_factor`.

    Text: attention reads it through a linear map to `text_projection` channels (None: as it is) and
    `text_norm` ("layer", "group" over all tokens, or None). `pooling_heads` attend to it for the
    pooled vector (None: no such vector). `mask_text` False takes padding for text. `target_time`:
    as of `EfficientUNetConfig`.
    """

    levels: tuple[UNetLevel, ...]
    mid_attention: str | None = "self"
    in_channels: int = 3
    out_channels: int = 3
    low_res_channels: int = 0
    num_classes: int | None = None
    head_channels: int = 64
    activation: str = "swish"
    norm_groups: int = 32
    norm_eps: float = 1e-5
    output_scale_factor: float = 1.0
    mid_output_scale_factor: float = 1.0
    embedding_width: int | None = None
    embedding_activation: str | None = None
    activate_embedding: bool = True
    text_projection: int | None = None
    text_norm: str | None = "layer"
    pooling_heads: int | None = 64
    mask_text: bool = True
    target_time: bool = False
    dtype: str = "float32"
    remat: bool | str = False
    fused: bool | None = None

    def __post_init__(self):
        check_network(self)
        check_choice("network.mid_attention", self.mid_attention, ATTENTIONS)
        check_choice("network.activation", self.activation, ACTIVATIONS)
        check_choice(
            "network.embedding_activation", self.embedding_activation, (None, *ACTIVATIONS)
        )
        check_choice("network.text_norm", self.text_norm, ("layer", "group", None))
        attending = {level.channels for level in self.levels if level.attention}
        attending |= {self.levels[-1].channels} if self.mid_attention else set()
        for channels in sorted(attending):
            heads = max(1, channels // self.head_channels)
            if channels % heads:
                raise ValueError(
                    f"network.head_channels {self.head_channels} makes {heads} heads of the "
                    f"{channels} channels that attend; they must divide them"
                )


def _embed(cfg: UNetConfig, time, text: TextEmbeddings | None, label, aug_level, target):
    first, dtype = cfg.levels[0].channels, jnp.dtype(cfg.dtype)
    embedding = Embedding(
        first,
        cfg.embedding_width or 4 * first,
        cfg.num_classes,
        cfg.pooling_heads,
        dtype,
        cfg.activation,
        class_token=True,
        mask_text=cfg.mask_text,
        name="embedding",
    )(time, text, label, aug_level, target)
    if cfg.embedding_activation is not None:
        embedding = ACTIVATIONS[cfg.embedding_activation](embedding)
    if text is not None and cfg.text_projection is not None:
        project = nn.Dense(cfg.text_projection, dtype=dtype, name="text_projection")
        text = text._replace(values=project(text.values))
    return embedding, text


class UNet(nn.Module):
    """`UNetConfig` as a network: images [B,H,W,C] and 1000*t [B] to images [B,H,W,out_channels].
    `attention`: the fused one of TPUs, where it runs on them.
    """

    config: UNetConfig
    attention: FusedAttention | None = None

    @nn.compact
    def __call__(
        self, x, time, text: TextEmbeddings | None, label, low_res, aug_level, target=None
    ):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        fused = takes_fused(cfg.fused, cfg.dtype)
        norm = cfg.norm_groups, cfg.norm_eps
        wrap = functools.partial(rematerialized, remat=cfg.remat)
        if (fused or self.attention is not None) and cfg.mask_text:
            text = real_tokens_first(text)
        embedding, text = _embed(cfg, time, text, label, aug_level, target)

        def res_block(h, channels, name, resample=None, scale=cfg.output_scale_factor):
            options = (resample, cfg.activation, *norm, cfg.activate_embedding, scale, fused)
            return wrap(ResBlock)(channels, dtype, *options, name=name)(h, embedding)

        def attend(h, kind, name):
            if kind is None:
                return h
            heads = max(1, h.shape[-1] // cfg.head_channels)
            options = (cfg.text_norm, cfg.mask_text, False, cfg.norm_groups, fused, self.attention)
            return wrap(Attention)(kind, heads, h.shape[-1], dtype, *options, name=name)(h, text)

        if cfg.low_res_channels:
            x = jnp.concatenate([x, low_res], axis=-1)
        h = Conv3x3(cfg.levels[0].channels, dtype, name="conv_in")(x.astype(dtype))
        skips = [h]
        for i, level in enumerate(cfg.levels):
            for j in range(level.num_res_blocks):
                h = res_block(h, level.channels, f"down{i}_block{j}")
                h = attend(h, level.attention, f"down{i}_attention{j}")
                skips.append(h)
            if i < len(cfg.levels) - 1:
                h = res_block(h, level.channels, f"down{i}_resample", "down")
                skips.append(h)
        mid_block = functools.partial(res_block, scale=cfg.mid_output_scale_factor)
        h = mid_block(h, cfg.levels[-1].channels, "mid_block0")
        h = attend(h, cfg.mid_attention, "mid_attention")
        h = mid_block(h, cfg.levels[-1].channels, "mid_block1")
        for i, level in reversed(list(enumerate(cfg.levels))):
            for j in range(level.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], -1)
                h = res_block(h, level.channels, f"up{i}_block{j}")
                h = attend(h, level.attention, f"up{i}_attention{j}")
            if i:
                h = res_block(h, level.channels, f"up{i}_resample", "up")
        h = GroupNorm(*norm, ACTIVATIONS[cfg.activation], fused, name="norm_out")(h)
        float32 = jnp.dtype("float32")
        return Conv3x3(cfg.out_channels, float32, kernel_init=zeros, name="conv_out")(h)
