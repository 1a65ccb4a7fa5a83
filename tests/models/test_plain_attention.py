"""Exact GELU, and attention whose weights are divided by their sum after the product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.stats import norm

from imagen_jax.models.activations import gelu
from imagen_jax.models.layers import attend


def error(found, expected) -> float:
    """Relative L2."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_gelu_is_exact_to_the_rounding_of_float32(size):
    x = size * jax.random.normal(jax.random.key(int(10 * size)), (10_000,))
    wide = np.asarray(x, np.float64)
    assert error(gelu(x), wide * scipy.special.ndtr(wide)) < 2e-7
    slope = scipy.special.ndtr(wide) + wide * norm.pdf(wide)
    assert error(jax.grad(lambda x: gelu(x).sum())(x), slope) < 2e-7
    assert error(jax.jvp(gelu, (x,), (jnp.ones_like(x),))[1], slope) < 2e-7


def test_gelu_of_bfloat16_keeps_the_digits_of_negative_numbers():
    x = jnp.linspace(-3.5, -1.0, 200).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    assert gelu(x).dtype == jnp.bfloat16
    assert error(gelu(x), wide * scipy.special.ndtr(wide)) < 4e-3


def inputs(queries=7, keys=11, heads=3, width=12, batch=2):
    parts = jax.random.split(jax.random.key(queries), 4)
    shapes = [(batch, queries, width), (batch, keys, width), (batch, keys, width)]
    values = [jax.random.normal(key, shape) for key, shape in zip(parts, shapes, strict=False)]
    return *values, jax.random.normal(parts[3], (1, heads, queries, keys))


def in_float64(query, key, value, heads, mask, bias, scale):
    """The definition, by numpy."""
    query, key, value = (
        np.asarray(x, np.float64).reshape(*x.shape[:2], heads, -1) for x in (query, key, value)
    )
    logits = np.einsum("bqhd,bkhd->bhqk", query, key)
    logits *= query.shape[-1] ** -0.5 if scale is None else scale
    logits = logits + (0 if bias is None else np.asarray(bias, np.float64))
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    out = np.einsum("bhqk,bkhd->bqhd", scipy.special.softmax(logits, -1), value)
    return out.reshape(*out.shape[:2], -1)


MASK = jnp.arange(11) < jnp.array([4, 11])[:, None, None, None]
CAUSAL = (jnp.arange(11) <= jnp.arange(7)[:, None] + 4)[None, None]


@pytest.mark.parametrize("mask", [None, MASK, CAUSAL], ids=["", "keys", "causal"])
@pytest.mark.parametrize("scale", [None, 30.0])  # and logits beyond what exp can take
def test_attention_is_its_definition(mask, scale):
    query, key, value, bias = inputs()
    for extra in (None, bias):
        found = attend(query, key, value, 3, mask, extra, scale)
        assert error(found, in_float64(query, key, value, 3, mask, extra, scale)) < 1e-5


def test_gradients_of_attention_are_those_of_jax():
    query, key, value, bias = inputs()

    def jax_nn(*parts):
        parts = (x.reshape(*x.shape[:2], 3, -1) for x in parts)
        return jax.nn.dot_product_attention(*parts, bias, MASK).reshape(query.shape)

    def ours(*parts):
        return attend(*parts, 3, MASK, bias)

    tangents = jax.tree.map(jnp.cos, (query, key, value))
    back = [jax.vjp(f, query, key, value)[1](query) for f in (ours, jax_nn)]
    assert max(map(error, *back)) < 1e-5
    forward = [jax.jvp(f, (query, key, value), tangents)[1] for f in (ours, jax_nn)]
    assert error(*forward) < 1e-5


def test_a_query_that_may_attend_to_nothing_gets_the_mean_and_finite_gradients():
    query, key, value, _ = inputs()
    mask = MASK & (jnp.arange(2) > 0)[:, None, None, None]
    found, pull = jax.vjp(lambda *parts: attend(*parts, 3, mask), query, key, value)
    mean = np.broadcast_to(value[0].mean(0), query[0].shape)
    np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(x).all() for x in pull(found))


def test_attention_in_bfloat16_is_near_that_in_float32():
    query, key, value, bias = inputs()
    narrow = attend(*(x.astype(jnp.bfloat16) for x in (query, key, value)), 3, MASK, bias)
    assert narrow.dtype == jnp.bfloat16
    assert error(narrow, in_float64(query, key, value, 3, MASK, bias, None)) < 2e-2
