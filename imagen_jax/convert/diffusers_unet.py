"""diffusers' UNet2DConditionModel with DeepFloyd IF's blocks, to `UNetConfig` and back.

The `config.json` of a `unet` folder gives our config, and the config gives the table of tensors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagen_jax.convert.fields import Fields, known_fields
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.models.bounds import BOUNDS, EPSILON, FACTOR
from imagen_jax.storage.layout import CONVOLUTION, LINEAR, Layout, Tensors, affine

CLASS_NAME = "UNet2DConditionModel"
OWNER = "The diffusers U-Net"
# What a field that config.json leaves out stands for, where we express it.
DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "mid_block_scale_factor": 1.0,
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "cross_attention_norm": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
}
# Fields with one supported value, and the value that a config.json without them has.
FIXED = {
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"),
    "resnet_time_scale_shift": ("scale_shift", "default"),
    "attention_type": ("default", "default"),
    "center_input_sample": (False, False),
    "class_embeddings_concat": (False, False),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "num_attention_heads": (None, None),
    "num_class_embeds": (None, None),
    "time_cond_proj_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
}
# Fields that these blocks never read, or that only training and pipelines do.
IRRELEVANT = {
    "addition_time_embed_dim",
    "downsample_padding",
    "dropout",
    "dual_cross_attention",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
    "sample_size",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
}
ACTIVATIONS = {"silu": "swish", "swish": "swish", "gelu": "gelu"}
TEXT_NORMS = {"group_norm": "group", None: None}
TEXT_NORM_GROUPS = 32
# A level's type of block on the way down: whether it has attention, and the type on the way up.
BLOCKS = {
    "ResnetDownsampleBlock2D": (False, "ResnetUpsampleBlock2D"),
    "SimpleCrossAttnDownBlock2D": (True, "SimpleCrossAttnUpBlock2D"),
}

# Layers of ours: (theirs, the permutation of their weight, None of a norm's).
ALWAYS = {
    "embedding/time_in": ("time_embedding.linear_1", LINEAR),
    "embedding/time_out": ("time_embedding.linear_2", LINEAR),
    "conv_in": ("conv_in", CONVOLUTION),
    "norm_out": ("conv_norm_out", None),
    "conv_out": ("conv_out", CONVOLUTION),
}
AUG_LEVEL = {
    "embedding/aug_level_in": ("class_embedding.linear_1", LINEAR),
    "embedding/aug_level_out": ("class_embedding.linear_2", LINEAR),
}
TEXT_PROJECTION = {"text_projection": ("encoder_hid_proj", LINEAR)}
POOLING = {
    "embedding/pooling/norm_in": ("add_embedding.norm1", None),
    "embedding/pooling/query": ("add_embedding.pool.q_proj", LINEAR),
    "embedding/pooling/key": ("add_embedding.pool.k_proj", LINEAR),
    "embedding/pooling/value": ("add_embedding.pool.v_proj", LINEAR),
    "embedding/pooling/out": ("add_embedding.proj", LINEAR),
    "embedding/pooling/norm_out": ("add_embedding.norm2", None),
}
RES_BLOCK = {
    "norm1": ("norm1", None),
    "conv1": ("conv1", CONVOLUTION),
    "scale_shift": ("time_emb_proj", LINEAR),
    "norm2": ("norm2", None),
    "conv2": ("conv2", CONVOLUTION),
}
SHORTCUT = {"shortcut": ("conv_shortcut", CONVOLUTION)}  # a 1x1 convolution there, a matrix here
ATTENTION = {
    "norm": ("group_norm", None),
    "query": ("to_q", LINEAR),
    "text_key": ("add_k_proj", LINEAR),
    "text_value": ("add_v_proj", LINEAR),
    "out": ("to_out.0", LINEAR),
}
SELF_ATTENTION = {"key": ("to_k", LINEAR), "value": ("to_v", LINEAR)}
TEXT_NORM = {"text_norm": ("norm_cross", None)}


def _fields(values: Mapping[str, Any]) -> Fields:
    """The fields that we express, once all the others have been found to be harmless."""
    name = values.get("_class_name", CLASS_NAME)
    if name != CLASS_NAME:
        raise ValueError(f"The network is a {name!r} of diffusers; supported is {CLASS_NAME!r}.")
    fixed = {field: values.get(field, default) for field, (_, default) in FIXED.items()}
    for field, (supported, _) in FIXED.items():
        if fixed[field] != supported:
            Fields(OWNER, fixed).refuse(field, repr(supported))
    idle = {*FIXED, *IRRELEVANT}
    return known_fields(OWNER, values, DEFAULTS, idle, f"{CLASS_NAME} that DeepFloyd IF sets")


def _levels(fields: Fields) -> tuple[UNetLevel, ...]:
    channels = fields.counts("block_out_channels")
    count = len(channels)
    num_blocks = fields.counts("layers_per_block", count, BOUNDS["num_res_blocks"][1])
    only_cross = fields.flags("only_cross_attention", count)
    down, up = fields.values["down_block_types"], fields.values["up_block_types"]
    listed = isinstance(down, list | tuple) and len(down) == count
    if not listed or not all(name in tuple(BLOCKS) for name in down):
        fields.refuse("down_block_types", f"a list of {count} of {' or '.join(BLOCKS)}")
    mirror = [BLOCKS[name][1] for name in reversed(down)]
    if up not in (mirror, tuple(mirror)):
        fields.refuse("up_block_types", f"the mirror of the way down, {mirror}")
    kinds = [
        ("cross" if cross else "self") if BLOCKS[name][0] else None
        for name, cross in zip(down, only_cross, strict=True)
    ]
    return tuple(UNetLevel(*items) for items in zip(channels, num_blocks, kinds, strict=True))


def _mid_attention(fields: Fields) -> str:
    only_cross = fields.values["only_cross_attention"] is True
    if fields.values["mid_block_only_cross_attention"] is not None:
        only_cross = fields.flag("mid_block_only_cross_attention")
    return "cross" if only_cross else "self"


def _check_divisions(fields: Fields, levels: tuple[UNetLevel, ...], text_width: int) -> None:
    if levels[0].channels % 2:
        fields.refuse("block_out_channels", "a list that begins with an even number")
    attending = {level.channels for level in levels if level.attention}
    divided = {
        "norm_num_groups": {level.channels for level in levels},
        "attention_head_dim": attending | {levels[-1].channels},
    }
    if fields.values["addition_embed_type"] is not None:
        divided["addition_embed_type_num_heads"] = {text_width}
    for field, sizes in divided.items():
        for channels in sorted(sizes):
            if channels % fields.count(field):
                fields.refuse(field, f"a divisor of the {channels} channels")
    grouped = fields.values["cross_attention_norm"] == "group_norm"
    if grouped and fields.count("cross_attention_dim") % TEXT_NORM_GROUPS:
        fields.refuse("cross_attention_dim", f"a multiple of {TEXT_NORM_GROUPS} for group_norm")


def text_width_from_diffusers(values: Mapping[str, Any]) -> int:
    """The width of the text embeddings that the U-Net of this config.json reads."""
    fields = _fields(values)
    projected = fields.values["encoder_hid_dim"] is not None
    return fields.count("encoder_hid_dim" if projected else "cross_attention_dim")


def config_from_diffusers(values: Mapping[str, Any], **overrides: Any) -> UNetConfig:
    """The network of a `unet/config.json`; `overrides` are fields of UNetConfig, such as `dtype`.

    With class_embed_type "timestep" (stages II and III) half of in_channels are the low-resolution
    image's. ValueError names a field that is not supported, and what is.
    """
    fields = _fields(values)
    in_channels = fields.count("in_channels")
    upsamples = fields.choice("class_embed_type", {"timestep": True, None: False})
    if upsamples and in_channels % 2:
        fields.refuse("in_channels", "an even number with class_embed_type 'timestep'")
    projected = fields.values["encoder_hid_dim"] is not None
    fields.choice("encoder_hid_dim_type", {None: 0, "text_proj": 0} if projected else {None: 0})
    pooled = fields.choice("addition_embed_type", {"text": True, None: False})
    embedding_width, levels = fields.values["time_embedding_dim"], _levels(fields)
    _check_divisions(fields, levels, text_width_from_diffusers(values))
    config = UNetConfig(
        levels=levels,
        mid_attention=_mid_attention(fields),
        in_channels=in_channels // 2 if upsamples else in_channels,
        out_channels=fields.count("out_channels"),
        low_res_channels=in_channels // 2 if upsamples else 0,
        head_channels=fields.count("attention_head_dim"),
        activation=fields.choice("act_fn", ACTIVATIONS),
        norm_groups=fields.count("norm_num_groups"),
        norm_eps=fields.positive("norm_eps", EPSILON[1]),
        output_scale_factor=fields.positive("resnet_out_scale_factor", FACTOR[1]),
        mid_output_scale_factor=fields.positive("mid_block_scale_factor", FACTOR[1]),
        embedding_width=None if embedding_width is None else fields.count("time_embedding_dim"),
        embedding_activation=fields.choice("time_embedding_act_fn", {None: None} | ACTIVATIONS),
        activate_embedding=not fields.flag("resnet_skip_time_act"),
        text_projection=fields.count("cross_attention_dim") if projected else None,
        text_norm=fields.choice("cross_attention_norm", TEXT_NORMS),
        pooling_heads=fields.count("addition_embed_type_num_heads") if pooled else None,
        mask_text=False,
    )
    return dataclasses.replace(config, **overrides)


def _check_expressible(config: UNetConfig) -> None:
    limits = {
        "mid_attention": ("self", "cross"),
        "low_res_channels": (0, config.in_channels),
        "num_classes": (None,),
        "text_norm": tuple(TEXT_NORMS.values()),
        "mask_text": (False,),
    }
    for field, supported in limits.items():
        value = getattr(config, field)
        if value not in supported:
            raise ValueError(
                f"{CLASS_NAME} of diffusers cannot express {field} {value!r} of UNetConfig, only "
                f"{' or '.join(map(repr, supported))}."
            )


def config_to_diffusers(
    config: UNetConfig, text_width: int, sample_size: int | None = None
) -> dict[str, Any]:
    """The `unet/config.json` of a network that reads text embeddings of `text_width`.

    `sample_size` is the resolution that diffusers' pipelines take where the user names none.
    ValueError names a field that diffusers has nothing for. `dtype` and `remat` are left out: they
    are how a network is run.
    """
    _check_expressible(config)
    names = {kind: name for name, kind in ACTIVATIONS.items() if name != "swish"} | {None: None}
    down = [
        name
        for level in config.levels
        for name in BLOCKS
        if BLOCKS[name][0] == bool(level.attention)
    ]
    projected, upsamples = config.text_projection is not None, bool(config.low_res_channels)
    values = {
        "_class_name": CLASS_NAME,
        **{field: supported for field, (supported, _) in FIXED.items()},
        "sample_size": sample_size,
        "in_channels": config.in_channels + config.low_res_channels,
        "out_channels": config.out_channels,
        "down_block_types": down,
        "up_block_types": [BLOCKS[name][1] for name in reversed(down)],
        "block_out_channels": [level.channels for level in config.levels],
        "layers_per_block": [level.num_res_blocks for level in config.levels],
        "only_cross_attention": [level.attention == "cross" for level in config.levels],
        "mid_block_only_cross_attention": config.mid_attention == "cross",
        "act_fn": names[config.activation],
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "resnet_skip_time_act": not config.activate_embedding,
        "resnet_out_scale_factor": config.output_scale_factor,
        "mid_block_scale_factor": config.mid_output_scale_factor,
        "time_embedding_dim": config.embedding_width,
        "time_embedding_act_fn": names[config.embedding_activation],
        "attention_head_dim": config.head_channels,
        "cross_attention_dim": config.text_projection if projected else text_width,
        "cross_attention_norm": {ours: name for name, ours in TEXT_NORMS.items()}[config.text_norm],
        "encoder_hid_dim": text_width if projected else None,
        "encoder_hid_dim_type": "text_proj" if projected else None,
        "class_embed_type": "timestep" if upsamples else None,
        "addition_embed_type": None if config.pooling_heads is None else "text",
        "addition_embed_type_num_heads": config.pooling_heads
        or DEFAULTS["addition_embed_type_num_heads"],
    }
    config_from_diffusers(values)  # refuses what does not divide
    return values


def _layers(ours: str, theirs: str, layers: Mapping[str, Any]) -> Layout:
    """The tensors of layers, by a table of ours: (theirs, axes), whose names begin with these."""
    table = {}
    for name, (their_name, axes) in layers.items():
        table |= affine(ours + name, [theirs + their_name], axes)
    return table


def _res_block(ours: str, theirs: str, shortcut: bool = False) -> Layout:
    return _layers(f"{ours}/", f"{theirs}.", RES_BLOCK | (SHORTCUT if shortcut else {}))


def _attention(config: UNetConfig, kind: str | None, ours: str, theirs: str) -> Layout:
    if kind is None:
        return {}
    layers = ATTENTION | (SELF_ATTENTION if kind == "self" else {})
    return _layers(
        f"{ours}/", f"{theirs}.", layers | (TEXT_NORM if config.text_norm is not None else {})
    )


def unet_layout(config: UNetConfig) -> Layout:
    """Where each parameter of the network is among diffusers' tensors; one tensor each.

    ValueError names a field of the config that diffusers cannot express.
    """
    _check_expressible(config)
    last = len(config.levels) - 1
    layers = dict(ALWAYS)
    if config.low_res_channels:
        layers |= AUG_LEVEL
    if config.text_projection is not None:
        layers |= TEXT_PROJECTION
    if config.pooling_heads is not None:
        layers |= POOLING
    table = _layers("", "", layers)
    if config.pooling_heads is not None:
        # One row there, a vector here.
        class_token = Tensors(("add_embedding.pool.positional_embedding",), (0, 1))
        table["embedding/pooling/class_token"] = class_token
    width = config.levels[0].channels
    skips = [width]
    for i, level in enumerate(config.levels):
        for j in range(level.num_res_blocks):
            ours, theirs = f"down{i}_block{j}", f"down_blocks.{i}.resnets.{j}"
            table |= _res_block(ours, theirs, shortcut=width != level.channels)
            ours, theirs = f"down{i}_attention{j}", f"down_blocks.{i}.attentions.{j}"
            table |= _attention(config, level.attention, ours, theirs)
            width = level.channels
            skips.append(width)
        if i < last:
            table |= _res_block(f"down{i}_resample", f"down_blocks.{i}.downsamplers.0")
            skips.append(width)
    for j in range(2):
        table |= _res_block(f"mid_block{j}", f"mid_block.resnets.{j}")
    table |= _attention(config, config.mid_attention, "mid_attention", "mid_block.attentions.0")
    for i, level in reversed(list(enumerate(config.levels))):
        up = f"up_blocks.{last - i}"
        for j in range(level.num_res_blocks + 1):
            shortcut = width + skips.pop() != level.channels
            table |= _res_block(f"up{i}_block{j}", f"{up}.resnets.{j}", shortcut)
            table |= _attention(
                config, level.attention, f"up{i}_attention{j}", f"{up}.attentions.{j}"
            )
            width = level.channels
        if i:
            table |= _res_block(f"up{i}_resample", f"{up}.upsamplers.0")
    return table
