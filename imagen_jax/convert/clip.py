"""Hugging Face's CLIPModel to the parameters of `imagen_jax.models.clip`."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from imagen_jax.convert.fields import Fields, read_config
from imagen_jax.models import clip
from imagen_jax.models.bounds import BOUNDS, MAX_SIDE
from imagen_jax.storage.layout import CONVOLUTION, LINEAR, Layout, Tensors, affine
from imagen_jax.storage.layout_files import read_layout
from imagen_jax.storage.safetensors import open_model
from imagen_jax.typing import Params

MODEL_TYPE = "clip"
# What transformers assumes where config.json is silent.
TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
TEXT = TOWER | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION = TOWER | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
# Configs from before transformers 4.31 have this wrong id, and mean the largest one in a caption.
OLD_EOS_ID = 2

# Ours -> Hugging Face's, in a layer.
LAYER_MODULES = {
    "attention_norm": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "feed_forward_norm": "layer_norm2",
    "feed_forward_in": "mlp.fc1",
    "feed_forward_out": "mlp.fc2",
}
# The temperature of the training loss, which no metric uses, and old buffers.
UNUSED = (
    "logit_scale",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
)


def _section(values: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Fields:
    # If the section of the older name is there, transformers reads only that one.
    section = values.get(f"{name}_config_dict") or values.get(f"{name}_config") or {}
    if not isinstance(section, dict):
        raise ValueError(f"{name}_config is {section!r:.40}; it must be an object.")
    return Fields(f"the {name} tower", {**defaults, **section})


def _tower(fields: Fields) -> clip.TowerConfig:
    return clip.TowerConfig(
        width=fields.count("hidden_size"),
        heads=fields.count("num_attention_heads"),
        layers=fields.count("num_hidden_layers", BOUNDS["layers"][1]),
        hidden=fields.count("intermediate_size"),
        activation=fields.choice("hidden_act", {name: name for name in clip.ACTIVATIONS}),
        norm_eps=fields.positive("layer_norm_eps", most=1.0),
    )


def config_from_huggingface(values: Mapping[str, Any]) -> clip.ClipConfig:
    """The sizes in a model's config.json. Raises ValueError for what is not supported."""
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(f"The model type is {values.get('model_type')!r}, not {MODEL_TYPE!r}.")
    text, vision = _section(values, "text", TEXT), _section(values, "vision", VISION)
    if vision.count("num_channels") != 3:
        vision.refuse("num_channels", "3")
    eos_id = text.count("eos_token_id", BOUNDS["eos_id"][1])
    whole = Fields("the model", {"projection_dim": 512, **values})
    return clip.ClipConfig(
        vision=_tower(vision),
        text=_tower(text),
        embedding_dim=whole.count("projection_dim"),
        image_size=vision.count("image_size", MAX_SIDE),
        patch_size=vision.count("patch_size", BOUNDS["patch_size"][1]),
        vocab_size=text.count("vocab_size", BOUNDS["vocab_size"][1]),
        max_length=text.count("max_position_embeddings", BOUNDS["max_length"][1]),
        eos_id=None if eos_id == OLD_EOS_ID else eos_id,
    )


def _tower_layout(tower: str, layers: int) -> Layout:
    positions = Tensors((f"{tower}_model.embeddings.position_embedding.weight",))
    layout = {f"{tower}/position_embedding": positions}
    for ours, theirs in LAYER_MODULES.items():
        names = [f"{tower}_model.encoder.layers.{i}.{theirs}" for i in range(layers)]
        layout |= affine(
            f"{tower}/layers/{ours}", names, None if "norm" in ours else LINEAR, "stack"
        )
    return layout


def clip_layout(config: clip.ClipConfig) -> Layout:
    """Where each parameter is among Hugging Face's tensors."""
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    return {
        **_tower_layout("vision", config.vision.layers),
        **_tower_layout("text", config.text.layers),
        "vision/patch_embedding": Tensors((f"{vision}.patch_embedding.weight",), CONVOLUTION),
        "vision/class_token": Tensors((f"{vision}.class_embedding",)),
        **affine("vision/norm_in", ["vision_model.pre_layrnorm"], None),  # spelt so
        **affine("vision/norm_out", ["vision_model.post_layernorm"], None),
        "vision/projection/kernel": Tensors(("visual_projection.weight",), LINEAR),
        "text/token_embedding": Tensors((f"{text}.token_embedding.weight",)),
        **affine("text/norm_out", ["text_model.final_layer_norm"], None),
        "text/projection/kernel": Tensors(("text_projection.weight",), LINEAR),
    }


def clip_shapes(config: clip.ClipConfig) -> Params:
    """The tree of the parameters, as shapes."""
    return jax.eval_shape(lambda key: clip.init(config, key), jax.random.key(0))


def read_clip(directory: str | os.PathLike) -> tuple[clip.ClipConfig, Params]:
    """Config and float32 parameters from a Hugging Face folder: config.json and model.safetensors.

    Raises:
        FileNotFoundError: the folder has no config or no weights as safetensors.
        ValueError: they are damaged, pickled, or do not fit each other; the message names the
            tensors.
    """
    config = read_config(directory, "a CLIP model", config_from_huggingface)
    params = read_layout(
        clip_layout(config),
        open_model(directory),
        clip_shapes(config),
        where=os.fspath(directory),
        ignored=UNUSED,
    )
    return config, params
