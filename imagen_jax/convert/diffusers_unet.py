"""diffusers' UNet2DConditionModel, with the blocks that DeepFloyd IF has, to `UNetConfig` and back.

The `config.json` of a `unet` folder gives our config, and the config gives the table of tensors. The
blocks are unet_2d_blocks.py's ResnetDownsampleBlock2D, SimpleCrossAttnDownBlock2D and their likes;
those of Stable Diffusion have other ones.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imagen_jax.convert.layout import CONVOLUTION, LINEAR, Layout, Tensors
from imagen_jax.models import UNetConfig, UNetLevel

CLASS_NAME = "UNet2DConditionModel"
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
# Whether a level has attention, by the type of its block on the way down, and the one on the way up.
BLOCKS = {
    "ResnetDownsampleBlock2D": (False, "ResnetUpsampleBlock2D"),
    "SimpleCrossAttnDownBlock2D": (True, "SimpleCrossAttnUpBlock2D"),
}


def _refuse(field: str, value: Any, supported: str) -> None:
    raise ValueError(f"The diffusers U-Net's {field} is {value!r}; supported is {supported}.")


def _choice(settings: Mapping[str, Any], field: str, choices: Mapping[Any, Any]) -> Any:
    value = settings[field]
    if not isinstance(value, str | None) or value not in choices:
        _refuse(field, value, " or ".join(repr(choice) for choice in choices))
    return choices[value]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count(settings: Mapping[str, Any], field: str) -> int:
    """A positive integer, or a list of the same one for each level."""
    value = settings[field]
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items or not all(_is_count(item) and item == items[0] for item in items):
        _refuse(field, value, "a positive integer, the same for every level")
    return items[0]


def _optional_count(settings: Mapping[str, Any], field: str) -> int | None:
    return None if settings[field] is None else _count(settings, field)


def _positive(settings: Mapping[str, Any], field: str) -> float:
    value = settings[field]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and value > 0):
        _refuse(field, value, "a positive number")
    return float(value)


def _flag(settings: Mapping[str, Any], field: str) -> bool:
    value = settings[field]
    if not isinstance(value, bool):
        _refuse(field, value, "true or false")
    return value


def _by_level(settings: Mapping[str, Any], field: str, kind: type, levels: int | None) -> list:
    """A list with an item of `kind` for each level; a single item stands for all of them."""
    value = settings[field]
    items = list(value) if isinstance(value, list | tuple) else [value] * (levels or 0)
    fits = len(items) == levels if levels is not None else bool(items)
    if kind is int:
        fits = fits and all(_is_count(item) for item in items)
    if not fits or not all(type(item) is kind for item in items):
        what = {int: "a positive integer", bool: "true or false", str: "a type of block"}[kind]
        _refuse(field, value, f"{what} for each level ({levels or 'one or more'})")
    return items


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that we express, once all the others have been found to be harmless."""
    name = values.get("_class_name", CLASS_NAME)
    if name != CLASS_NAME:
        raise ValueError(f"The network is a {name!r} of diffusers; supported is {CLASS_NAME!r}.")
    for field, (supported, default) in FIXED.items():
        value = values.get(field, default)
        if value != supported:
            _refuse(field, value, repr(supported))
    for field in sorted(set(values) - set(DEFAULTS) - set(FIXED) - IRRELEVANT):
        # Names that start with "_" are notes: class, version, origin.
        if not field.startswith("_") and values[field] not in (None, False):
            raise ValueError(
                f"The diffusers U-Net has the unknown field {field} = {values[field]!r}; supported "
                "are the fields of UNet2DConditionModel that DeepFloyd IF sets."
            )
    return {field: values.get(field, default) for field, default in DEFAULTS.items()}


def _levels(settings: Mapping[str, Any]) -> tuple[UNetLevel, ...]:
    channels = _by_level(settings, "block_out_channels", int, None)
    count = len(channels)
    num_blocks = _by_level(settings, "layers_per_block", int, count)
    only_cross = _by_level(settings, "only_cross_attention", bool, count)
    down = _by_level(settings, "down_block_types", str, count)
    for name in down:
        if name not in BLOCKS:
            _refuse("down_block_types", name, " or ".join(BLOCKS))
    up = [BLOCKS[name][1] for name in reversed(down)]
    if _by_level(settings, "up_block_types", str, count) != up:
        _refuse("up_block_types", settings["up_block_types"], f"the mirror of the way down, {up}")
    kinds = [
        ("cross" if cross else "self") if BLOCKS[name][0] else None
        for name, cross in zip(down, only_cross, strict=True)
    ]
    return tuple(UNetLevel(*items) for items in zip(channels, num_blocks, kinds, strict=True))


