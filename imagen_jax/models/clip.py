"""CLIP (arXiv 2103.00020): a vision transformer and a text transformer into one space.

OpenAI's models (quick_gelu) and OpenCLIP's (gelu), as transformers' CLIPModel has them. Parameters,
norms, softmax and compute are float32. Layers are stacked and scanned.
"""

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.models.activations import gelu
from imagen_jax.models.bounds import check_bounds, check_choice
from imagen_jax.models.layers import attend, scanned
from imagen_jax.typing import Images, Keys, Params, Tokens


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), what OpenAI's models were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
# Of the images' channels in [0, 1], over all of OpenAI's training data.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one transformer; `hidden` is the width of its feed-forward layers."""

    width: int
    heads: int
    layers: int
    hidden: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_bounds(self)
        if self.width % self.heads:
            raise ValueError(f"A width of {self.width} does not split into {self.heads} heads.")
        check_choice("TowerConfig.activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class ClipConfig:
    """Both towers, and what they read.

    `eos_id` ends a caption; None takes the largest id in the caption for it, as OpenAI's code does.
    """

    vision: TowerConfig
    text: TowerConfig
    embedding_dim: int = 512
    image_size: int = 224
    patch_size: int = 32
    vocab_size: int = 49408
    max_length: int = 77
    eos_id: int | None = 49407

    def __post_init__(self):
        check_bounds(self)
        if self.patch_size > self.image_size:
            raise ValueError(
                f"A patch of {self.patch_size} pixels does not fit into {self.image_size}."
            )


class Layer(nn.Module):
    """One layer as a scan body: attention and feed-forward, a LayerNorm before each."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"], mask: Array | None):
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=config.norm_eps)
        h = norm(name="attention_norm")(x)
        query, key, value = (
            nn.Dense(config.width, name=name)(h) for name in ("query", "key", "value")
        )
        h = attend(query, key, value, config.heads, mask)
        x = x + nn.Dense(config.width, name="out")(h)
        h = nn.Dense(config.hidden, name="feed_forward_in")(norm(name="feed_forward_norm")(x))
        h = ACTIVATIONS[config.activation](h)
        return x + nn.Dense(config.width, name="feed_forward_out")(h), None


def transformer(config: TowerConfig, x: Array, mask: Array | None) -> Array:
    """The layers of the tower whose `__call__` this is called from."""
    return scanned(Layer, config.layers)(config, name="layers")(x, mask)[0]


class VisionTower(nn.Module):
    """Normalized images to embeddings, from a class token."""

    config: ClipConfig

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "batch dim"]:
        config, tower = self.config, self.config.vision
        side = config.image_size // config.patch_size
        kernel = self.param(
            "patch_embedding",
            nn.initializers.lecun_normal(),
            (config.patch_size, config.patch_size, 3, tower.width),
        )
        # As a matrix product over patches; pixels beyond the last whole one are left out.
        x = images[:, : side * config.patch_size, : side * config.patch_size]
        x = x.reshape(-1, side, config.patch_size, side, config.patch_size, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), side**2, -1)
        x = x @ kernel.reshape(-1, tower.width)
        small = nn.initializers.normal(tower.width**-0.5)
        class_token = self.param("class_token", small, (tower.width,))
        class_token = jnp.broadcast_to(class_token, (len(images), 1, tower.width))
        places = self.param("position_embedding", small, (side**2 + 1, tower.width))
        x = jnp.concatenate([class_token, x], axis=1) + places
        x = nn.LayerNorm(tower.norm_eps, name="norm_in")(x)
        x = transformer(tower, x, None)[:, 0]
        x = nn.LayerNorm(tower.norm_eps, name="norm_out")(x)
        return nn.Dense(config.embedding_dim, use_bias=False, name="projection")(x)


class TextTower(nn.Module):
    """Token ids to embeddings, from the end mark; each token attends to those before it."""

    config: ClipConfig

    @nn.compact
    def __call__(self, ids: Tokens) -> Float[Array, "batch dim"]:
        config, tower = self.config, self.config.text
        length = ids.shape[1]
        small = nn.initializers.normal(0.02)
        table = self.param("token_embedding", small, (config.vocab_size, tower.width))
        places = self.param("position_embedding", small, (config.max_length, tower.width))
        x = jnp.take(table, ids, axis=0) + places[:length]
        x = transformer(tower, x, jnp.tril(jnp.ones((1, 1, length, length), bool)))
        ends = ids if config.eos_id is None else ids == config.eos_id
        x = x[jnp.arange(len(ids)), jnp.argmax(ends, axis=1)]
        x = nn.LayerNorm(tower.norm_eps, name="norm_out")(x)
        return nn.Dense(config.embedding_dim, use_bias=False, name="projection")(x)


def init(config: ClipConfig, key: Keys) -> Params:
    """Fresh float32 parameters of both towers, {"vision": ..., "text": ...}."""
    image_key, text_key = jax.random.split(key)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    ids = jnp.zeros((1, config.max_length), jnp.int32)
    return {
        "vision": VisionTower(config).init(image_key, images)["params"],
        "text": TextTower(config).init(text_key, ids)["params"],
    }


def embed_images(
    config: ClipConfig, params: Params, images: Images
) -> Float[Array, "batch embedding_dim"]:
    """Embeddings, not normalized, of images in [0, 1] of the model's size."""
    images = (images - jnp.asarray(IMAGE_MEAN)) / jnp.asarray(IMAGE_STD)
    return VisionTower(config).apply({"params": params["vision"]}, images)


def embed_texts(
    config: ClipConfig, params: Params, ids: Tokens
) -> Float[Array, "batch embedding_dim"]:
    """Embeddings, not normalized, of captions' ids; what follows the end mark does not matter."""
    return TextTower(config).apply({"params": params["text"]}, ids)
