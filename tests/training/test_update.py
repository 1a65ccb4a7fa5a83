"""An update of kernels as matrices is the update of the parameters as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer
from imagen_jax.training.state import init_state
from imagen_jax.training.update import apply_gradient, rowwise_norm, takes_matrices
from tests.training.test_optimizer import parameters


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_it_is_the_same_update(kind, clip_norm, mesh):
    decay = 0.1 if kind in ("adamw", "lion", "muon") else 0.0
    config = OptimizerConfig(kind, 0.01, 0, weight_decay=decay, clip_norm=clip_norm)
    state = init_state(parameters(), make_optimizer(config), widths=(0.1,))

    def after_two(mesh):
        new, keys = state, jax.random.split(jax.random.key(1), 2)
        for key in keys:
            gradient = jax.tree.map(lambda x, k=key: jax.random.normal(k, x.shape), new.params)
            new, norm = apply_gradient(config, new, gradient, 0.9, mesh)
        return new, norm

    (found, norm), (expected, expected_norm) = after_two(mesh), after_two(None)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected
    )
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-6)


def test_the_norm_is_that_of_all_leaves(rng):
    shapes = [(), (7,), (3, 5), (3, 3, 2, 4), (2, 5, 3)]
    tree = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    np.testing.assert_allclose(rowwise_norm(tree), optax.tree.norm(tree), rtol=1e-6)


def test_where_it_is_taken(mesh):
    adam, adafactor = OptimizerConfig("adam"), OptimizerConfig("adafactor")
    assert takes_matrices(adam, mesh)
    assert not takes_matrices(adafactor, mesh)
    assert not takes_matrices(adam, None)
    if len(jax.devices()) > 1:
        sharded = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
        assert not takes_matrices(adam, sharded)
