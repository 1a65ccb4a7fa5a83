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


def more_parameters():
    """Also vectors of one length and of several, a scalar, and vectors of stacked layers."""
    keys = jax.random.split(jax.random.key(2), 5)
    norms = {str(i): jax.random.normal(key, (3 + i // 2,)) for i, key in enumerate(keys)}
    stacked = {"scale": jax.random.normal(keys[0], (2, 4))}
    return parameters() | {"norms": norms, "temperature": jnp.ones(()), "encoder_layers": stacked}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("averages", [True, False])
def test_it_is_the_same_update(kind, clip_norm, averages, monkeypatch):
    decay = 0.1 if kind in ("adamw", "lion", "muon") else 0.0
    config = OptimizerConfig(kind, 0.01, 0, weight_decay=decay, clip_norm=clip_norm)
    widths = (0.1, 0.05) if averages else ()
    optimizer = make_optimizer(config)
    state = init_state(more_parameters(), optimizer, with_ema=averages, widths=widths)

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


@pytest.mark.parametrize("kind", update.ELEMENTWISE)
def test_vectors_are_joined_for_the_update_alone(kind, monkeypatch):
    def arrays(on_gpus, params):
        monkeypatch.setattr(update, "on_whole_gpus", lambda mesh: on_gpus)
        config = OptimizerConfig(kind, 0.01, 0)
        state = init_state(params, make_optimizer(config))
        step = jax.make_jaxpr(lambda s, g: apply_gradient(config, s, g, 0.9))(state, params)
        return [eqn.primitive.name for eqn in step.eqns].count("concatenate")

    # Gradient, parameters, EMA and the optimizer's averages: once each, and the norm's rows.
    assert arrays(True, more_parameters()) == 4 + {"adam": 2, "adamw": 2}.get(kind, 1)
    assert arrays(True, {"kernel": jnp.ones((2, 3))}) == 0  # an adapter has no vectors
    assert arrays(False, more_parameters()) == 0


def test_the_donated_state_is_written_in_place(monkeypatch):
    config = OptimizerConfig("adam", 0.01, 0)
    params = more_parameters()
    state = init_state(params, make_optimizer(config))

    def reused(on_gpus):
        monkeypatch.setattr(update, "on_whole_gpus", lambda mesh: on_gpus)
        step = jax.jit(lambda s, g: apply_gradient(config, s, g, 0.9), donate_argnums=0)
        return step.lower(state, params).compile().memory_analysis().alias_size_in_bytes

    assert reused(True) == reused(False) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_splitting_undoes_joining():
    params = more_parameters()
    state = init_state(params, make_optimizer(OptimizerConfig("adam")), widths=(0.1,))
    state = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape), state)
    joined = update.join_vectors(state, params)
    assert len(jax.tree.leaves(joined.opt_state)) < len(jax.tree.leaves(state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, update.split_vectors(joined, params), state)


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
