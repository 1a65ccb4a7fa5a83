"""DeepFloyd IF's U-Nets: our output against diffusers', on random networks, weights and inputs."""

import inspect
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import models
from imagen_jax.convert.diffusers_unet import (
    DEFAULTS,
    FIXED,
    IRRELEVANT,
    config_from_diffusers,
    config_to_diffusers,
    text_width_from_diffusers,
    unet_layout,
)
from imagen_jax.models import UNetConfig
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.typing import TextEmbeddings

REASON = "the reference implementation is in the extra 'parity'"
SEEDS = range(10)
BATCH = 2
# XLA's quick compilation: tests run each network once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
apply = jax.jit(models.apply, static_argnums=0, compiler_options=QUICK)

# The sizes of IF-I-XL.
XL = {
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "block_out_channels": [704, 1408, 2112, 2816],
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "encoder_hid_dim": 4096,
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
}


def random_values(stage: int, seed: int) -> dict:
    """A tiny network like those of IF's first stage, or of its second and third."""
    rng = np.random.default_rng([stage, seed])

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    groups, head = pick(4, 8, 16), pick(4, 8, 16)
    step = max(groups, head)
    levels = (2, 1, 2, 3, 1)[seed % 5]
    attends = [pick(True, True, False) for _ in range(levels)]
    text_width, pooling_heads = pick((24, 3), (64, 4), (96, 2))
    attention_width = pick(32, 64)
    values = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.42.1",
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": pick(3, 6),
        "act_fn": "gelu",
        "attention_head_dim": head,
        "block_out_channels": [step * int(rng.integers(1, 5)) for _ in range(levels)],
        "cross_attention_norm": "group_norm",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": pooling_heads,
        "cross_attention_dim": attention_width,
        "encoder_hid_dim": text_width,
        "encoder_hid_dim_type": pick(None, "text_proj"),
        "down_block_types": [
            "SimpleCrossAttnDownBlock2D" if attend else "ResnetDownsampleBlock2D"
            for attend in attends
        ],
        "layers_per_block": pick(1, [2, *[1] * (levels - 1)], [*[1] * (levels - 1), 2]),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_eps": pick(1e-5, 1e-3),
        "norm_num_groups": groups,
        "only_cross_attention": pick(False, True, [pick(True, False) for _ in range(levels)]),
        "resnet_time_scale_shift": "scale_shift",
        "up_block_types": [
            "SimpleCrossAttnUpBlock2D" if attend else "ResnetUpsampleBlock2D"
            for attend in reversed(attends)
        ],
    }
    if stage == 2:
        class_embed_type = pick("timestep", "timestep", None)
        values |= {
            "in_channels": 6,
            "class_embed_type": class_embed_type,
            "act_fn": pick("gelu", "silu"),
            "time_embedding_act_fn": pick("gelu", "silu"),
            "time_embedding_dim": pick(None, 40),
            "resnet_skip_time_act": pick(True, True, False),
            "resnet_out_scale_factor": pick(1.0, 1.4142271248762552),
            "mid_block_scale_factor": pick(1.414, 1.4142271248762552),
            "mid_block_only_cross_attention": pick(None, True, False),
            "addition_embed_type": pick("text", None),
            "cross_attention_norm": pick("group_norm", None),
        }
        if pick(True, False):
            values |= {"encoder_hid_dim": None, "encoder_hid_dim_type": None}
            values |= {"cross_attention_dim": 64, "addition_embed_type_num_heads": 4}
    return values


def reference(values: dict, seed: int):
    """diffusers' network with all of its parameters random, norms, biases and last layers too."""
    torch = pytest.importorskip("torch", reason=REASON)
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    network = diffusers.UNet2DConditionModel(**values).eval()
    rng = np.random.default_rng(seed)
    for name, parameter in network.named_parameters():
        noise = rng.standard_normal(parameter.shape)
        if name.endswith("weight") and parameter.ndim > 1:
            value = noise / np.sqrt(noise[0].size)
        else:
            value = 0.3 * noise + ("norm" in name and name.endswith("weight"))
        parameter.data = torch.from_numpy(value.astype(np.float32))
    return network


def params_of(config: UNetConfig, tensors: dict) -> dict:
    """Our parameters out of diffusers' tensors, each of which is used once."""
    layout = unet_layout(config)
    assert sorted(name for entry in layout.values() for name in entry.names) == sorted(tensors)
    flat = {}
    for path, entry in layout.items():
        (name,) = entry.names
        array = np.asarray(tensors[name])
        array = array.transpose(entry.axes) if entry.axes else array
        while array.ndim > 1 and array.shape[0] == 1:  # what a matrix is as a 1x1 convolution
            array = array[0]
        flat[path] = jnp.asarray(array, jnp.float32)
    return unflatten(flat)


