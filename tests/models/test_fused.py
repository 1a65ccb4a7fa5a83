"""The form of norms and attention that GPUs take beside the plain one, here on a CPU."""

import functools
import inspect
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import models
from imagen_jax.devices.accelerators import runs_cudnn_attention
from imagen_jax.models import image_attention
from imagen_jax.models.activations import ACTIVATIONS
from imagen_jax.models.attention import cudnn_attention
from imagen_jax.models.group_norm import GroupNorm
from imagen_jax.models.layers import attend, takes_fused
from imagen_jax.typing import TextEmbeddings
from tests.models.test_unets import KINDS, QUICK, SMALL, random_params

TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (2e-2, 2e-2)}  # of results, of gradients


def error(found, expected) -> float:
    """The relative L2 error of all arrays of a tree together."""

    def norm(*leaves):
        return np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in leaves))

    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    differences = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in pairs]
    return float(norm(*differences) / norm(*jax.tree.leaves(expected)))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_fused_norm_is_the_plain_one(dtype, modulated, activation):
    channels, x = 24, (2 * normal(0, 3, 6, 5, 24) + 1.5).astype(dtype)
    inputs = [x, {"scale": 1 + 0.3 * normal(1, channels), "bias": 0.3 * normal(2, channels)}]
    if modulated:
        inputs += [(0.5 * normal(3, 3, 2 * channels)).astype(dtype), normal(4, channels)]

    def run(fused):
        chosen = activation and ACTIVATIONS[activation]
        norm = GroupNorm(8, activation=chosen, fused=fused)

        def apply(x, params, *more):
            return norm.apply({"params": params}, x, *more)

        out, pull = jax.vjp(apply, *inputs)
        return out, pull(normal(5, *x.shape).astype(dtype))

    for found, expected, most in zip(run(True), run(False), TOLERANCE[dtype], strict=True):
        assert error(found, expected) < most


def test_a_fused_norm_of_a_bfloat16_map_far_from_zero_keeps_its_digits():
    """Mean 40 and deviation 1/2: what is lost to one pass over sums of squares is float32's."""
    x = (40 + 0.5 * normal(0, 2, 16, 16, 32)).astype(jnp.bfloat16)
    params = {"scale": jnp.ones(32), "bias": jnp.zeros(32)}
    found, expected = (
        GroupNorm(8, fused=fused).apply({"params": params}, x.astype(jnp.float32))
        for fused in (True, False)
    )
    assert error(found, expected) < 1e-3


@pytest.mark.parametrize("keys", [6, 7])
@pytest.mark.parametrize("lengths", [None, (3, 5)])
def test_lengths_and_an_even_number_of_keys_are_a_mask(lengths, keys):
    inputs = normal(0, 2, 4, 16), normal(1, 2, keys, 16), normal(2, 2, keys, 16)
    mask = None if lengths is None else jnp.arange(keys) < jnp.array(lengths)[:, None, None, None]
    lengths = None if lengths is None else jnp.array(lengths, jnp.int32)
    functions = (
        lambda *parts: cudnn_attention(*parts, 2, lengths, implementation="xla"),
        lambda *parts: attend(*parts, 2, mask),
    )
    results = [jax.vjp(function, *inputs) for function in functions]
    (found, pull), (expected, expected_pull) = results
    assert error(found, expected) < 1e-5
    assert error(pull(inputs[0]), expected_pull(inputs[0])) < 1e-5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_network_is_the_plain_one(kind, dtype, monkeypatch):
    """Of a text whose padding is in its midst."""
    anywhere = functools.partial(cudnn_attention, implementation="xla")
    monkeypatch.setattr(image_attention, "cudnn_attention", anywhere)
    config = replace(SMALL[kind], dtype=dtype)
    params, x, time = random_params(config), normal(0, 2, 8, 8, 3), jnp.array([700.0, 20.0])
    mask = jnp.array([[True, False, True, False], [True] * 4])
    text = TextEmbeddings(normal(1, 2, 4, 8), mask)

    def run(fused):
        chosen = replace(config, fused=fused)

        def loss(params, x):
            out = models.apply(chosen, params, x, time, text=text)
            return jnp.square(out).mean(), out

        gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)
        gradients, out = gradient(params, x)
        return out, gradients

    for found, expected, most in zip(run(True), run(False), TOLERANCE[dtype], strict=True):
        assert error(found, expected) < most


def test_the_parameters_are_the_same_and_the_form_is_chosen_by_platform_and_dtype():
    for kind in KINDS:
        config = SMALL[kind]
        key = jax.random.key(0)
        shapes = [
            jax.eval_shape(
                lambda key, config=replace(config, fused=fused): models.init(
                    config, key, resolution=8, text_width=8
                ),
                key,
            )
            for fused in (False, True)
        ]
        assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
        assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert takes_fused(None, "bfloat16") == runs_cudnn_attention()
    assert not takes_fused(None, "float32")
    assert takes_fused(None, "float16", "gpu")
    assert not takes_fused(None, "bfloat16", "tpu")
    assert models.on_platform(replace(SMALL["unet"], dtype="bfloat16"), "gpu").fused
    assert takes_fused(True, "float32")
    assert not takes_fused(False, "bfloat16")


def test_gpus_that_have_cudnns_attention():
    def device(platform, **fields):
        return SimpleNamespace(platform=platform, **fields)

    found = inspect.unwrap(runs_cudnn_attention)  # what a device is, is not checked
    assert found(device("gpu", compute_capability="9.0"))
    assert found(device("gpu", compute_capability="12.0"))
    assert not found(device("gpu", compute_capability="7.5"))
    assert not found(device("gpu", compute_capability="gfx942"))
    assert not found(device("tpu"))
