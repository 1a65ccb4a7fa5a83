"""PRX, the transformer of PRXPixel: image tokens attend to each other and to the text.

diffusers has it as PRXTransformer2DModel. Unlike JiT's, its text is not part of the sequence: each
layer projects the text to keys and values of its own, and no layer changes it.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagen_jax.models.attention_maps import keep_map, keeps_maps
from imagen_jax.models.bounds import DTYPES, REMATS, check_bounds, check_choice
from imagen_jax.models.layers import (
    RMSNorm,
    attend,
    depth_to_space,
    layer_stack,
    sinusoidal_embedding,
    space_to_depth,
    zeros,
)
from imagen_jax.models.positions import check_heads, grid_positions, rotary_angles, rotate
from imagen_jax.models.transformer import EPSILON, TIME_FEATURES, modulated
from imagen_jax.storage.codec import require
from imagen_jax.typing import TextEmbeddings


@dataclasses.dataclass(frozen=True)
class PRXConfig:
    """A PRX transformer; the defaults are PRXPixel's, 7B parameters. Sides of images may be any
    multiples of `patch_size`.
    """

    width: int = 3584
    depth: int = 24  # layers
    heads: int = 28
    mlp_ratio: float = 3.5  # the gated MLP is so many times the width, rounded down
    patch_size: int = 16
    # Patches pass through so many channels on their way in; None: straight in.
    bottleneck: int | None = 768
    # Whether the image's height and width are embedded, as the time is.
    sees_size: bool = True
    in_channels: int = 3
    dtype: str = "float32"
    remat: bool | str = False
    # Run the layers in a loop, which compiles sooner. None: on accelerators. The parameters are the
    # same.
    scan_layers: bool | None = None

    def __post_init__(self):
        check_bounds(self)
        check_choice("network.dtype", self.dtype, DTYPES)
        check_choice("network.remat", self.remat, REMATS)
        require(check_heads(self.width, self.heads))

    # What every network says of itself.
    @property
    def out_channels(self) -> int:
        """As many as it is given: the variance is not learned."""
        return self.in_channels

    @property
    def low_res_channels(self) -> int:
        """0: it is no super-resolution model."""
        return 0

    @property
    def num_classes(self) -> None:
        """None: it reads text."""
        return None


def _regrouped(x: Float[Array, "*n values"], groups: int) -> Float[Array, "*n values"]:
    """Values j of each of so many groups i, as values i of each group j."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def _norm(x, shift, scale):
    """A LayerNorm without parameters, modulated (adaLN, arXiv 2212.09748)."""
    norm = nn.LayerNorm(EPSILON, x.dtype, use_bias=False, use_scale=False, use_fast_variance=False)
    return modulated(norm(x), shift, scale)


class PRXAttention(nn.Module):
    """Attention of the image's tokens to the text's and their own; QK-norm (arXiv 2302.05442) for
    both, RoPE for the image's.
    """

    config: PRXConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n width"], text: TextEmbeddings, angles):
        cfg = self.config
        dense = functools.partial(nn.Dense, use_bias=False, dtype=cfg.dtype)

        def normed(values, name):
            """Channels 2i and 2i + 1 of a head, which RoPE turns here, go where `rotate` looks."""
            heads = values.reshape(*values.shape[:2], cfg.heads, -1)
            heads = RMSNorm(EPSILON, cfg.dtype, name=name)(heads)
            return _regrouped(heads, heads.shape[-1] // 2)

        query, key, value = jnp.split(dense(3 * cfg.width, name="query_key_value")(x), 3, axis=-1)
        text_key, text_value = jnp.split(
            dense(2 * cfg.width, name="text_key_value")(text.values), 2, axis=-1
        )
        query, key = (
            rotate(normed(values, name), angles)
            for values, name in ((query, "query_norm"), (key, "key_norm"))
        )
        key = jnp.concatenate([normed(text_key, "text_key_norm"), key], axis=1)
        value = jnp.concatenate([text_value, value], axis=1)
        mask = jnp.concatenate([text.mask, jnp.ones(x.shape[:2], bool)], axis=1)
        if keeps_maps(self):
            keep_map(self, query, key, mask, slice(text.mask.shape[1]))
        query, key = (values.reshape(*values.shape[:2], -1) for values in (query, key))
        out = attend(query, key, value, cfg.heads, mask[:, None, None])
        return dense(cfg.width, name="out")(out)


class PRXLayer(nn.Module):
    """Attention and a gated MLP, each x + gate * branch(norm(x)), modulated by `condition`; a scan
    body.
    """

    config: PRXConfig

    @nn.compact
    def __call__(self, x, text: TextEmbeddings, condition, angles):
        cfg = self.config
        dense = functools.partial(nn.Dense, use_bias=False, dtype=cfg.dtype)
        hidden = int(cfg.width * cfg.mlp_ratio)
        modulation = nn.Dense(6 * cfg.width, dtype=cfg.dtype, kernel_init=zeros, name="modulation")
        parts = jnp.split(modulation(nn.silu(condition)), 6, axis=-1)
        shift, scale, gate = parts[:3]
        h = PRXAttention(cfg, name="attention")(_norm(x, shift, scale), text, angles)
        x = x + gate[:, None] * h
        shift, scale, gate = parts[3:]
        h = _norm(x, shift, scale)
        h = nn.gelu(dense(hidden, name="gate")(h)) * dense(hidden, name="up")(h)
        return x + gate[:, None] * dense(cfg.width, name="out")(h), None


class PRX(nn.Module):
    """`PRXConfig` as a network: images [B,H,W,C] and 1000*t [B] to images [B,H,W,C]."""

    config: PRXConfig

    @nn.compact
    def __call__(self, x, time, text: TextEmbeddings, label, low_res, aug_level):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        dense = functools.partial(nn.Dense, cfg.width, dtype=dtype)

        def mlp(features, name):
            return dense(name=f"{name}_out")(nn.silu(dense(name=f"{name}_in")(features)))

        condition = mlp(sinusoidal_embedding(time, TIME_FEATURES), "time")
        if cfg.sees_size:
            sides = sinusoidal_embedding(jnp.float32(x.shape[1:3]), TIME_FEATURES // 2)
            condition += mlp(sides.reshape(1, -1), "size")
        text = text._replace(values=dense(name="text_in")(text.values))
        folded = space_to_depth(x.astype(dtype), cfg.patch_size)
        batch, rows, columns, size = folded.shape
        # A patch's values, channel after channel.
        h = _regrouped(folded, cfg.patch_size**2).reshape(batch, rows * columns, size)
        if cfg.bottleneck is not None:
            h = nn.Dense(cfg.bottleneck, dtype=dtype, name="bottleneck")(h)
        h = dense(name="patch_in")(h)
        angles = rotary_angles(grid_positions(rows, columns), cfg.width // cfg.heads)
        layers = layer_stack(PRXLayer, cfg.depth, cfg.remat, cfg.scan_layers)
        h, _ = layers(cfg, name="layers")(h, text, condition, angles)
        modulation = nn.Dense(2 * cfg.width, dtype=dtype, name="modulation")
        h = _norm(h, *jnp.split(modulation(nn.silu(condition)), 2, axis=-1))
        out = nn.Dense(size, dtype=jnp.float32, name="patch_out")(h)
        out = _regrouped(out, cfg.in_channels).reshape(folded.shape)
        return depth_to_space(out, cfg.patch_size)
