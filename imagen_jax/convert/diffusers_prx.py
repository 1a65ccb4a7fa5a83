"""diffusers' PRXTransformer2DModel, the network of PRXPixel, to `PRXConfig`."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.convert.fields import Fields, known_fields
from imagen_jax.models import PRXConfig
from imagen_jax.models.bounds import BOUNDS
from imagen_jax.storage.layout import LINEAR, Layout, Tensors, affine

CLASS_NAME = "PRXTransformer2DModel"
OWNER = "The diffusers transformer"
CHANNELS = 3  # of pixels; the latents of other PRX models have 16 or 32
# What a field that config.json leaves out stands for.
DEFAULTS = {
    "in_channels": 16,
    "patch_size": 2,
    "context_in_dim": 2304,
    "hidden_size": 1792,
    "mlp_ratio": 3.5,
    "num_heads": 28,
    "depth": 16,
    "axes_dim": None,
    "theta": 10_000,
    "time_factor": 1000.0,
    "time_max_period": 10_000,
    "bottleneck_size": None,
    "resolution_embeds": False,
}
DEFAULT_AXES = [32, 32]
# The values of the one form that our network has.
FIXED = {"theta": 10_000, "time_factor": 1000, "time_max_period": 10_000}

# Dense layers of ours: theirs.
DENSE = {
    "time_in": "time_in.in_layer",
    "time_out": "time_in.out_layer",
    "text_in": "txt_in",
    "modulation": "final_layer.adaLN_modulation.1",
    "patch_out": "final_layer.linear",
}
SIZE = {
    "size_in": "resolution_embedder.mlp.in_layer",
    "size_out": "resolution_embedder.mlp.out_layer",
}
# Of a layer: matrices, and gains of norms.
MATRICES = {
    "attention/query_key_value": "attention.img_qkv_proj",
    "attention/text_key_value": "attention.txt_kv_proj",
    "attention/out": "attention.to_out.0",
    "gate": "gate_proj",
    "up": "up_proj",
    "out": "down_proj",
}
NORMS = {
    "attention/query_norm": "attention.norm_q",
    "attention/key_norm": "attention.norm_k",
    "attention/text_key_norm": "attention.norm_added_k",
}


def _fields(values: Mapping[str, Any]) -> Fields:
    name = values.get("_class_name", CLASS_NAME)
    if name != CLASS_NAME:
        raise ValueError(f"The network is a {name!r} of diffusers; supported is {CLASS_NAME!r}.")
    fields = known_fields(OWNER, values, DEFAULTS, (), CLASS_NAME)
    for field, supported in FIXED.items():
        if fields.positive(field) != supported:
            fields.refuse(field, str(supported))
    return fields


def text_width_from_diffusers(values: Mapping[str, Any]) -> int:
    """The width of the text embeddings that the network of this config.json reads."""
    return _fields(values).count("context_in_dim")


def config_from_diffusers(values: Mapping[str, Any], **overrides: Any) -> PRXConfig:
    """The network of a `transformer/config.json`; `overrides` are fields of PRXConfig (`dtype`).

    ValueError names a field that is not supported, and what is.
    """
    fields = _fields(values)
    if fields.count("in_channels") != CHANNELS:
        fields.refuse("in_channels", f"{CHANNELS}, pixels: latents need an autoencoder")
    width, heads = fields.count("hidden_size"), fields.count("num_heads")
    if width % (4 * heads):
        fields.refuse("hidden_size", f"a multiple of 4 times num_heads, {4 * heads}")
    axes = fields.values["axes_dim"] or DEFAULT_AXES
    if axes not in ([width // heads // 2] * 2, (width // heads // 2,) * 2):
        fields.refuse("axes_dim", f"two halves of a head's {width // heads} channels")
    ratio = fields.positive("mlp_ratio", BOUNDS["mlp_ratio"][1])
    if int(width * ratio) < 1:
        fields.refuse("mlp_ratio", f"at least 1/{width}")
    bottleneck = fields.values["bottleneck_size"]
    return PRXConfig(
        **{
            "in_channels": CHANNELS,
            "patch_size": fields.count("patch_size", BOUNDS["patch_size"][1]),
            "bottleneck": None if bottleneck is None else fields.count("bottleneck_size"),
            "width": width,
            "depth": fields.count("depth", BOUNDS["depth"][1]),
            "heads": heads,
            "mlp_ratio": ratio,
            "sees_size": fields.flag("resolution_embeds"),
            **overrides,
        }
    )


def prx_layout(config: PRXConfig) -> Layout:
    """Where each parameter of the network is among diffusers' tensors."""
    dense = DENSE | (SIZE if config.sees_size else {})
    if config.bottleneck is None:
        dense |= {"patch_in": "img_in"}
    else:
        dense |= {"bottleneck": "img_in.0", "patch_in": "img_in.1"}
    table = {}
    for ours, theirs in dense.items():
        table |= affine(ours, [theirs], LINEAR)

    def stacked(theirs: str) -> tuple[str, ...]:
        return tuple(f"blocks.{i}.{theirs}" for i in range(config.depth))

    table |= affine("layers/modulation", stacked("modulation.lin"), LINEAR, "stack")
    for ours, theirs in MATRICES.items():
        table[f"layers/{ours}/kernel"] = Tensors(stacked(f"{theirs}.weight"), LINEAR, "stack")
    for ours, theirs in NORMS.items():
        table[f"layers/{ours}/scale"] = Tensors(stacked(f"{theirs}.weight"), None, "stack")
    return table
