"""A plain transformer on large patches of pixels: JiT, "just image transformers" (arXiv 2511.13720,
section 4 and table 9), for class labels, for text, and as a super-resolution stage.

What the paper leaves open is as its public PyTorch code has it. Deviations: the time goes in as
1000 t, as everywhere here (there: t from 0 to 1), and RoPE turns channels i and i + width/2 of a
head together (there 2i and 2i + 1: a permutation of the channels of queries and keys). Text, which
the paper does not have, joins the sequence from the first layer on, as in PRX and Lumina.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from imagen_jax.models.attention import Attention, merge_heads, norm_and_turn, split_heads
from imagen_jax.models.attention_maps import keep_map, keeps_maps
from imagen_jax.models.bounds import DTYPES, REMATS, check_bounds, check_choice
from imagen_jax.models.dense import Dense, gated
from imagen_jax.models.layers import (
    RMSNorm,
    depth_to_space,
    layer_stack,
    masked_mean,
    real_tokens_first,
    sinusoidal_embedding,
    space_to_depth,
    zeros,
)
from imagen_jax.models.positions import (
    check_heads,
    grid_positions,
    position_embedding,
    rotary_angles,
    rotate,
)
from imagen_jax.storage.codec import require
from imagen_jax.typing import Gather, Keys, TextEmbeddings

TIME_FEATURES = 256  # sines and cosines of the time, as in DiT (arXiv 2212.09748)
EPSILON = 1e-6  # of every norm
xavier, small = nn.initializers.xavier_uniform(), nn.initializers.normal(0.02)
CONDITIONINGS = ("adaln", "tokens")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A plain transformer; the defaults are JiT-B/16 without classes. `SIZES` has the others.

    The sequence is one token a patch, then the conditions' tokens, then the text's. Sides of images
    may be any multiples of `patch_size`: positions are computed, not stored.
    """

    width: int = 768
    depth: int = 12  # layers
    heads: int = 12
    mlp_ratio: float = 4.0  # SwiGLU is 2/3 of this times the width, rounded down
    # Then up to a multiple of this. The published sizes have 1, which makes H's 3413 and G's 4437:
    # a mesh's `tensor` axis does not divide them.
    mlp_multiple: int = 1
    patch_size: int = 16
    # Patches pass through so many channels on their way in (section 4.3); None: straight in.
    bottleneck: int | None = 128
    # How time, label and augmentation level enter. "adaln": their sum (and the mean of the text)
    # scales and shifts each norm and gates each branch (adaLN-Zero, arXiv 2212.09748). "tokens":
    # as `condition_tokens` tokens each, and nothing is modulated (arXiv 2512.02012, section 4.3).
    conditioning: str = "adaln"
    condition_tokens: int = 4
    num_classes: int | None = None
    # Tokens that all are the label's embedding, each with a learned position ("in-context class
    # tokens"; 0 for none), from this layer on.
    class_tokens: int = 32
    class_start: int = 4
    in_channels: int = 3
    out_channels: int = 3
    low_res_channels: int = 0  # of a low-resolution input beside x
    # In training, in the middle half of the layers: of attention's outputs and SwiGLU's hidden
    # channels (the paper: 0.2 for H and G).
    dropout: float = 0.0
    # Positions are laid out as on a square grid with so many patches a side, whatever the image's
    # size: for training on at another resolution. None: one apart.
    position_grid: int | None = None
    target_time: bool = False  # as of `EfficientUNetConfig`
    dtype: str = "float32"
    remat: bool | str = False
    # Run the layers in a loop, which compiles sooner. None: on accelerators. The parameters are the
    # same.
    scan_layers: bool | None = None

    def __post_init__(self):
        check_bounds(self)
        check_choice("network.conditioning", self.conditioning, CONDITIONINGS)
        check_choice("network.dtype", self.dtype, DTYPES)
        check_choice("network.remat", self.remat, REMATS)
        labelled = self.num_classes is not None
        require(
            check_heads(self.width, self.heads),
            (
                self.early_layers < self.depth,
                f"network.class_start {self.class_start} must be below network.depth {self.depth}",
            ),
            (
                self.mlp_width >= 1,
                f"network.mlp_ratio {self.mlp_ratio} leaves no channel of {self.width}",
            ),
            (
                self.dropout < 1,
                f"network.dropout is {self.dropout}; it must be from 0 to below 1",
            ),
            (
                not labelled or self.class_tokens > 0 or self.conditioning == "adaln",
                "network.class_tokens is 0, but conditioning 'tokens' has no other way for a label",
            ),
        )

    @property
    def mlp_width(self) -> int:
        """Channels between the matrices of SwiGLU."""
        hidden = int(int(self.width * self.mlp_ratio) * 2 / 3)
        return -(-hidden // self.mlp_multiple) * self.mlp_multiple

    @property
    def early_layers(self) -> int:
        """The number of layers before the class tokens join."""
        return self.class_start if self.num_classes is not None and self.class_tokens else 0


# The published sizes (table 9), and S, which is DiT's.
SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6, "bottleneck": 128, "class_start": 4},
    "B": {"width": 768, "depth": 12, "heads": 12, "bottleneck": 128, "class_start": 4},
    "L": {"width": 1024, "depth": 24, "heads": 16, "bottleneck": 128, "class_start": 8},
    "H": {"width": 1280, "depth": 32, "heads": 16, "bottleneck": 256, "class_start": 10},
    "G": {"width": 1664, "depth": 40, "heads": 16, "bottleneck": 256, "class_start": 10},
}


