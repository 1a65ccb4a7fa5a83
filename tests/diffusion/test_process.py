"""The forward process and the conversions between predictions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import (
    PREDICTIONS,
    VARIANCE_PRESERVING,
    Straight,
    add_noise,
    convert,
    network_input,
    prediction_target,
)

SHAPE = (5, 4, 4, 3)
LOGSNRS = jnp.array([-6.0, -2.0, 0.0, 3.0, 6.0])
STRAIGHT = Straight()
PATHS = (VARIANCE_PRESERVING, STRAIGHT)
PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))


def example(key):
    x0_key, eps_key = jax.random.split(key)
    x0 = jax.random.uniform(x0_key, SHAPE, minval=-1.0, maxval=1.0)
    return x0, jax.random.normal(eps_key, SHAPE)


def predictions(x0, eps, logsnr, path):
    """Each kind, from its definition in float64, and x_t."""
    x0, eps = np.asarray(x0, np.float64), np.asarray(eps, np.float64)
    ratio = np.exp(-np.asarray(logsnr, np.float64) / 2).reshape(-1, 1, 1, 1)  # sigma / alpha
    if path is STRAIGHT:
        alpha, sigma = 1 / (1 + ratio), ratio / (1 + ratio)
        v = eps - x0
    else:
        alpha, sigma = 1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2)
        v = alpha * eps - sigma * x0
    # arXiv 2206.00364, table 1, in its own x = x0 + ratio eps.
    c_skip = 0.25 / (ratio**2 + 0.25)
    c_out = ratio * 0.5 / np.sqrt(ratio**2 + 0.25)
    edm = (x0 - c_skip * (x0 + ratio * eps)) / c_out
    return {"x0": x0, "eps": eps, "v": v, "edm": edm}, alpha * x0 + sigma * eps


def test_paths():
    logsnr = jnp.linspace(-40.0, 40.0, 801)
    alpha, sigma = VARIANCE_PRESERVING.alpha_sigma(logsnr)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-6)
    alpha, sigma = STRAIGHT.alpha_sigma(logsnr)
    np.testing.assert_allclose(alpha + sigma, 1.0, atol=1e-6)
    ends = jnp.array([-jnp.inf, jnp.inf])
    for path in PATHS:
        alpha, sigma = path.alpha_sigma(logsnr)
        np.testing.assert_allclose(2.0 * (jnp.log(alpha) - jnp.log(sigma)), logsnr, atol=1e-4)
        np.testing.assert_allclose(path.alpha_sigma(ends), [[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_is_the_definition(key, source, target, path):
    x0, eps = example(key)
    expected, x_t = predictions(x0, eps, LOGSNRS, path)
    noised = add_noise(x0, eps, LOGSNRS, path)
    np.testing.assert_allclose(noised, x_t, atol=1e-6)
    np.testing.assert_allclose(
        prediction_target(source, x0, eps, LOGSNRS, path), expected[source], atol=1e-5
    )
    value = jnp.asarray(expected[source], jnp.float32)
    converted = convert(value, noised, LOGSNRS, source, target, path)
    np.testing.assert_allclose(converted, expected[target], atol=5e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cycle", list(itertools.permutations(PREDICTIONS)))
def test_cycles_come_back(key, cycle, path):
    """Any values, not only consistent ones: eps -> x0 -> v -> eps and so on are identities."""
    value, x_t = example(key)
    result = value
    for source, target in itertools.pairwise((*cycle, cycle[0])):
        result = convert(result, x_t, LOGSNRS, source, target, path)
    np.testing.assert_allclose(result, value, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("logsnr", [-jnp.inf, -30.0, -15.0, 15.0, 30.0, jnp.inf])
def test_ends_are_finite(key, source, target, logsnr, path):
    value, x_t = example(key)
    assert np.all(np.isfinite(convert(value, x_t, logsnr, source, target, path)))


def test_ends_are_exact_where_they_are_defined(key):
    value, x_t = example(key)
    np.testing.assert_array_equal(convert(value, x_t, -jnp.inf, "v", "x0"), -value)
    np.testing.assert_array_equal(convert(value, x_t, -jnp.inf, "v", "eps"), x_t)
    np.testing.assert_array_equal(convert(value, x_t, jnp.inf, "v", "x0"), x_t)
    np.testing.assert_array_equal(convert(value, x_t, jnp.inf, "eps", "x0"), x_t)
    np.testing.assert_array_equal(convert(value, x_t, -jnp.inf, "v", "x0", STRAIGHT), x_t - value)
    np.testing.assert_array_equal(convert(value, x_t, jnp.inf, "edm", "x0"), x_t)


@pytest.mark.parametrize("path", PATHS)
def test_edm_inputs_have_unit_variance(key, path):
    """c_in x of arXiv 2206.00364, on whatever path: for data of deviation 0.5 the variance is 1."""
    x0 = 0.5 * jax.random.normal(key, (5, 64, 64, 3))
    eps = jax.random.normal(jax.random.fold_in(key, 1), x0.shape)
    seen = network_input(add_noise(x0, eps, LOGSNRS, path), LOGSNRS, "edm", path)
    np.testing.assert_allclose(jnp.std(seen, axis=(1, 2, 3)), 1.0, atol=0.03)
    ratio = np.exp(-np.asarray(LOGSNRS) / 2).reshape(-1, 1, 1, 1)
    expected = (x0 + ratio * eps) / np.sqrt(ratio**2 + 0.25)
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    for prediction in ("eps", "x0", "v"):
        assert network_input(x0, LOGSNRS, prediction, path) is x0


def test_half_precision_is_taken_to_float32(key):
    x0, eps = (value.astype(jnp.bfloat16) for value in example(key))
    noised = add_noise(x0, eps, LOGSNRS.astype(jnp.bfloat16))
    assert noised.dtype == jnp.float32
    exact = add_noise(x0.astype(jnp.float32), eps.astype(jnp.float32), LOGSNRS)
    np.testing.assert_array_equal(noised, exact)
    for source, target in PAIRS:
        converted = convert(eps, x0, LOGSNRS.astype(jnp.bfloat16), source, target)
        assert converted.dtype == jnp.float32
