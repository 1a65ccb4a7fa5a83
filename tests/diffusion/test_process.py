"""The forward process and the conversions between predictions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import PREDICTIONS, add_noise, alpha_sigma, convert

SHAPE = (5, 4, 4, 3)
LOGSNRS = jnp.array([-6.0, -2.0, 0.0, 3.0, 6.0])
PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))


def example(key):
    x0_key, eps_key = jax.random.split(key)
    x0 = jax.random.uniform(x0_key, SHAPE, minval=-1.0, maxval=1.0)
    return x0, jax.random.normal(eps_key, SHAPE)


def predictions(x0, eps, logsnr):
    """Each kind, from its definition in float64."""
    x0, eps = np.asarray(x0, np.float64), np.asarray(eps, np.float64)
    snr = np.exp(np.asarray(logsnr, np.float64)).reshape(-1, 1, 1, 1)
    alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}, alpha * x0 + sigma * eps


def test_variance_is_preserved():
    alpha, sigma = alpha_sigma(jnp.linspace(-40.0, 40.0, 801))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-6)
    np.testing.assert_allclose(
        alpha_sigma(jnp.array([-jnp.inf, jnp.inf])), [[0.0, 1.0], [1.0, 0.0]]
    )


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_is_the_definition(key, source, target):
    x0, eps = example(key)
    expected, x_t = predictions(x0, eps, LOGSNRS)
    noised = add_noise(x0, eps, LOGSNRS)
    np.testing.assert_allclose(noised, x_t, atol=1e-6)
    value = jnp.asarray(expected[source], jnp.float32)
    converted = convert(value, noised, LOGSNRS, source, target)
    np.testing.assert_allclose(converted, expected[target], atol=1e-5)


@pytest.mark.parametrize("cycle", list(itertools.permutations(PREDICTIONS)))
def test_cycles_come_back(key, cycle):
    """Any values, not only consistent ones: eps -> x0 -> v -> eps and so on are identities."""
    value, x_t = example(key)
    result = value
    for source, target in itertools.pairwise((*cycle, cycle[0])):
        result = convert(result, x_t, LOGSNRS, source, target)
    np.testing.assert_allclose(result, value, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("logsnr", [-jnp.inf, -30.0, -15.0, 15.0, 30.0, jnp.inf])
def test_ends_are_finite(key, source, target, logsnr):
    value, x_t = example(key)
    assert np.all(np.isfinite(convert(value, x_t, logsnr, source, target)))


def test_ends_are_exact_where_they_are_defined(key):
    value, x_t = example(key)
    np.testing.assert_array_equal(convert(value, x_t, -jnp.inf, "v", "x0"), -value)
    np.testing.assert_array_equal(convert(value, x_t, -jnp.inf, "v", "eps"), x_t)
    np.testing.assert_array_equal(convert(value, x_t, jnp.inf, "v", "x0"), x_t)
    np.testing.assert_array_equal(convert(value, x_t, jnp.inf, "eps", "x0"), x_t)


def test_half_precision_is_taken_to_float32(key):
    x0, eps = (value.astype(jnp.bfloat16) for value in example(key))
    noised = add_noise(x0, eps, LOGSNRS.astype(jnp.bfloat16))
    assert noised.dtype == jnp.float32
    exact = add_noise(x0.astype(jnp.float32), eps.astype(jnp.float32), LOGSNRS)
    np.testing.assert_array_equal(noised, exact)
    for source, target in PAIRS:
        converted = convert(eps, x0, LOGSNRS.astype(jnp.bfloat16), source, target)
        assert converted.dtype == jnp.float32
