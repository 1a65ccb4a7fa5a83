"""Adapters: what they find, what they change, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import CASCADE, random_params
from tiny_lora import random_lora, unet_shapes

from imagen_jax import models
from imagen_jax.cascade.cascade import part_shapes
from imagen_jax.models import PRXConfig, TransformerConfig
from imagen_jax.models.lora import LoraConfig, init_lora, merge_lora, target_kernels
from imagen_jax.storage.trees import flatten


def test_every_projection_of_attention_is_found_and_nothing_else():
    found = target_kernels(unet_shapes(), LoraConfig())
    parts = {"query", "key", "value", "text_key", "text_value", "out"}
    places = {"down1_attention0", "mid_attention", "up1_attention0", "up1_attention1"}
    assert set(found) == {f"{place}/{part}/kernel" for place in places for part in parts}
    fused = target_kernels(part_shapes(CASCADE, "base"), LoraConfig())
    assert set(fused) == {
        f"{place}/{part}/kernel"
        for place in ("down0_attention", "up0_attention")
        for part in ("query", "text_key_value", "out")
    }


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        (TransformerConfig(32, depth=2, heads=2), {"query", "key", "value", "out"}),
        (PRXConfig(32, depth=2, heads=2), {"query_key_value", "text_key_value", "out"}),
    ],
)
def test_so_are_those_of_transformers(network, parts):
    shapes = jax.eval_shape(
        lambda key: models.init(network, key, resolution=16, text_width=8), jax.random.key(0)
    )
    found = target_kernels(shapes, LoraConfig())
    assert set(found) == {f"layers/attention/{part}/kernel" for part in parts}


def test_a_fresh_adapter_changes_nothing():
    params = random_params(CASCADE)["base"]
    lora = init_lora(params, LoraConfig(rank=3), jax.random.key(0))
    merged = merge_lora(params, lora, 1.0)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    down = lora["down0_attention"]["query"]["down"]
    assert down.shape == (8, 3)
    assert float(jnp.abs(down).min()) > 0


def test_the_merged_kernel_is_the_sum():
    """In numpy's float64, for a kernel that is found; all else is the very same array."""
    params, config = random_params(CASCADE)["base"], LoraConfig(rank=2, alpha=6.0)
    lora = random_lora(params, config)
    merged = jax.jit(merge_lora)(params, lora, config.scale)
    for path, leaf in flatten(params).items():
        expected = np.asarray(leaf, np.float64)
        node = path.rsplit("/", 1)[0]
        if path in target_kernels(params, config):
            factors = flatten(lora)
            down, up = (factors[f"{node}/{part}"].astype(np.float64) for part in ("down", "up"))
            expected = expected + 3.0 * down @ up
        np.testing.assert_allclose(flatten(merged)[path], expected, rtol=1e-5, atol=1e-5)
    assert merge_lora(params, lora)["conv_in"]["kernel"] is params["conv_in"]["kernel"]


def test_the_sum_is_taken_in_float32():
    """A change too small for bfloat16 beside its kernel is not lost where float32 is asked for."""
    params = {"a_attention": {"query": {"kernel": jnp.ones((4, 4), jnp.bfloat16)}}}
    small = {"down": jnp.full((4, 1), 1e-3), "up": jnp.ones((1, 4))}
    lora = {"a_attention": {"query": small}}
    merged = merge_lora(params, lora, 1.0, "float32")["a_attention"]["query"]["kernel"]
    np.testing.assert_allclose(merged, 1.001, rtol=1e-6)
    assert merge_lora(params, lora)["a_attention"]["query"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"lora\.rank must be 1 or more, not 0"),
        ({"alpha": 0.0}, r"lora\.alpha must be positive"),
        ({"targets": ()}, r"lora\.targets is empty"),
        ({"targets": ("(",)}, r"'\(' is not a regex"),
    ],
)
def test_a_bad_setting_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


def test_a_target_must_find_matrices():
    shapes = unet_shapes()
    with pytest.raises(
        ValueError, match=r"'to_q' finds no parameter of the network; its matrices are down0_block0"
    ):
        target_kernels(shapes, LoraConfig(targets=("query/kernel", "to_q")))
    with pytest.raises(ValueError, match=r"not a kernel of two axes: conv_in/kernel \(3, 3, 3"):
        target_kernels(shapes, LoraConfig(targets=("conv_in/kernel",)))


def test_an_adapter_of_another_network_is_refused():
    params = random_params(CASCADE)["base"]
    lora = random_lora(params, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="mid_attention/out, which the network has not"):
        merge_lora(params, {"mid_attention": lora["down0_attention"]})
    lora["down0_attention"]["query"]["up"] = np.zeros((2, 9), np.float32)
    with pytest.raises(ValueError, match=r"down0_attention/query is for \(8, 9\)"):
        merge_lora(params, lora)
