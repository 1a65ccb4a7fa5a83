"""The configs at the paper's size say what the paper says, and can be built."""

import math
from pathlib import Path

import jax
import pytest

from imagen_jax.cascade.cascade import Cascade, Sampling
from imagen_jax.cascade.stage import init_params
from imagen_jax.diffusion.schedules import Cosine, LinearBeta
from imagen_jax.models.t5 import T5_V1_1
from imagen_jax.training.config import load_config
from imagen_jax.training.run_config import read_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Parameters that the paper states, and those of the printed configuration: section 1 of F.
SIZES = {"base64": (2.0e9, 2.6e9), "sr256": (0.55e9, 0.7e9), "sr1024": (0.4e9, 0.7e9)}


def read(name: str):
    return read_config(load_config(CONFIGS / f"imagen_{name}.py"))


@pytest.fixture(scope="module")
def paper():
    return {name: read(name) for name in SIZES}


def parameters(stage) -> int:
    shapes = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", SIZES)
def test_sizes(paper, name):
    low, high = SIZES[name]
    assert low < parameters(paper[name].stage) < high


@pytest.mark.parametrize("name", SIZES)
def test_training_is_the_papers(paper, name):
    config = paper[name]
    assert (config.batch_size, config.num_steps) == (2048, 2_500_000)
    optimizer = config.optimizer
    assert optimizer.kind == ("adafactor" if name == "base64" else "adam")
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (1e-4, 10_000)
    assert (optimizer.decay_steps, optimizer.weight_decay) == (2_500_000, 0.0)
    if name != "base64":
        assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert config.text.dropout == 0.1
    assert not config.text.trainable
    assert config.frozen_dtype == "bfloat16"
    encoder = T5_V1_1["xxl"]
    for field in ("vocab_size", "d_model", "num_heads", "num_layers", "d_ff"):
        assert getattr(config.text.encoder, field) == getattr(encoder, field)


def test_stages_are_the_papers(paper):
    stages = [paper[name].stage for name in SIZES]
    assert all(stage.prediction == "eps" and stage.loss.weight == "eps" for stage in stages)
    assert [type(stage.schedule) for stage in stages] == [Cosine, Cosine, LinearBeta]
    assert [stage.training_side for stage in stages] == [64, 256, 256]
    Cascade(tuple(stages), (Sampling(),) * 3, None)  # each fits the one before


@pytest.mark.parametrize("name", SIZES)
def test_a_small_sibling_differs_in_size_alone(paper, name):
    small, full = read(f"{name}_small"), paper[name]
    assert 0.3e9 < parameters(small.stage) < 0.5e9
    assert small.optimizer == full.optimizer
    assert small.stage.schedule == full.stage.schedule
    assert len(small.stage.network.levels) == len(full.stage.network.levels)