def size(name: str, **fields: Any) -> TransformerConfig:
    """A published size with other fields set: `size("L", patch_size=32, num_classes=1000)`."""
    check_choice("size", name, SIZES)
    return TransformerConfig(**{**SIZES[name], **fields})


def modulated(x, shift, scale):
    """x (1 + scale) + shift, in float32 and back; None for both leaves x as it is."""
    if shift is None:
        return x
    scale, shift = scale.astype(jnp.float32)[:, None], shift.astype(jnp.float32)[:, None]
    return (x.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype)


class NormAndTurn(nn.Module):
    """`norm_and_turn` with an RMSNorm's parameter, times a factor."""

    factor: float = 1.0

    @nn.compact
    def __call__(self, x, angles):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return norm_and_turn(x, self.factor * scale, angles, EPSILON)


class SelfAttention(nn.Module):
    """Self-attention with QK-norm (arXiv 2302.05442) and RoPE; of each row the first `lengths`
    tokens are keys. The last `words` are the text's.
    """

    config: TransformerConfig
    attention: Attention | None = None
    words: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n width"],
        angles: Float[Array, "n half_head"],
        lengths: Int[Array, " b"] | None,
    ) -> Float[Array, "b n width"]:
        cfg = self.config
        dense = functools.partial(Dense, cfg.width, cfg.dtype, self.attention is None)

        def whole(name):
            return dense(kernel_init=xavier, name=name)(x)

        def heads(name):
            y = whole(name)
            return y.reshape(*y.shape[:2], cfg.heads, -1)

        def turned(name):
            normed = RMSNorm(EPSILON, "float32", name=f"{name}_norm")(heads(name))
            return rotate(normed, angles).astype(cfg.dtype)

        if self.attention is not None:
            factors = {"query": (cfg.width // cfg.heads) ** -0.5, "key": 1.0}
            query, key = (
                NormAndTurn(factor, name=f"{name}_norm")(
                    split_heads(whole(name), cfg.heads), angles
                )
                for name, factor in factors.items()
            )
            value = split_heads(whole("value"), cfg.heads)
            out = merge_heads(self.attention(query, key, value, lengths))
        else:
            query, key = turned("query"), turned("key")
            if self.words and keeps_maps(self):
                mask = jnp.arange(x.shape[1]) < lengths[:, None]
                keep_map(self, query, key, mask, slice(-self.words, None))
            out = jax.nn.dot_product_attention(
                query, key, heads("value"), key_value_seq_lengths=lengths
            )
        return dense(kernel_init=_branch_end(cfg), name="out")(out.reshape(x.shape))


class SwiGLU(nn.Module):
    """out(silu(gate x) * (up x)) (arXiv 2002.05202, eq. 6), with biases."""

    config: TransformerConfig
    as_matrix: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], drop: Callable[[Array], Array]
    ) -> Float[Array, "b n width"]:
        cfg = self.config
        dense = functools.partial(Dense, dtype=cfg.dtype, as_matrix=self.as_matrix)
        gate, up = (
            dense(cfg.mlp_width, kernel_init=xavier, name=name)(x) for name in ("gate", "up")
        )
        hidden = drop(gated(gate, up))
        return dense(cfg.width, kernel_init=_branch_end(cfg), name="out")(hidden)