def _mid_attention(settings: Mapping[str, Any]) -> str:
    only_cross = settings["mid_block_only_cross_attention"]
    if only_cross is None:
        only_cross = settings["only_cross_attention"] is True
    elif not isinstance(only_cross, bool):
        _refuse("mid_block_only_cross_attention", only_cross, "true, false or null")
    return "cross" if only_cross else "self"


def _check_divisions(config: UNetConfig, text_width: int) -> None:
    first = config.levels[0].channels
    if first % 2:
        _refuse("block_out_channels", first, "an even first number")
    for level in config.levels:
        if level.channels % config.norm_groups:
            _refuse(
                "norm_num_groups", config.norm_groups, f"a divisor of {level.channels} channels"
            )
    attending = [level.channels for level in config.levels if level.attention]
    for channels in (*attending, config.levels[-1].channels):
        if channels % config.head_channels:
            _refuse("attention_head_dim", config.head_channels, f"a divisor of {channels} channels")
    read = config.text_projection or text_width
    if config.text_norm == "group" and read % TEXT_NORM_GROUPS:
        _refuse("cross_attention_dim", read, f"a multiple of {TEXT_NORM_GROUPS} with group_norm")
    if config.pooling_heads is not None and text_width % config.pooling_heads:
        heads = config.pooling_heads
        _refuse("addition_embed_type_num_heads", heads, f"a divisor of the text's {text_width}")


def text_width_from_diffusers(values: Mapping[str, Any]) -> int:
    """The width of the text embeddings that the U-Net of this config.json reads."""
    settings = _settings(values)
    field = "cross_attention_dim" if settings["encoder_hid_dim"] is None else "encoder_hid_dim"
    return _count(settings, field)


def config_from_diffusers(values: Mapping[str, Any], **overrides: Any) -> UNetConfig:
    """The network of a `unet/config.json`; `overrides` are fields of UNetConfig, such as `dtype`.

    A network with class_embed_type "timestep" (stages II and III) has half of its in_channels for
    the low-resolution picture. ValueError names a field that is not supported and what is.
    """
    settings = _settings(values)
    in_channels = _count(settings, "in_channels")
    enlarging = _choice(settings, "class_embed_type", {"timestep": True, None: False})
    if enlarging and in_channels % 2:
        _refuse("in_channels", in_channels, "an even number with class_embed_type 'timestep'")
    projected = settings["encoder_hid_dim"] is not None
    kinds = {"text_proj": True, None: projected} if projected else {None: False}
    _choice(settings, "encoder_hid_dim_type", kinds)
    pooled = _choice(settings, "addition_embed_type", {"text": True, None: False})
    fields = {
        "levels": _levels(settings),
        "mid_attention": _mid_attention(settings),
        "in_channels": in_channels // 2 if enlarging else in_channels,
        "out_channels": _count(settings, "out_channels"),
        "low_res_channels": in_channels // 2 if enlarging else 0,
        "head_channels": _count(settings, "attention_head_dim"),
        "activation": _choice(settings, "act_fn", ACTIVATIONS),
        "norm_groups": _count(settings, "norm_num_groups"),
        "norm_eps": _positive(settings, "norm_eps"),
        "output_scale_factor": _positive(settings, "resnet_out_scale_factor"),
        "mid_output_scale_factor": _positive(settings, "mid_block_scale_factor"),
        "embedding_width": _optional_count(settings, "time_embedding_dim"),
        "embedding_activation": _choice(
            settings, "time_embedding_act_fn", ACTIVATIONS | {None: None}
        ),
        "activate_embedding": not _flag(settings, "resnet_skip_time_act"),
        "text_projection": _count(settings, "cross_attention_dim") if projected else None,
        "text_norm": _choice(settings, "cross_attention_norm", TEXT_NORMS),
        "pooling_heads": _count(settings, "addition_embed_type_num_heads") if pooled else None,
        "mask_text": False,
    }
    config = UNetConfig(**fields)
    _check_divisions(config, text_width_from_diffusers(values))
    return dataclasses.replace(config, **overrides)


