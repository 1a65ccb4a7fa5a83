"""The attention of TPUs, here interpreted on a CPU, beside the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from imagen_jax import models
from imagen_jax.devices.sharding import MeshConfig, by_heads, make_mesh
from imagen_jax.models.attention import merge_heads, norm_and_turn, splash, split_heads
from imagen_jax.models.dense import Dense, gated
from imagen_jax.models.layers import RMSNorm
from imagen_jax.models.positions import rotate
from imagen_jax.models.transformer import TransformerConfig
from imagen_jax.models.unet import UNetConfig, UNetLevel
from imagen_jax.training import flops
from imagen_jax.typing import TextEmbeddings

interpreted = functools.partial(splash, interpret=True)


def error(found, expected) -> float:
    """The largest relative L2 error of the arrays of two trees."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def values(shape, count=1):
    keys = jax.random.split(jax.random.key(count), count)
    return [jax.random.normal(key, shape) for key in keys]


def pulled(function, *inputs):
    """(function(inputs), the gradients of a random sum of it)."""
    result, pull = jax.vjp(function, *inputs)
    return result, pull(jax.random.normal(jax.random.key(9), result.shape))


def plain(query, key, value, lengths):
    parts = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    out = jax.nn.dot_product_attention(*parts, scale=1.0, key_value_seq_lengths=lengths)
    return jnp.swapaxes(out, 1, 2)


@pytest.mark.parametrize(("lengths", "keys"), [(None, 150), ((37, 150), 150), ((131, 140), 140)])
def test_the_fused_attention_is_the_plain_one(lengths, keys):
    inputs = [0.3 * x for x in values((2, 2, 150, 24), 3)]  # neither side a multiple of 128
    inputs[1:] = [x[:, :, :keys] for x in inputs[1:]]
    lengths = None if lengths is None else jnp.array(lengths)
    found, expected = (
        pulled(lambda *parts, run=run: run(*parts, lengths), *inputs)
        for run in (interpreted, plain)
    )
    assert error(found, expected) < 1e-5


def test_norm_and_rotation_in_one_are_those_one_after_the_other():
    (x,), (scale,), (angles,) = values((2, 3, 5, 16)), values((16,)), values((5, 8))
    norm = RMSNorm(1e-6, "float32")

    def one_by_one(x, scale):
        normed = norm.apply({"params": {"scale": scale}}, jnp.swapaxes(x, 1, 2))
        return jnp.swapaxes(rotate(normed, angles), 1, 2)

    found = pulled(lambda x, scale: norm_and_turn(x, scale, angles, 1e-6), x, scale)
    assert error(found, pulled(one_by_one, x, scale)) < 1e-5


def test_heads_split_and_merge_as_a_reshape_does():
    (x,) = values((2, 5, 12))

    def reshaped(x):
        return jnp.swapaxes(x.reshape(2, 5, 3, 4), 1, 2)

    assert error(pulled(lambda x: split_heads(x, 3), x), pulled(reshaped, x)) == 0
    (y,) = values((2, 3, 5, 4))

    def merged(y):
        return jnp.swapaxes(y, 1, 2).reshape(2, 5, 12)

    assert error(pulled(merge_heads, y), pulled(merged, y)) == 0


def test_the_gate_has_the_gradients_of_its_equation():
    inputs = values((3, 7), 2)
    expected = pulled(lambda gate, up: gate * jax.nn.sigmoid(gate) * up, *inputs)
    assert error(pulled(gated, *inputs), expected) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("as_matrix", [True, False])
