"""PRX transformers: our output against diffusers', on random networks, weights and inputs."""

import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import models
from imagen_jax.convert.diffusers_prx import (
    DEFAULTS,
    config_from_diffusers,
    prx_layout,
    text_width_from_diffusers,
)
from imagen_jax.models import PRXConfig
from imagen_jax.storage.codec import from_dict, to_dict
from imagen_jax.storage.layout_files import read_layout, write_layout
from imagen_jax.typing import TextEmbeddings
from tests.tiny_prx import TINY, diffusers, randomize, relative_error, torch

# XLA's quick compilation: tests run each network once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
apply = jax.jit(models.apply, static_argnums=0, compiler_options=QUICK)
# That of the public weights (7B), as diffusers' script writes it.
PIXEL = {
    "_class_name": "PRXTransformer2DModel",
    "_diffusers_version": "0.42.1",
    "in_channels": 3,
    "patch_size": 16,
    "context_in_dim": 2048,
    "hidden_size": 3584,
    "mlp_ratio": 3.5,
    "num_heads": 28,
    "depth": 24,
    "axes_dim": [64, 64],
    "theta": 10_000,
    "time_factor": 1000.0,
    "time_max_period": 10_000,
    "bottleneck_size": 768,
    "resolution_embeds": True,
}
VARIANTS = {
    # The network of diffusers' own pipeline tests.
    "theirs": {"axes_dim": [2, 2], "hidden_size": 8, "num_heads": 2, "patch_size": 1},
    "straight in": {"bottleneck_size": None, "resolution_embeds": False, "depth": 3},
    "odd width": {"mlp_ratio": 3.5, "hidden_size": 40, "num_heads": 5, "axes_dim": [4, 4]},
}


def shapes_of(config: PRXConfig, text_width: int):
    return jax.eval_shape(
        lambda key: models.init(config, key, resolution=config.patch_size, text_width=text_width),
        jax.random.key(0),
    )


def tensors_of(network) -> dict:
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_is_diffusers(variant):
    seed = sorted(VARIANTS).index(variant)
    values, rng = TINY | VARIANTS[variant], np.random.default_rng(seed)
    network = randomize(diffusers.PRXTransformer2DModel(**values), seed)
    config, width = config_from_diffusers(dict(network.config)), values["context_in_dim"]
    params = read_layout(prx_layout(config), tensors_of(network), shapes_of(config, width))
    x = rng.standard_normal((2, 8, 12, 3), np.float32)  # wider than high
    text = rng.standard_normal((2, 5, width), np.float32)
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    sigma = rng.random(2, np.float32)
    with torch.no_grad():
        theirs = network(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            torch.from_numpy(sigma),
            torch.from_numpy(text),
            torch.from_numpy(mask),
        ).sample.numpy()
    ours = apply(config, params, x, 1000 * sigma, text=TextEmbeddings(text, mask))
    assert relative_error(ours, theirs.transpose(0, 2, 3, 1)) < 1e-5


def test_the_public_model_is_described():
    config = config_from_diffusers(PIXEL, dtype="bfloat16")
    assert config == PRXConfig(dtype="bfloat16")
    assert text_width_from_diffusers(PIXEL) == 2048
    leaves = jax.tree.leaves(shapes_of(config, 2048))
    with torch.device("meta"):
        theirs = diffusers.PRXTransformer2DModel.from_config(PIXEL)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(leaf.size for leaf in leaves) == count > 6e9


def test_the_defaults_are_diffusers():
    parameters = diffusers.PRXTransformer2DModel.__init__.__wrapped__
    theirs = inspect.signature(parameters).parameters
    assert {name: theirs[name].default for name in DEFAULTS} == DEFAULTS
    assert set(theirs) - {"self"} == set(DEFAULTS)


def test_every_tensor_is_written_back():
    network = randomize(diffusers.PRXTransformer2DModel(**TINY), 0)
    config, tensors = config_from_diffusers(dict(network.config)), tensors_of(network)
    shapes = shapes_of(config, TINY["context_in_dim"])
    back = write_layout(prx_layout(config), read_layout(prx_layout(config), tensors, shapes))
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blocks.1.attention.norm_added_k.weight"), "missing"),
        (lambda t: t.update({"blocks.2.gate_proj.weight": np.ones(2)}), r"blocks\.2\.gate_proj"),
        (lambda t: t.update({"txt_in.bias": np.ones(3)}), r"txt_in\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said):
    network = diffusers.PRXTransformer2DModel(**TINY)
    config, tensors = config_from_diffusers(dict(network.config)), tensors_of(network)
    change(tensors)
    with pytest.raises(ValueError, match=said):
        read_layout(prx_layout(config), tensors, shapes_of(config, TINY["context_in_dim"]))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("_class_name", "PixArtTransformer2DModel", "supported is 'PRXTransformer2DModel'"),
        ("in_channels", 16, "in_channels is 16; supported is 3"),
        ("theta", 500, "theta is 500; supported is 10000"),
        ("time_factor", 1.0, "time_factor is 1.0; supported is 1000"),
        ("time_max_period", "x", "time_max_period is 'x'"),
        ("axes_dim", [32, 96], r"axes_dim is \[32, 96\].* two halves of a head's 128"),
        ("axes_dim", None, "axes_dim is None"),
        ("num_heads", 27, "hidden_size is 3584; .* multiple of 4 times num_heads, 108"),
        ("mlp_ratio", 0, "mlp_ratio is 0"),
        ("mlp_ratio", 1e-9, "mlp_ratio"),
        ("depth", 10**9, "depth is 1000000000"),
        ("patch_size", "16", "patch_size is '16'"),
        ("bottleneck_size", 0, "bottleneck_size is 0"),
        ("resolution_embeds", 1, "resolution_embeds is 1; supported is true or false"),
        ("qk_norm", "layer_norm", "unknown field, qk_norm"),
    ],
)
def test_what_is_not_supported_is_named(field, value, said):
    with pytest.raises(ValueError, match=said):
        config_from_diffusers(PIXEL | {field: value})


def test_a_config_goes_through_json():
    config = PRXConfig(width=32, heads=4, depth=2, mlp_ratio=1.5, bottleneck=None)
    assert from_dict(PRXConfig, json.loads(json.dumps(to_dict(config))), "network") == config
    with pytest.raises(ValueError, match=re.escape("multiple of 4 x 5 (heads)")):
        PRXConfig(width=30, heads=5)


def test_a_fresh_network_gives_nothing_to_its_branches():
    """Zero gates: each block begins as the identity, so text has no effect yet."""
    config = PRXConfig(width=16, heads=2, depth=2, mlp_ratio=1.5, bottleneck=4, patch_size=2)
    params = models.init(config, jax.random.key(0), resolution=4, text_width=6)
    x, ones = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 2), bool)
    outputs = [
        apply(
            config, params, x, jnp.ones(1), text=TextEmbeddings(value * jnp.ones((1, 2, 6)), ones)
        )
        for value in (0.0, 1.0)
    ]
    assert np.any(outputs[0])
    np.testing.assert_array_equal(*outputs)