def _branch_end(cfg: TransformerConfig) -> Callable:
    """How the last matrix of a branch begins. A new layer must do nothing: adaLN's gates are zero,
    and without them this matrix is.
    """
    return xavier if cfg.conditioning == "adaln" else zeros


def _drop(x: Float[Array, "b n width"], rate: Float[Array, ""], keys: Keys, number: Array):
    """Dropout with a key for each example, so that no result depends on the batch it was in."""

    def kept(key):
        return jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(kept)(keys), x / (1 - rate).astype(x.dtype), 0)


class Layer(nn.Module):
    """Attention and SwiGLU, each x + gate * branch(norm(x)), modulated by `condition` if there is
    one. A scan body: the carry is x and the layer's number.
    """

    config: TransformerConfig
    attention: Attention | None = None
    words: int = 0

    @nn.compact
    def __call__(self, carry, condition, angles, lengths, keys):
        (x, number), cfg, parts = carry, self.config, [None] * 6
        if condition is not None:
            dense = nn.Dense(6 * cfg.width, dtype=cfg.dtype, kernel_init=zeros, name="modulation")
            parts = jnp.split(dense(nn.silu(condition)), 6, axis=-1)

        def drop(h, branch):
            if keys is None:
                return h
            middle = (number >= cfg.depth // 4) & (number < cfg.depth // 4 * 3)
            return _drop(h, jnp.where(middle, cfg.dropout, 0.0), keys, 2 * number + branch)

        def add(x, gate, h):
            return x + (h if gate is None else gate[:, None] * h)

        norm = functools.partial(RMSNorm, EPSILON, cfg.dtype)
        h = modulated(norm(name="attention_norm")(x), *parts[:2])
        attention = SelfAttention(cfg, self.attention, self.words, name="attention")
        h = attention(h, angles, lengths)
        x = add(x, parts[2], drop(h, 0))
        h = modulated(norm(name="mlp_norm")(x), *parts[3:5])
        mlp = SwiGLU(cfg, self.attention is None, name="mlp")
        x = add(x, parts[5], mlp(h, lambda hidden: drop(hidden, 1)))
        return (x, number + 1), None


class Conditions(nn.Module):
    """What the layers read beside the image: the vector that modulates them (None: nothing does);
    the tokens that are there from the first layer on; those that join later; the text's.
    """

    config: TransformerConfig
    as_matrix: bool = True

    @nn.compact
    def __call__(self, time, text: TextEmbeddings | None, label, aug_level, target):
        cfg = self.config
        dense = functools.partial(nn.Dense, cfg.width, dtype=cfg.dtype)
        modulates = cfg.conditioning == "adaln"

        def mlp(x, name, last=small):
            h = nn.silu(dense(kernel_init=small, name=f"{name}_in")(x))
            return dense(kernel_init=last, name=f"{name}_out")(h)

        def tokens(vector, name, count):
            places = self.param(f"{name}_tokens", small, (count, cfg.width))
            return vector[:, None] + places.astype(vector.dtype)

        vectors = {"time": mlp(sinusoidal_embedding(time, TIME_FEATURES), "time")}
        if aug_level is not None:
            vectors["aug_level"] = mlp(sinusoidal_embedding(aug_level, TIME_FEATURES), "aug_level")
        if target is not None:
            encoded = sinusoidal_embedding(target, TIME_FEATURES)
            # Beside the time, where it counts nothing at first (as in `layers.Embedding`).
            vectors["time"] += mlp(encoded, "target", nn.initializers.zeros)
        early = late = words = jnp.zeros((time.shape[0], 0, cfg.width), cfg.dtype)
        if not modulates:
            parts = [tokens(value, name, cfg.condition_tokens) for name, value in vectors.items()]
            early = jnp.concatenate(parts, axis=1)
        if cfg.num_classes is not None:
            # The row after the last class stands for "no class" (classifier-free guidance).
            table = nn.Embed(
                cfg.num_classes + 1, cfg.width, dtype=cfg.dtype, embedding_init=small, name="label"
            )
            vectors["label"] = table(label)
            if cfg.class_tokens:
                late = tokens(vectors["label"], "label", cfg.class_tokens)
        if text is not None:
            normed = RMSNorm(EPSILON, "float32", name="text_norm")(text.values)
            project = Dense(cfg.width, cfg.dtype, self.as_matrix, xavier, name="text_projection")
            words = project(normed)
            if modulates:
                vectors["text"] = mlp(masked_mean(normed, text.mask)[:, 0], "text")
        return sum(vectors.values()) if modulates else None, early, late, words


class Transformer(nn.Module):
    """`TransformerConfig` as a network: images [B,H,W,C] and 1000*t [B] to images
    [B,H,W,out_channels].

    `gather` is applied to a layer's parameters where the layer begins. `keys`, one an example, are
    dropout's; without them nothing is dropped.
    """

    config: TransformerConfig
    gather: Gather | None = None
    attention: Attention | None = None

    @nn.compact
    def __call__(
        self,
        x,
        time,
        text: TextEmbeddings | None,
        label,
        low_res,
        aug_level,
        target=None,
        keys=None,
    ):
        cfg, text = self.config, real_tokens_first(text)
        condition, early, late, words = Conditions(cfg, self.attention is None, name="conditions")(
            time, text, label, aug_level, target
        )
        if cfg.low_res_channels:
            x = jnp.concatenate([x, low_res], axis=-1)
        folded = space_to_depth(x.astype(cfg.dtype), cfg.patch_size)
        batch, rows, columns, _ = folded.shape
        positions = grid_positions(rows, columns, cfg.position_grid)
        h = self._embed(folded.reshape(batch, rows * columns, -1), positions)
        h = jnp.concatenate([h, early, words], axis=1)  # what may be padding is last
        start = h.shape[1] - words.shape[1]
        read = (
            condition,
            rotary_angles(positions, cfg.width // cfg.heads),
            None if text is None else (~text.mask).sum(1),
            keys if cfg.dropout else None,
        )
        if cfg.early_layers:
            h = self._run("early_layers", h, range(cfg.early_layers), words.shape[1], *read)
        h = jnp.concatenate([h[:, :start], late, h[:, start:]], axis=1)
        h = self._run("layers", h, range(cfg.early_layers, cfg.depth), words.shape[1], *read)
        out = self._predict(h[:, : rows * columns], condition)
        return depth_to_space(out.reshape(batch, rows, columns, -1), cfg.patch_size)

    def _embed(self, patches, positions):
        """Patches to tokens, with the fixed embedding of their positions."""
        cfg = self.config
        as_matrix = self.attention is None
        dense = functools.partial(Dense, dtype=cfg.dtype, as_matrix=as_matrix, kernel_init=xavier)
        if cfg.bottleneck is not None:
            patches = dense(cfg.bottleneck, use_bias=False, name="bottleneck")(patches)
        h = dense(cfg.width, name="patch_in")(patches)
        return h + position_embedding(positions, cfg.width).astype(h.dtype)

    def _run(self, name, h, numbers, words, condition, angles, padding, keys):
        """The layers of these numbers. Only the image's tokens, the first, have positions; the last
        `words` are the text's, of which the last `padding` of a row are no keys.
        """
        cfg, layer = self.config, Layer
        angles = jnp.pad(angles, ((0, h.shape[1] - len(angles)), (0, 0)))
        lengths = None if padding is None else h.shape[1] - padding
        if self.gather is not None:
            layer = nn.map_variables(layer, "params", self.gather)
        layers = layer_stack(layer, len(numbers), cfg.remat, cfg.scan_layers)
        carry = (h, jnp.array(numbers.start))
        layers = layers(cfg, self.attention, words, name=name)
        return layers(carry, condition, angles, lengths, keys)[0][0]

    def _predict(self, h, condition):
        """Tokens to patches, in float32."""
        cfg, parts = self.config, (None, None)
        if condition is not None:
            dense = nn.Dense(2 * cfg.width, dtype=cfg.dtype, kernel_init=zeros, name="modulation")
            parts = jnp.split(dense(nn.silu(condition)), 2, axis=-1)
        h = modulated(RMSNorm(EPSILON, "float32", name="norm_out")(h), *parts)
        channels = cfg.patch_size**2 * cfg.out_channels
        return nn.Dense(channels, dtype=jnp.float32, kernel_init=zeros, name="patch_out")(h)