def test_a_dense_layer_is_that_of_flax(dtype, tolerance, as_matrix):
    (x,), (kernel,), (bias,) = values((2, 5, 7)), values((7, 11)), values((11,))

    def applied(layer, use_bias):
        def run(x, kernel, bias):
            biases = {"bias": bias} if use_bias else {}
            out = layer.apply({"params": {"kernel": kernel, **biases}}, x)
            return out.astype("float32") if use_bias else out.astype("float32") + bias

        return pulled(run, x, kernel, bias)

    for use_bias in (True, False):
        found = applied(Dense(11, dtype, as_matrix, use_bias=use_bias), use_bias)
        expected = applied(nn.Dense(11, use_bias=use_bias, dtype=dtype), use_bias)
        assert error(found, expected) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_products_are_not_computed_again(dtype):
    def work(remat):
        config = TransformerConfig(
            width=32, depth=1, heads=2, patch_size=4, dtype=dtype, remat=remat
        )
        params = jax.eval_shape(lambda key: models.init(config, key, resolution=8), key)
        gradient = jax.grad(lambda params: models.apply(config, params, x, t).sum())
        return flops.count(gradient, params)["dense"]

    key, x, t = jax.random.key(0), jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
    assert work("products") == work(False) < work(True)


def test_each_device_attends_on_its_own_images_and_heads():
    devices = jax.devices()[:4]
    if len(devices) < 4:
        pytest.skip("needs four devices")
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), devices)
    inputs, lengths = values((2, 2, 9, 8), 3), jnp.array([4, 9])
    for heads in (2, 1):  # `tensor` does not divide one head: all of its devices run it
        parts = [x[:, :heads] for x in inputs]
        found = jax.jit(functools.partial(by_heads, mesh, plain))(*parts, lengths)
        assert error(found, plain(*parts, lengths)) < 1e-6


def test_a_network_with_the_fused_attention_is_the_same_network():
    config = TransformerConfig(
        width=32, depth=2, heads=2, patch_size=4, num_classes=3, class_tokens=2, class_start=1
    )
    params = models.init(config, jax.random.key(0), resolution=8, text_width=6)
    flat, rebuild = ravel_pytree(params)  # what begins at zero hides the rest
    params = rebuild(flat + 0.2 * jax.random.normal(jax.random.key(1), flat.shape))
    (x,), (words,) = values((2, 8, 8, 3)), values((2, 5, 6))
    mask = jnp.arange(5) < jnp.array([[2], [5]])
    given = {"text": TextEmbeddings(words, mask), "label": jnp.array([0, 2])}

    def run(attention):
        def output(params, x):
            whole = models.TrainingParams(params, attention=attention)
            return models.apply(config, whole, x, jnp.array([10.0, 700.0]), **given)

        return jax.jit(functools.partial(pulled, output))(params, x)

    assert error(run(interpreted), run(None)) < 2e-5


def test_flops_of_the_kernels_are_those_of_their_products():
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=1), jax.devices()[:2])
    shape = jax.ShapeDtypeStruct((4, 2, 256, 128), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((4,), jnp.int32)

    def total(*parts):
        return by_heads(mesh, splash, *parts).astype(jnp.float32).sum()

    gradient = jax.grad(total, argnums=(0, 1, 2))
    product = 2 * 4 * 2 * 256 * 256 * 128
    found = flops.kernels(jax.make_jaxpr(gradient)(shape, shape, shape, lengths))
    assert sorted(found.values()) == [2 * product / 2, 5 * product / 2]  # on each of two devices
    counted = flops.count(gradient, shape, shape, shape, lengths)["attention"]
    assert 7 * product <= counted < 7.01 * product  # and the rows' sums of outputs x gradients


def test_a_unet_with_the_fused_attention_is_the_same_network():
    level = UNetLevel(16, 1, "self")
    config = UNetConfig((level,), None, head_channels=8, norm_groups=4, pooling_heads=2)
    params = models.init(config, jax.random.key(0), resolution=16, text_width=6)
    flat, rebuild = ravel_pytree(params)  # what begins at zero hides the rest
    flat += 0.2 * jax.random.normal(jax.random.key(1), flat.shape)
    (x,), (words,) = values((2, 16, 16, 3)), values((2, 5, 6))
    text = TextEmbeddings(words, jnp.array([[True] + 4 * [False], [True, False] + 3 * [True]]))

    def run(attention):
        def output(flat, x):
            whole = models.TrainingParams(rebuild(flat), attention=attention)
            return models.apply(config, whole, x, jnp.array([10.0, 700.0]), text=text)

        return jax.jit(functools.partial(pulled, output))(flat, x)

    assert error(run(interpreted), run(None)) < 2e-5
