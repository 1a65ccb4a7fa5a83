"""PRX, Photoroom's transformer: patches attend to each other and to the text, which stays as it is.

The network of PRXPixel, which diffusers has as PRXTransformer2DModel. Each block projects the text
to keys and values of its own; no layer changes the text.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagen_jax.models.bounds import DTYPES, REMATS, check_bounds, check_choice
from imagen_jax.models.layers import attend, rematerialized, sinusoidal_embedding
from imagen_jax.typing import TextEmbeddings

EPSILON = 1e-6
FEATURES = 256  # sines and cosines of the time; half of them of each side of the image


@dataclasses.dataclass(frozen=True)
class PRXConfig:
    """A PRX transformer; the defaults are PRXPixel's, 7B parameters.

    Patches of `patch_size` pixels a side pass `bottleneck` channels (None: they do not) to `width`.
    hidden: width of the gated MLP. sees_size: whether the image's height and width are embedded and
    added to the time.
    """

    in_channels: int = 3
    patch_size: int = 16
    bottleneck: int | None = 768
    width: int = 3584
    layers: int = 24
    heads: int = 28
    hidden: int = 12544
    sees_size: bool = True
    dtype: str = "float32"
    remat: bool | str = False

    def __post_init__(self):
        check_choice("network.dtype", self.dtype, DTYPES)
        check_choice("network.remat", self.remat, REMATS)
        check_bounds(self)
        if self.width % (4 * self.heads):
            raise ValueError(
                f"network.width {self.width} must be a multiple of 4 times network.heads, "
                f"{4 * self.heads}: a head's width is rotated in pairs, by row and by column"
            )

    # What every network says of itself.
    @property
    def out_channels(self) -> int:
        return self.in_channels

    @property
    def low_res_channels(self) -> int:
        return 0

    @property
    def num_classes(self) -> None:
        return None


def rotary_angles(positions, head_width):
    count = head_width // 4

    def _angles(p):
        return p[:, None] * 10_000.0 ** (-jnp.arange(count, dtype=jnp.float32) / count)

    return jnp.concatenate([_angles(positions[:, axis]) for axis in (0, 1)], -1)


def grid_positions(rows, columns):
    axes = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    return jnp.stack([axis.reshape(-1) for axis in axes], -1).astype(jnp.float32)


def rotate(x, angles):
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (f(angles)[:, None] for f in (jnp.cos, jnp.sin))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def _modulated(x, scale, shift):
    """A LayerNorm without parameters, then scale and shift (arXiv 2212.09748, adaLN)."""
    norm = nn.LayerNorm(
        EPSILON, jnp.float32, use_bias=False, use_scale=False, use_fast_variance=False
    )
    return (norm(x) * (1.0 + scale) + shift).astype(x.dtype)


class PRXAttention(nn.Module):
    """Image tokens attend to text and image together; queries and keys are RMS-normed a head."""

    config: PRXConfig

    @nn.compact
    def __call__(self, x, text: TextEmbeddings, angles):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        dense = functools.partial(nn.Dense, use_bias=False, dtype=dtype)

        def heads(values):
            return values.reshape(*values.shape[:2], cfg.heads, -1)

        def normed(values, name):
            """A head's channels 2i and 2i + 1, which turn together, end up half a head apart."""
            values = nn.RMSNorm(EPSILON, jnp.float32, name=name)(heads(values)).astype(dtype)
            pairs = values.reshape(*values.shape[:-1], -1, 2).swapaxes(-1, -2)
            return pairs.reshape(values.shape)

        query, key, value = jnp.split(dense(3 * cfg.width, name="query_key_value")(x), 3, axis=-1)
        text_key, text_value = jnp.split(
            dense(2 * cfg.width, name="text_key_value")(text.values), 2, axis=-1
        )
        query = rotate(normed(query, "norm_query"), angles)
        key = rotate(normed(key, "norm_key"), angles)
        key = jnp.concatenate([normed(text_key, "norm_text_key"), key], axis=1)
        value = jnp.concatenate([text_value, value], axis=1)
        mask = jnp.concatenate([text.mask, jnp.ones(x.shape[:2], bool)], axis=1)
        flat = (a.reshape(*a.shape[:2], cfg.width) for a in (query, key, value))
        out = attend(*flat, cfg.heads, mask[:, None, None, :])
        return dense(cfg.width, name="out")(out)


