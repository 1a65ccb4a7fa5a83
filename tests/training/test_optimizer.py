"""Every optimizer lowers a loss; schedules, clipping and accumulation do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.training.optimizer import (
    OPTIMIZERS,
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)


def parameters():
    """One of each that an optimizer treats by itself: convolution, matrix, vector, table, stack."""
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 4, 4)) / 6, "bias": jnp.zeros(4)},
        "dense": {"kernel": jax.random.normal(keys[1], (4, 4)) / 2},
        "embed": {"embedding": jax.random.normal(keys[2], (5, 4))},
        "layers": {"kernel": jax.random.normal(keys[3], (2, 4, 4)) / 2},
    }


def loss(params, x):
    kernel = params["conv"]["kernel"].reshape(36, 4)
    h = jax.nn.silu(jnp.tile(x, 9) @ kernel + params["conv"]["bias"]) @ params["dense"]["kernel"]
    h = h @ params["layers"]["kernel"][0] @ params["layers"]["kernel"][1]
    return jnp.mean((h + params["embed"]["embedding"][0] - x) ** 2)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(kind):
    rate = {"sgd": 0.1}.get(kind, 0.01)
    optimizer = make_optimizer(OptimizerConfig(kind, rate, warmup_steps=3, clip_norm=1.0))
    params = parameters()
    state = optimizer.init(params)
    x = jax.random.normal(jax.random.key(1), (32, 4))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, x)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(40):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


def test_schedule_warms_up_then_decays_to_zero():
    rate = learning_rate_schedule(OptimizerConfig("adam", 2.0, warmup_steps=10, decay_steps=110))
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0.0, 1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose([rate(60), rate(110), rate(500)], [1.0, 0.0, 0.0], atol=1e-6)


def test_schedule_without_decay_stays_at_the_peak():
    rate = learning_rate_schedule(OptimizerConfig("adam", 2.0, warmup_steps=4))
    np.testing.assert_allclose([rate(2), rate(4), rate(10**6)], [1.0, 2.0, 2.0])
    assert learning_rate_schedule(OptimizerConfig("adam", 2.0, warmup_steps=0))(0) == 2.0


def test_clipping_bounds_the_step():
    params = {"kernel": jnp.ones((3, 3))}
    config = OptimizerConfig("sgd", 1.0, warmup_steps=0, b1=0.0, clip_norm=0.5)
    optimizer = make_optimizer(config)
    grads = {"kernel": jnp.full((3, 3), 100.0)}
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, grads)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adafactor", "adamw", "lion", "muon"])
def test_weight_decay_goes_with_the_rate_and_leaves_vectors_alone(kind):
    """Those of stacked layers too, which have two axes."""
    params = {
        "dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
        "early_layers": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))},
    }
    config = OptimizerConfig(kind, 0.1, warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(config)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, grads)
    for part in updates.values():
        np.testing.assert_allclose(part["kernel"], -0.05, rtol=1e-5)
        np.testing.assert_allclose(part["bias"], 0.0)


def moved(config, gradients):
    """How far zeros go, by these gradients of a kernel that Adafactor factors."""
    optimizer = make_optimizer(config)

    def step(carry, scale):
        params, state = carry
        grads = {"kernel": jnp.full((128, 128), scale)}
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": jnp.zeros((128, 128))}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), gradients)
    return float(jnp.abs(params["kernel"]).mean())


def test_adafactor_moves_a_zero_kernel_by_the_rate():
    gradients = jnp.full(100, 1e-3)
    config = OptimizerConfig("adafactor", 1e-4, warmup_steps=0)
    np.testing.assert_allclose(moved(config, gradients), 100 * 1e-4, rtol=0.05)


def test_adafactor_reads_its_own_settings():
    gradients = jnp.asarray([1.0, 0.0, 0.0, 0.0])

    def distance(**settings):
        return moved(OptimizerConfig("adafactor", 1e-4, warmup_steps=0, **settings), gradients)

    # Without momentum one step of the rate; with it, a geometric series of it.
    np.testing.assert_allclose(distance(), 1e-4, rtol=1e-3)
    np.testing.assert_allclose(distance(b1=0.5), 1e-4 * (1 - 0.5**4), rtol=1e-3)
    # The longer the first gradient is remembered (1 - t^-decay_rate), the less a smaller one moves.
    steps = [
        moved(
            OptimizerConfig("adafactor", 1e-4, warmup_steps=0, decay_rate=rate),
            jnp.asarray([2.0, 1.0]),
        )
        for rate in (0.1, 0.9)
    ]
    remembered = [1 - 2**-rate for rate in (0.1, 0.9)]
    expected = [1e-4 * (1 + 1 / (4 * m + 1 - m) ** 0.5) for m in remembered]
    np.testing.assert_allclose(steps, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"kind": "adan"}, "adan"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"decay_steps": 100, "warmup_steps": 100}, "decay_steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"accumulation": 0}, "accumulation"),
        ({"kind": "adafactor", "b2": 0.99}, "b2 .* 'adafactor' has none"),
        ({"kind": "adafactor", "eps": 1e-8}, "eps"),
        ({"kind": "adam", "decay_rate": 0.8}, "decay_rate"),
        ({"kind": "sgd", "b2": 0.9}, "b2"),
        ({"kind": "lion", "eps": 1e-8}, "eps"),
    ],
)
def test_bad_values_are_named(bad, named):
    with pytest.raises(ValueError, match=named):
        OptimizerConfig(**bad)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_weight_decay_is_not_silently_ignored(kind):
    with pytest.raises(ValueError, match="weight_decay"):
        OptimizerConfig(kind, weight_decay=0.1)
