"""The update as GPUs make it is the update."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.training import update
from imagen_jax.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer
from imagen_jax.training.state import init_state
from imagen_jax.training.update import apply_gradient, on_whole_gpus, rowwise_norm
from tests.training.test_optimizer import parameters


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_it_is_the_same_update(kind, clip_norm, monkeypatch):
    decay = 0.1 if kind in ("adamw", "lion", "muon") else 0.0
    config = OptimizerConfig(kind, 0.01, 0, weight_decay=decay, clip_norm=clip_norm)
    state = init_state(parameters(), make_optimizer(config), widths=(0.1,))

    def after_two(on_gpus):
        monkeypatch.setattr(update, "on_whole_gpus", lambda mesh: on_gpus)
        new, keys = state, jax.random.split(jax.random.key(1), 2)
        for key in keys:
            gradient = jax.tree.map(lambda x, k=key: jax.random.normal(k, x.shape), new.params)
            new, norm = apply_gradient(config, new, gradient, 0.9)
        return new, norm

    (found, norm), (expected, expected_norm) = after_two(True), after_two(False)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected
    )
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-6)


def test_the_norm_is_that_of_all_leaves(rng):
    shapes = [(), (7,), (3, 5), (3, 3, 2, 4), (2, 5, 3)]
    tree = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    np.testing.assert_allclose(rowwise_norm(tree), optax.tree.norm(tree), rtol=1e-6)


def test_where_it_is_taken():
    def mesh(platform, **shape):
        device = SimpleNamespace(platform=platform)
        shape = {"data": 2, "fsdp": 1, "tensor": 1} | shape
        return SimpleNamespace(devices=np.array([device]), shape=shape)

    taken = inspect.unwrap(on_whole_gpus)  # what a mesh is, is not checked
    assert taken(mesh("gpu"))
    assert not taken(mesh("gpu", fsdp=2))
    assert not taken(mesh("gpu", tensor=2))
    assert not taken(mesh("tpu"))
    assert not taken(None)