class PRXBlock(nn.Module):
    """Attention and a gated MLP, each between a modulated norm and a gate (arXiv 2212.09748)."""

    config: PRXConfig

    @nn.compact
    def __call__(self, x, text: TextEmbeddings, embedding, angles):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        zeros = nn.initializers.zeros_init()
        modulation = nn.Dense(6 * cfg.width, dtype=dtype, kernel_init=zeros, name="modulation")
        parts = jnp.split(modulation(nn.silu(embedding))[:, None], 6, axis=-1)
        shift, scale, gate = parts[:3]
        x = x + gate * PRXAttention(cfg, name="attention")(
            _modulated(x, scale, shift), text, angles
        )
        shift, scale, gate = parts[3:]
        h = _modulated(x, scale, shift)
        dense = functools.partial(nn.Dense, use_bias=False, dtype=dtype)
        h = nn.gelu(dense(cfg.hidden, name="gate")(h)) * dense(cfg.hidden, name="up")(h)
        return x + gate * dense(cfg.width, name="out")(h)


class PRX(nn.Module):
    """`PRXConfig` as a network: images [B,H,W,C] and 1000*t [B] to images [B,H,W,C]."""

    config: PRXConfig

    @nn.compact
    def __call__(self, x, time, text: TextEmbeddings, label, low_res, aug_level):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        batch, height, width, channels = x.shape
        rows, columns = height // cfg.patch_size, width // cfg.patch_size
        dense = functools.partial(nn.Dense, cfg.width, dtype=dtype)

        def mlp(features, name):
            return dense(name=f"{name}_out")(nn.silu(dense(name=f"{name}_in")(features)))

        embedding = mlp(sinusoidal_embedding(time, FEATURES), "time")
        if cfg.sees_size:
            sides = sinusoidal_embedding(jnp.float32([height, width]), FEATURES // 2)
            embedding += mlp(sides.reshape(1, -1), "size")
        text = text._replace(values=dense(name="text_in")(text.values.astype(dtype)))
        h = _to_patches(x.astype(dtype), cfg.patch_size)
        if cfg.bottleneck is not None:
            h = nn.Dense(cfg.bottleneck, dtype=dtype, name="bottleneck")(h)
        h = dense(name="patch_in")(h)
        angles = rotary_angles(grid_positions(rows, columns), cfg.width // cfg.heads)
        for i in range(cfg.layers):
            block = rematerialized(PRXBlock, cfg.remat)(cfg, name=f"block{i}")
            h = block(h, text, embedding, angles)
        modulation = nn.Dense(2 * cfg.width, dtype=dtype, name="modulation_out")
        shift, scale = jnp.split(modulation(nn.silu(embedding))[:, None], 2, axis=-1)
        h = _modulated(h, scale, shift)
        h = nn.Dense(channels * cfg.patch_size**2, dtype=jnp.float32, name="patch_out")(h)
        return _from_patches(h, (rows, columns, cfg.patch_size))


def _to_patches(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch patches values"]:
    """Each patch's values: channel, row, column, the last the fastest."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, -1, c * size * size)


def _from_patches(
    x: Float[Array, "batch patches values"], grid: tuple[int, int, int]
) -> Float[Array, "batch height width channels"]:
    """The inverse of `_to_patches`; `grid` is (rows, columns, size)."""
    rows, columns, size = grid
    x = x.reshape(x.shape[0], rows, columns, -1, size, size).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(x.shape[0], rows * size, columns * size, -1)
