"""Hugging Face's Dinov2Model and Dinov2WithRegistersModel to the parameters of
`imagen_jax.models.dinov2`.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax

from imagen_jax.convert.fields import Fields, read_config
from imagen_jax.models import dinov2
from imagen_jax.models.bounds import BOUNDS, MAX_SIDE
from imagen_jax.storage.layout import CONVOLUTION, LINEAR, Layout, Tensors, affine
from imagen_jax.storage.layout_files import read_layout
from imagen_jax.storage.safetensors import open_model
from imagen_jax.typing import Params

# What transformers assumes where config.json is silent, by model type.
PLAIN = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
DEFAULTS = {
    "dinov2": PLAIN,
    "dinov2_with_registers": PLAIN | {"patch_size": 16, "num_register_tokens": 4},
}
META_OFFSET = 0.1  # `position_offset` of Meta's models without registers

# Ours -> Hugging Face's, in a layer.
LAYER_MODULES = {
    "attention_norm": "norm1",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "feed_forward_norm": "norm2",
}
FEED_FORWARD = {"feed_forward_in": "mlp.fc1", "feed_forward_out": "mlp.fc2"}
SWIGLU = {"feed_forward_in": "mlp.weights_in", "feed_forward_out": "mlp.weights_out"}
GAINS = {"attention_gain": "layer_scale1.lambda1", "feed_forward_gain": "layer_scale2.lambda1"}
UNUSED = ("embeddings.mask_token",)  # of the training


def config_from_huggingface(values: Mapping[str, Any]) -> dinov2.Dinov2Config:
    """The sizes in a model's config.json. Raises ValueError for what is not supported."""
    kind = values.get("model_type")
    if kind not in DEFAULTS:
        raise ValueError(f"The model type is {kind!r}, not {' or '.join(map(repr, DEFAULTS))}.")
    fields = Fields("the model", {**DEFAULTS[kind], **values})
    fields.choice("hidden_act", {"gelu": None})
    if fields.count("num_channels") != 3:
        fields.refuse("num_channels", "3")
    if not fields.flag("qkv_bias"):
        fields.refuse("qkv_bias", "true")
    width, swiglu = fields.count("hidden_size"), fields.flag("use_swiglu_ffn")
    hidden = width * fields.count("mlp_ratio")
    registers = kind == "dinov2_with_registers"
    return dinov2.Dinov2Config(
        width=width,
        heads=fields.count("num_attention_heads"),
        layers=fields.count("num_hidden_layers", BOUNDS["layers"][1]),
        # Two thirds, in whole eights: the gates are two such layers.
        hidden=-(-(2 * hidden // 3) // 8) * 8 if swiglu else hidden,
        swiglu=swiglu,
        registers=fields.count("num_register_tokens", BOUNDS["registers"][1]) if registers else 0,
        patch_size=fields.count("patch_size", BOUNDS["patch_size"][1]),
        position_size=fields.count("image_size", MAX_SIDE),
        position_offset=0.0 if registers else META_OFFSET,
        norm_eps=fields.positive("layer_norm_eps", most=1.0),
    )


def dinov2_layout(config: dinov2.Dinov2Config) -> Layout:
    """Where each parameter is among Hugging Face's tensors."""

    def token(name: str) -> Tensors:
        return Tensors((f"embeddings.{name}",), (0, 1, 2))  # their first axis has length 1

    layers = [f"encoder.layer.{i}" for i in range(config.layers)]
    layout = {
        **affine("patch_embedding", ["embeddings.patch_embeddings.projection"], CONVOLUTION),
        **affine("norm_out", ["layernorm"], None),
        "class_token": token("cls_token"),
        "position_embedding": token("position_embeddings"),
    }
    if config.registers:
        layout["registers"] = token("register_tokens")
    for ours, theirs in (LAYER_MODULES | (SWIGLU if config.swiglu else FEED_FORWARD)).items():
        axes = None if "norm" in ours else LINEAR
        layout |= affine(f"layers/{ours}", [f"{at}.{theirs}" for at in layers], axes, "stack")
    for ours, theirs in GAINS.items():
        names = tuple(f"{at}.{theirs}" for at in layers)
        layout[f"layers/{ours}"] = Tensors(names, None, "stack")
    return layout


def dinov2_shapes(config: dinov2.Dinov2Config) -> Params:
    """The tree of the parameters, as shapes."""
    return jax.eval_shape(lambda key: dinov2.init(config, key), jax.random.key(0))


def read_dinov2(directory: str | os.PathLike) -> tuple[dinov2.Dinov2Config, Params]:
    """Config and float32 parameters from a Hugging Face folder: config.json and model.safetensors.

    Raises:
        FileNotFoundError: the folder has no config or no weights as safetensors.
        ValueError: they are damaged, pickled, or do not fit each other; the message names the
            tensors.
    """
    config = read_config(directory, "a DINOv2 model", config_from_huggingface)
    params = read_layout(
        dinov2_layout(config),
        open_model(directory),
        dinov2_shapes(config),
        where=os.fspath(directory),
        ignored=UNUSED,
    )
    return config, params