def shapes_of(config: UNetConfig, text_width: int) -> dict:
    def init(key):
        return models.init(config, key, resolution=64, text_width=text_width)

    return jax.eval_shape(init, jax.random.key(0))


def random_inputs(values: dict, height: int, width: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 1])

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "x": normal(BATCH, height, width, values["in_channels"]),
        "time": rng.integers(0, 1000, BATCH),
        # Small, as T5 gives them: the epsilon of a norm counts.
        "text": 0.1 * normal(BATCH, int(rng.integers(3, 8)), text_width_from_diffusers(values)),
        "aug_level": rng.integers(0, 1000, BATCH),
    }


def theirs(network, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    labels = tensors["aug_level"] if network.config.class_embed_type else None
    x = tensors["x"].permute(0, 3, 1, 2)
    with torch.no_grad():
        out = network(x, tensors["time"], tensors["text"], class_labels=labels).sample
    return out.permute(0, 2, 3, 1).numpy()


def ours(config: UNetConfig, params: dict, inputs: dict[str, np.ndarray]) -> np.ndarray:
    x, low_res = inputs["x"][..., : config.in_channels], inputs["x"][..., config.in_channels :]
    # Half of the tokens are padding, to which IF attends as well.
    mask = jnp.arange(inputs["text"].shape[1]) < inputs["text"].shape[1] // 2
    text = TextEmbeddings(jnp.asarray(inputs["text"]), jnp.broadcast_to(mask, (BATCH, mask.size)))
    conditions = {}
    if config.low_res_channels:
        level = jnp.asarray(inputs["aug_level"], jnp.float32)
        conditions = {"low_res": jnp.asarray(low_res), "aug_level": level}
    time = jnp.asarray(inputs["time"], jnp.float32)
    return np.asarray(apply(config, params, jnp.asarray(x), time, text=text, **conditions))


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_output_is_that_of_diffusers(stage, seed):
    values = random_values(stage, seed)
    network = reference(values, seed)
    config = config_from_diffusers(values)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    params = params_of(config, state)
    step = models.reduction(config)
    inputs = random_inputs(values, 2 * step, 3 * step, seed)
    expected = theirs(network, inputs)
    out = ours(config, params, inputs)
    assert out.shape == expected.shape
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize(("stage", "seed"), [(1, 3), (2, 3)])
def test_every_parameter_is_in_the_table(stage, seed):
    values = random_values(stage, seed)
    config = config_from_diffusers(values)
    network = reference(values, seed)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    params = flatten(params_of(config, state))
    shapes = flatten(shapes_of(config, text_width_from_diffusers(values)))
    assert {path: leaf.shape for path, leaf in params.items()} == {
        path: leaf.shape for path, leaf in shapes.items()
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_are_read_exactly(dtype):
    """Stored in 16 bits and used in 32, here as there."""
    torch = pytest.importorskip("torch", reason=REASON)
    values = random_values(2, 0)
    network = reference(values, 0).to(getattr(torch, dtype))
    stored = {name: tensor.float().numpy() for name, tensor in network.state_dict().items()}
    config = config_from_diffusers(values)
    # Each is a number of 16 bits: the conversion from the file to float32 is exact.
    stored = {name: array.astype(jnp.dtype(dtype)) for name, array in stored.items()}
    params = params_of(config, stored)
    step = models.reduction(config)
    inputs = random_inputs(values, 2 * step, 3 * step, 0)
    assert relative_error(ours(config, params, inputs), theirs(network.float(), inputs)) < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_config_goes_there_and_back(stage, seed):
    values = random_values(stage, seed)
    text_width = text_width_from_diffusers(values)
    config = config_from_diffusers(values, dtype="bfloat16", remat=True)
    written = config_to_diffusers(config, text_width, sample_size=64)
    assert written["sample_size"] == 64
    assert text_width_from_diffusers(written) == text_width
    assert config_from_diffusers(written, dtype="bfloat16", remat=True) == config


@pytest.mark.parametrize("stage", [1, 2])
def test_diffusers_reads_what_we_write(stage):
    """The config that goes back gives diffusers a network of the same tensors and fields."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    values = random_values(stage, 5)
    text_width = text_width_from_diffusers(values)
    written = config_to_diffusers(config_from_diffusers(values), text_width, 64)
    first, second = (
        diffusers.UNet2DConditionModel.from_config(config) for config in (values, written)
    )
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for network in (first, second)
    ]
    assert shapes[0] == shapes[1]
    # Every field that counts is written, in one of the forms that diffusers takes as the same.
    same = {"act_fn", "norm_eps", "resnet_out_scale_factor", "mid_block_scale_factor"}
    same |= {"time_embedding_act_fn", "resnet_skip_time_act", "class_embed_type", "in_channels"}
    for field in same:
        assert second.config[field] == first.config[field], field


def test_the_table_of_fields_is_that_of_diffusers():
    """Each field of the installed version is known here, with its default."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    signature = inspect.signature(diffusers.UNet2DConditionModel.__init__)
    fields = {name: item.default for name, item in signature.parameters.items() if name != "self"}
    known = DEFAULTS | {field: default for field, (_, default) in FIXED.items()}
    assert {name: fields[name] for name in known} == known
    assert set(fields) == set(known) | IRRELEVANT


UNSUPPORTED = {
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_time_scale_shift": "default",
    "act_fn": "mish",
    "time_embedding_act_fn": "mish",
    "time_embedding_type": "fourier",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 256,
    "class_embed_type": "projection",
    "class_embeddings_concat": True,
    "num_class_embeds": 10,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 60,
    "encoder_hid_dim": 0,
    "encoder_hid_dim_type": "image_proj",
    "cross_attention_norm": "layer_norm",
    "cross_attention_dim": [2816, 2816, 2816, 1408],
    "attention_head_dim": [64, 64, 64, 32],
    "num_attention_heads": 8,
    "attention_type": "gated",
    "center_input_sample": True,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "conv_in_kernel": 5,
    "conv_out_kernel": 1,
    "norm_num_groups": None,
    "norm_eps": 0,
    "block_out_channels": [704, 1408, 2112],
    "layers_per_block": [3, 3],
    "only_cross_attention": [True],
    "mid_block_only_cross_attention": "yes",
    "in_channels": "3",
    "out_channels": True,
    "resnet_out_scale_factor": float("nan"),
    "mid_block_scale_factor": -1,
    "resnet_skip_time_act": None,
    "use_hypernetwork": True,
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_supported_is_named(field):
    value = UNSUPPORTED[field]
    other = {"block_out_channels": "layers_per_block"}
    values = XL | {"layers_per_block": [3, 3, 3, 3], field: value}
    named = other.get(field, field)
    shown = re.escape(repr(values[named])[:77])  # a long one is cut off
    with pytest.raises(ValueError, match=rf"{named}.* {shown}.*supported"):
        config_from_diffusers(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_head_dim", 48), ("norm_num_groups", 20), ("cross_attention_dim", 2800)],
)
def test_what_does_not_divide_is_named(field, value):
    with pytest.raises(ValueError, match=rf"{field} is {value}; supported is a"):
        config_from_diffusers(XL | {field: value})


def test_a_config_may_leave_out_and_add_what_does_not_count():
    config = config_from_diffusers(XL)
    noise = {"dropout": 0.1, "sample_size": 64, "_name_or_path": "x", "new_field": None}
    assert config_from_diffusers(XL | noise | {"encoder_hid_dim_type": "text_proj"}) == config
    with pytest.raises(ValueError, match=r"'UNet2DModel'.*'UNet2DConditionModel'"):
        config_from_diffusers(XL | {"_class_name": "UNet2DModel"})
    with pytest.raises(ValueError, match="mid_block_type is 'UNetMidBlock2DCrossAttn'"):
        config_from_diffusers({})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_norm", "layer"),
        ("mask_text", True),
        ("num_classes", 10),
        ("mid_attention", None),
        ("low_res_channels", 1),
    ],
)
def test_what_diffusers_cannot_express_is_named(field, value):
    config = replace(config_from_diffusers(XL), **{field: value})
    with pytest.raises(ValueError, match=f"cannot express {field} {value!r}"):
        config_to_diffusers(config, 4096)
    with pytest.raises(ValueError, match=field):
        unet_layout(config)


def test_a_text_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"addition_embed_type_num_heads is 64; .*4000"):
        config_to_diffusers(config_from_diffusers(XL), 4000)


def test_the_first_stage_of_size_xl_has_its_published_size():
    """DeepFloyd's IF-I-XL: 4.3 billion parameters; the sizes are those of its config.json."""
    shapes = shapes_of(config_from_diffusers(XL), 4096)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9 == pytest.approx(4.3, abs=0.05)