def _check_expressible(config: UNetConfig) -> None:
    limits = {
        "mid_attention": ("self", "cross"),
        "low_res_channels": (0, config.in_channels),
        "num_classes": (None,),
        "text_norm": ("group", None),
        "mask_text": (False,),
    }
    for field, supported in limits.items():
        value = getattr(config, field)
        if value not in supported:
            raise ValueError(
                f"{CLASS_NAME} of diffusers cannot express {field} {value!r} of UNetConfig, only "
                f"{' or '.join(repr(item) for item in supported)}."
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
    projected, enlarging = config.text_projection is not None, bool(config.low_res_channels)
    heads = DEFAULTS["addition_embed_type_num_heads"]
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
        "class_embed_type": "timestep" if enlarging else None,
        "addition_embed_type": None if config.pooling_heads is None else "text",
        "addition_embed_type_num_heads": config.pooling_heads or heads,
    }
    back = config_from_diffusers(values, dtype=config.dtype, remat=config.remat)
    if back != config:
        raise ValueError(f"{CLASS_NAME} of diffusers turns {config} into {back}.")
    return values


def _linear(ours: str, theirs: str) -> Layout:
    weight = Tensors((f"{theirs}.weight",), LINEAR)
    return {f"{ours}/kernel": weight, f"{ours}/bias": Tensors((f"{theirs}.bias",))}


def _convolution(ours: str, theirs: str) -> Layout:
    weight = Tensors((f"{theirs}.weight",), CONVOLUTION)
    return {f"{ours}/kernel": weight, f"{ours}/bias": Tensors((f"{theirs}.bias",))}


def _norm(ours: str, theirs: str) -> Layout:
    scale = Tensors((f"{theirs}.weight",))
    return {f"{ours}/scale": scale, f"{ours}/bias": Tensors((f"{theirs}.bias",))}


def _embedding(config: UNetConfig) -> Layout:
    table = {}
    mlps = {"time": "time_embedding"}
    if config.low_res_channels:
        mlps["aug_level"] = "class_embedding"
    for ours, theirs in mlps.items():
        table |= _linear(f"embedding/{ours}_in", f"{theirs}.linear_1")
        table |= _linear(f"embedding/{ours}_out", f"{theirs}.linear_2")
    if config.pooling_heads is not None:
        pooling, theirs = "embedding/pooling", "add_embedding"
        table[f"{pooling}/class_token"] = Tensors((f"{theirs}.pool.positional_embedding",), (0, 1))
        table |= _norm(f"{pooling}/norm_in", f"{theirs}.norm1")
        for part in ("query", "key", "value"):
            table |= _linear(f"{pooling}/{part}", f"{theirs}.pool.{part[0]}_proj")
        table |= _linear(f"{pooling}/out", f"{theirs}.proj")
        table |= _norm(f"{pooling}/norm_out", f"{theirs}.norm2")
    if config.text_projection is not None:
        table |= _linear("text_projection", "encoder_hid_proj")
    return table


def _res_block(ours: str, theirs: str, shortcut: bool = False) -> Layout:
    table = {}
    for part in ("norm1", "norm2"):
        table |= _norm(f"{ours}/{part}", f"{theirs}.{part}")
    for part in ("conv1", "conv2"):
        table |= _convolution(f"{ours}/{part}", f"{theirs}.{part}")
    table |= _linear(f"{ours}/scale_shift", f"{theirs}.time_emb_proj")
    if shortcut:
        # A 1x1 convolution there, a matrix here.
        table |= _convolution(f"{ours}/shortcut", f"{theirs}.conv_shortcut")
    return table


def _attention(config: UNetConfig, kind: str | None, ours: str, theirs: str) -> Layout:
    if kind is None:
        return {}
    names = {
        "query": "to_q",
        "text_key": "add_k_proj",
        "text_value": "add_v_proj",
        "out": "to_out.0",
    }
    if kind == "self":
        names |= {"key": "to_k", "value": "to_v"}
    table = _norm(f"{ours}/norm", f"{theirs}.group_norm")
    if config.text_norm is not None:
        table |= _norm(f"{ours}/text_norm", f"{theirs}.norm_cross")
    for part, name in names.items():
        table |= _linear(f"{ours}/{part}", f"{theirs}.{name}")
    return table


def unet_layout(config: UNetConfig) -> Layout:
    """Where each parameter of the network is among diffusers' tensors; one tensor each.

    ValueError names a field of the config that diffusers cannot express.
    """
    _check_expressible(config)
    last = len(config.levels) - 1
    table = _embedding(config) | _convolution("conv_in", "conv_in")
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
    return table | _norm("norm_out", "conv_norm_out") | _convolution("conv_out", "conv_out")
