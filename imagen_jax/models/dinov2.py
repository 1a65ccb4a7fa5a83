"""DINOv2 (arXiv 2304.07193): a vision transformer whose class token describes an image.

With or without registers (arXiv 2309.16588), with SwiGLU in the giant, as transformers' Dinov2Model
and Dinov2WithRegistersModel have them. Parameters, norms, softmax and compute are float32. Layers
are stacked and scanned.
"""

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.models.activations import gelu
from imagen_jax.models.bounds import check_bounds
from imagen_jax.models.layers import attend, scanned
from imagen_jax.typing import Images, Keys, Params

# Of the images' channels in [0, 1], over ImageNet.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dinov2Config:
    """The sizes; by default those of ViT-L/14 at 224 pixels, the network of FD-DINOv2.

    hidden: the width of the feed-forward layers; with `swiglu` of its gates. registers: tokens that
    are read by nobody. image_size: the side of the images, in pixels; position_size: of those that
    the position embeddings were trained for. position_offset: see `position_weights`; Meta's code,
    which published figures are by, adds 0.1 without registers, and transformers nothing.
    """

    width: int = 1024
    heads: int = 16
    layers: int = 24
    hidden: int = 4096
    swiglu: bool = False
    registers: int = 0
    image_size: int = 224
    patch_size: int = 14
    position_size: int = 518
    position_offset: float = 0.1
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_bounds(self)
        if self.width % self.heads:
            raise ValueError(f"A width of {self.width} does not split into {self.heads} heads.")
        for size in (self.image_size, self.position_size):
            if self.patch_size > size:
                raise ValueError(f"A patch of {self.patch_size} pixels does not fit into {size}.")

    @property
    def embedding_dim(self) -> int:
        """The number of values of a feature."""
        return self.width


class Layer(nn.Module):
    """One layer as a scan body: attention and feed-forward, a LayerNorm before and a gain for each
    channel after each (LayerScale, arXiv 2103.17239, eq. 6).
    """

    config: Dinov2Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]):
        config, gain = self.config, nn.initializers.ones
        norm = functools.partial(nn.LayerNorm, epsilon=config.norm_eps)
        h = norm(name="attention_norm")(x)
        query, key, value = (
            nn.Dense(config.width, name=name)(h) for name in ("query", "key", "value")
        )
        h = nn.Dense(config.width, name="out")(attend(query, key, value, config.heads))
        x = x + self.param("attention_gain", gain, (config.width,)) * h
        h = norm(name="feed_forward_norm")(x)
        if config.swiglu:  # arXiv 2002.05202, eq. 6
            h = nn.Dense(2 * config.hidden, name="feed_forward_in")(h)
            gate, h = jnp.split(h, 2, axis=-1)
            h = jax.nn.silu(gate) * h
        else:
            h = nn.Dense(config.hidden, name="feed_forward_in")(h)
            h = gelu(h)
        h = nn.Dense(config.width, name="feed_forward_out")(h)
        return x + self.param("feed_forward_gain", gain, (config.width,)) * h, None


class Dinov2(nn.Module):
    """Normalized images to the class token after the last norm."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "batch dim"]:
        config, small = self.config, nn.initializers.normal(0.02)
        width, patch = config.width, (config.patch_size, config.patch_size)
        x = nn.Conv(width, patch, patch, padding="VALID", name="patch_embedding")(images)
        old, new = config.position_size // config.patch_size, x.shape[1]
        places = self.param("position_embedding", small, (old**2 + 1, width))
        weights = position_weights(old, new, config.position_offset, bool(config.registers))
        grid = places[1:].reshape(old, old, width)
        x = x + jnp.einsum("yi,xj,ijw->yxw", weights, weights, grid)
        tokens = self.param("class_token", small, (1, width)) + places[:1]
        if config.registers:
            registers = self.param("registers", small, (config.registers, width))
            tokens = jnp.concatenate([tokens, registers])
        tokens = jnp.broadcast_to(tokens, (len(images), *tokens.shape))
        x = jnp.concatenate([tokens, x.reshape(len(images), new**2, width)], axis=1)
        x = scanned(Layer, config.layers)(config, name="layers")(x)[0]
        return nn.LayerNorm(config.norm_eps, name="norm_out")(x[:, 0])


def position_weights(
    old: int, new: int, offset: float, antialias: bool
) -> Float[np.ndarray, "new old"]:
    """How much each of `old` places counts in each of `new` ones: bicubic, as PyTorch has it.

    `offset` is added to the new size before the scale is taken from it: in Meta's code, against
    rounding. With `antialias` the cubic is Keys' (a = -0.5), stretched, and stops at the edges;
    without it a = -0.75, and the outermost places go on beyond them.
    """
    if old == new:
        return np.eye(old, dtype=np.float32)
    scale = old / (new + offset)
    centre = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    places = np.arange(old) if antialias else np.arange(-2, old + 2)
    x = np.abs(places - centre) / (max(scale, 1) if antialias else 1)
    a = -0.5 if antialias else -0.75
    inner, outer = ((a + 2) * x - (a + 3)) * x**2 + 1, (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    if antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    else:
        weights = weights @ np.eye(old)[np.clip(places, 0, old - 1)]
    return weights.astype(np.float32)


def init(config: Dinov2Config, key: Keys) -> Params:
    """Fresh float32 parameters."""
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    return Dinov2(config).init(key, images)["params"]


def embed_images(config: Dinov2Config, params: Params, images: Images) -> Float[Array, "batch dim"]:
    """The class tokens of images in [0, 1] of the config's size."""
    images = (images - jnp.asarray(IMAGE_MEAN)) / jnp.asarray(IMAGE_STD)
    return Dinov2(config).apply({"params": params}, images)
