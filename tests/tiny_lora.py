"""A tiny base U-Net, and adapters that are not zero, for tests."""

import jax
import numpy as np

from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.models.lora import init_lora

UNET = UNetConfig((UNetLevel(8, 1), UNetLevel(16, 1, "self")), head_channels=8, pooling_heads=2)
UNET_STAGE = Stage("unet", 4, UNET, text_width=8)


def unet_shapes():
    return jax.eval_shape(lambda key: init_params(UNET_STAGE, key), jax.random.key(0))


def random_lora(params, config, seed=1):
    """An adapter that changes something: `up` is not zero."""
    rng = np.random.default_rng(seed)
    fresh = init_lora(params, config, jax.random.key(seed))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), fresh)
