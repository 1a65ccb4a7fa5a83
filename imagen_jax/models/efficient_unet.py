"""The Efficient U-Net of arXiv 2205.11487, section B.1, figures A.28 to A.30 (sizes: F.2, F.3)."""

import dataclasses
import functools
import math

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.models.bounds import check_bounds, check_choice, check_network
from imagen_jax.models.group_norm import GroupNorm
from imagen_jax.models.image_attention import Attention
from imagen_jax.models.layers import (
    Conv3x3,
    Embedding,
    ResBlock,
    TextDraft,
    depth_to_space,
    nearest_upsample,
    real_tokens_first,
    rematerialized,
    space_to_depth,
    takes_fused,
    zeros,
)
from imagen_jax.typing import TextEmbeddings


@dataclasses.dataclass(frozen=True)
class EfficientLevel:
    """One DBlock and its UBlock: width, residual blocks, stride (1 or 2; up to 8),
    attention (None, "self" or "cross").
    """

    channels: int
    num_res_blocks: int = 2
    stride: int = 2
    attention: str | None = None

    def __post_init__(self):
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class EfficientUNetConfig:
    """An Efficient U-Net, the highest resolution first.

    Against the usual U-Net, downsampling comes before a level's blocks and upsampling after them,
    and skips are scaled by 1/sqrt(2). `attention_hidden_ratio` is the paper's "hidden 2x channels".
    `patch_size` folds patches into channels before the first convolution and back after the last,
    `upsample_kernel` 1 upsamples by a 1x1 convolution (1 and 3 are the paper's network; the others
    are for small machines). `draft` puts a linear guess of the image from the text
    (`TextDraft`) beside x: for small sets learned by heart. It fixes the resolution. `input_skip`
    adds the inputs (x, low_res, draft), each times a number read from the embedding, to the output:
    the learned form of EDM's c_skip (arXiv 2206.00364, section 5), without which noise and detail
    of a patch have to pass through the stem. `target_time`: the network is told the time that a
    step leads to, too (a flow map, `imagen_jax.diffusion.flow_map`).
    """

    levels: tuple[EfficientLevel, ...]
    in_channels: int = 3
    out_channels: int = 3
    low_res_channels: int = 0
    stem_channels: int | None = None
    num_heads: int = 8
    attention_hidden_ratio: float = 2.0
    embedding_width: int | None = None
    num_classes: int | None = None
    patch_size: int = 1
    upsample_kernel: int = 3
    draft: bool = False
    input_skip: bool = False
    target_time: bool = False
    dtype: str = "float32"
    remat: bool | str = False
    fused: bool | None = None  # as in `UNetConfig`

    def __post_init__(self):
        check_network(self)
        check_choice("network.upsample_kernel", self.upsample_kernel, (1, 3))
        for level in self.levels:
            hidden = int(self.attention_hidden_ratio * level.channels)
            if level.attention is not None and (hidden % self.num_heads or not hidden):
                raise ValueError(
                    f"network.num_heads {self.num_heads} does not divide the {hidden} channels "
                    f"that attend at a level of {level.channels}"
                )
        counts = {self.in_channels, self.out_channels, self.low_res_channels or self.in_channels}
        if self.input_skip and len(counts) > 1:
            raise ValueError(
                "network.input_skip adds inputs to the output: in_channels "
                f"{self.in_channels}, out_channels {self.out_channels} and low_res_channels "
                f"{self.low_res_channels} must agree"
            )


def _embed(cfg: EfficientUNetConfig, stem: int, time, text, label, aug_level, target):
    heads = max(1, text.values.shape[-1] // 64) if text is not None else 1
    width, dtype = cfg.embedding_width or 4 * stem, jnp.dtype(cfg.dtype)
    embedding = Embedding(stem, width, cfg.num_classes, heads, dtype, name="embedding")
    return embedding(time, text, label, aug_level, target)


def _upsample(cfg: EfficientUNetConfig, h, channels: int, stride: int, name: str):
    dtype = jnp.dtype(cfg.dtype)
    if cfg.upsample_kernel == 1:  # of the smaller map: the same numbers for less work
        return nearest_upsample(nn.Dense(channels, dtype=dtype, name=name)(h), stride)
    return Conv3x3(channels, dtype, name=name)(nearest_upsample(h, stride))


def _add_inputs(h, inputs, embedding):
    gains = nn.Dense(len(inputs), kernel_init=zeros, name="skip_gains")(nn.swish(embedding))
    for i, image in enumerate(inputs):
        h += gains[:, i, None, None, None].astype(h.dtype) * image
    return h


class EfficientUNet(nn.Module):
    """`EfficientUNetConfig` as a network: images [B,H,W,C] and 1000*t [B] to images
    [B,H,W,out_channels].
    """

    config: EfficientUNetConfig

    @nn.compact
    def __call__(
        self, x, time, text: TextEmbeddings | None, label, low_res, aug_level, target=None
    ):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        wrap = functools.partial(rematerialized, remat=cfg.remat)
        fused = takes_fused(cfg.fused, cfg.dtype)
        if fused:
            text = real_tokens_first(text)
        stem = cfg.stem_channels or cfg.levels[0].channels
        embedding = _embed(cfg, stem, time, text, label, aug_level, target)

        def res_block(h, channels, name):
            return wrap(ResBlock)(channels, dtype, fused=fused, name=name)(h, embedding)

        def attend(h, kind, name):
            if kind is None:
                return h
            hidden = int(cfg.attention_hidden_ratio * h.shape[-1])
            block = wrap(Attention)(kind, cfg.num_heads, hidden, dtype, fused=fused, name=name)
            return block(h, text)

        inputs = [x, low_res] if cfg.low_res_channels else [x]
        if cfg.draft:
            shape = (*x.shape[1:3], cfg.in_channels)
            inputs.append(TextDraft(shape, dtype, name="draft")(text))
        folded = space_to_depth(jnp.concatenate(inputs, -1).astype(dtype), cfg.patch_size)
        h = Conv3x3(stem, dtype, name="conv_in")(folded)
        skips = []
        for i, level in enumerate(cfg.levels):
            if level.stride > 1 or level.channels != h.shape[-1]:
                h = Conv3x3(level.channels, dtype, level.stride, name=f"down{i}_conv")(h)
            for j in range(level.num_res_blocks):
                h = res_block(h, level.channels, f"down{i}_block{j}")
                if j == level.num_res_blocks - 1:
                    h = attend(h, level.attention, f"down{i}_attention")
                skips.append(h)
        for i, level in reversed(list(enumerate(cfg.levels))):
            for j in range(level.num_res_blocks):
                skip = skips.pop() * (1 / math.sqrt(2))
                h = res_block(jnp.concatenate([h, skip], -1), level.channels, f"up{i}_block{j}")
            h = attend(h, level.attention, f"up{i}_attention")
            if level.stride > 1:
                channels = cfg.levels[i - 1].channels if i else stem
                h = _upsample(cfg, h, channels, level.stride, f"up{i}_conv")
        h = GroupNorm(activation=nn.swish, fused=fused, name="norm_out")(h)
        out_channels = cfg.out_channels * cfg.patch_size**2
        h = Conv3x3(out_channels, jnp.dtype("float32"), kernel_init=zeros, name="conv_out")(h)
        h = depth_to_space(h, cfg.patch_size)
        return _add_inputs(h, inputs, embedding) if cfg.input_skip else h
