"""A cascade of two stages, 4x4 and 8x8 pixels, with random parameters, for tests."""

import jax
import numpy as np

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, part_shapes
from imagen_jax.cascade.stage import Conditions, Stage
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models import EfficientLevel, EfficientUNetConfig
from imagen_jax.models.t5 import T5Config
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.text.encoder import TextEncoder, null_text
from imagen_jax.text.tokenizers import ByteTokenizer
from imagen_jax.typing import TextEmbeddings

WIDTH = 8
ENCODER = TextEncoder(
    T5Config(vocab_size=259, d_model=WIDTH, num_heads=1, head_dim=8, num_layers=1, d_ff=8),
    ByteTokenizer(),
    max_length=12,
)
BASE_SETTINGS = Sampling("ddpm", steps=4, guidance=3.0)
SR_SETTINGS = Sampling("ddpm", steps=3, aug_level=0.2)


def network(low_res_channels: int = 0, num_classes: int | None = None) -> EfficientUNetConfig:
    level = EfficientLevel(8, num_res_blocks=1, stride=2, attention="cross")
    return EfficientUNetConfig(
        (level,),
        low_res_channels=low_res_channels,
        num_classes=num_classes,
        stem_channels=8,
        num_heads=1,
        embedding_width=8,
    )


BASE = Stage("base", 4, network(), text_width=WIDTH)
SR = Stage("sr", 8, network(3), low_resolution=4, text_width=WIDTH)
CASCADE = Cascade((BASE, SR), (BASE_SETTINGS, SR_SETTINGS), ENCODER)


def random_params(cascade: Cascade, seed: int = 0) -> dict:
    """Parameters of all parts, none of them zero: fresh networks would give zeros."""
    rng = np.random.default_rng(seed)
    names = [stage.name for stage in cascade.stages]
    names += [TEXT_ENCODER] if cascade.encoder else []

    def draw(leaf) -> np.ndarray:
        return rng.normal(0, 0.6, leaf.shape).astype(np.float32)

    return {name: jax.tree.map(draw, part_shapes(cascade, name)) for name in names}


def random_conditions(count: int) -> Conditions:
    """Text of some samples, and one null for all."""
    rng = np.random.default_rng(1)
    width, length = ENCODER.config.d_model, ENCODER.max_length
    values = rng.normal(size=(count, length, width)).astype(np.float32)
    mask = np.arange(length) < np.array([[3], [5], [12]])[:count]
    null = jax.tree.map(np.asarray, null_text(1, length, width))
    return Conditions(TextEmbeddings(values, mask), null)


def tiny_pipeline() -> Pipeline:
    return Pipeline(CASCADE, random_params(CASCADE), name="tiny", notes={"steps": 0})
