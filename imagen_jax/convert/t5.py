"""Hugging Face encoders of T5 v1.1, mT5, ByT5, umT5 to the parameters of `imagen_jax.models.t5`."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.convert.fields import Fields, read_config
from imagen_jax.models import t5
from imagen_jax.models.bounds import BOUNDS
from imagen_jax.storage.json_file import write_object
from imagen_jax.storage.layout import LINEAR, Layout, Tensors
from imagen_jax.storage.layout_files import ShardingOf, Tensor, read_layout, save_layout
from imagen_jax.storage.safetensors import open_model
from imagen_jax.typing import Params

MODEL_TYPES = ("t5", "mt5", "umt5")  # ByT5 calls itself t5
# feed_forward_proj -> (activation, gated). transformers takes "gated-gelu" to mean the tanh form.
FEED_FORWARD = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu_new": ("gelu", True),
    "gated-silu": ("silu", True),
}

# Our sizes -> config.json's.
SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "num_layers": "num_layers",
    "d_ff": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}
# What the other fields stand for where config.json leaves them out.
DEFAULTS = {
    "feed_forward_proj": "relu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
# Ours -> Hugging Face's and T5X's, in a layer.
LAYER_TENSORS = {
    "attention/query/kernel": ("layer.0.SelfAttention.q.weight", "attention/query/kernel"),
    "attention/key/kernel": ("layer.0.SelfAttention.k.weight", "attention/key/kernel"),
    "attention/value/kernel": ("layer.0.SelfAttention.v.weight", "attention/value/kernel"),
    "attention/out/kernel": ("layer.0.SelfAttention.o.weight", "attention/out/kernel"),
    "attention_norm/scale": ("layer.0.layer_norm.weight", "pre_attention_layer_norm/scale"),
    "feed_forward/wo/kernel": ("layer.1.DenseReluDense.wo.weight", "mlp/wo/kernel"),
    "feed_forward_norm/scale": ("layer.1.layer_norm.weight", "pre_mlp_layer_norm/scale"),
}
GATED = {
    "feed_forward/wi_0/kernel": ("layer.1.DenseReluDense.wi_0.weight", "mlp/wi_0/kernel"),
    "feed_forward/wi_1/kernel": ("layer.1.DenseReluDense.wi_1.weight", "mlp/wi_1/kernel"),
}
UNGATED = {"feed_forward/wi_0/kernel": ("layer.1.DenseReluDense.wi.weight", "mlp/wi/kernel")}
BIAS = (
    "layer.0.SelfAttention.relative_attention_bias.weight",
    "relpos_bias/rel_embedding",
)
EMBEDDING = "shared.weight"
EMBEDDING_COPY = "encoder.embed_tokens.weight"
# What a checkpoint of encoder and decoder holds besides the encoder.
NOT_ENCODER = ("decoder.", "lm_head.")
COMPARED_ROWS = 4096


def checked_sizes(fields: Fields, names: Mapping[str, str]) -> dict[str, int]:
    """Our sizes by the names of the fields that have them; ValueError for what is none of a T5."""
    return {ours: fields.count(name, BOUNDS[ours][1]) for ours, name in names.items()}


def config_from_huggingface(values: Mapping[str, Any], **overrides: Any) -> t5.T5Config:
    """The sizes in a model's config.json; `overrides` are fields of T5Config, such as `dtype`."""
    fields = Fields("The encoder", {**DEFAULTS, **values})
    fields.choice("model_type", dict.fromkeys(MODEL_TYPES))
    activation, gated = fields.choice("feed_forward_proj", FEED_FORWARD)
    found = {
        **checked_sizes(fields, SIZES),
        "activation": activation,
        "gated": gated,
        "bias_in_every_layer": values["model_type"] == "umt5",
        "norm_eps": fields.positive("layer_norm_epsilon", most=1.0),
    }
    return t5.T5Config(**(found | overrides))


def layer_tensors(config: t5.T5Config) -> dict[str, tuple[str, str]]:
    """Ours -> Hugging Face's and T5X's, of the parameters that a layer has."""
    own_bias = {"relative_bias/embedding": BIAS} if config.bias_in_every_layer else {}
    return LAYER_TENSORS | (GATED if config.gated else UNGATED) | own_bias


def encoder_layout(config: t5.T5Config, embedding: str = EMBEDDING) -> Layout:
    """Where each parameter of the encoder is among Hugging Face's tensors."""
    layout = {
        "token_embedding": Tensors((embedding,)),
        "final_norm/scale": Tensors(("encoder.final_layer_norm.weight",)),
    }
    for ours, (theirs, _) in layer_tensors(config).items():
        names = tuple(f"encoder.block.{i}.{theirs}" for i in range(config.num_layers))
        axes = LINEAR if ours.endswith("/kernel") else None
        layout[f"layers/{ours}"] = Tensors(names, axes, "stack")
    if not config.bias_in_every_layer:
        layout["relative_bias/embedding"] = Tensors((f"encoder.block.0.{BIAS[0]}",))
    return layout


def _same_rows(first: Tensor, second: Tensor) -> bool:
    """Whether two matrices are equal, compared some rows at a time."""
    rows = [(slice(row, row + COMPARED_ROWS),) for row in range(0, first.shape[0], COMPARED_ROWS)]
    same = (np.array_equal(first[part], second[part]) for part in rows)
    return first.shape == second.shape and all(same)


def params_from_huggingface(
    config: t5.T5Config,
    files: Mapping[str, Tensor],
    dtype: str | None = "float32",
    *,
    sharding: ShardingOf | None = None,
    where: str = "The Hugging Face encoder",
) -> Params:
    """Parameters from the tensors of an encoder or of encoder and decoder, one after another.

    The decoder's are left out.

    Args:
        files: the tensors by name, in files or in memory.
        dtype: of the parameters; None keeps the tensors' own.
        sharding: where each parameter is to lie; None gives numpy arrays.
        where: the files' name for messages.

    Raises:
        ValueError: tensors are missing, unused or misshapen; the message lists them.
    """
    copied, twice = EMBEDDING_COPY in files, {EMBEDDING, EMBEDDING_COPY} <= set(files)
    if twice and not _same_rows(files[EMBEDDING], files[EMBEDDING_COPY]):
        raise ValueError(f"{where}: {EMBEDDING} and {EMBEDDING_COPY} differ; one must be a copy.")
    return read_layout(
        encoder_layout(config, EMBEDDING_COPY if copied and not twice else EMBEDDING),
        files,
        encoder_shapes(config),
        dtype=dtype,
        sharding=sharding,
        where=where,
        ignored=(*NOT_ENCODER, EMBEDDING_COPY) if twice else NOT_ENCODER,
    )


def encoder_shapes(config: t5.T5Config) -> Params:
    """The tree of the encoder's parameters, as shapes."""
    return jax.eval_shape(lambda key: t5.init(config, key), jax.random.key(0))


def load_huggingface(
    directory: str | os.PathLike,
    dtype: str | None = "float32",
    *,
    sharding: ShardingOf | None = None,
    variant: str | None = None,
    **overrides: Any,
) -> tuple[t5.T5Config, Params]:
    """Config and parameters from a model's folder: config.json and model.safetensors (or shards).

    Pickled weights (pytorch_model.bin) are not read: running a pickle is running its author's code.

    Args:
        dtype: of the parameters; None keeps the tensors' own.
        sharding: where each parameter is to lie; None gives numpy arrays.
        variant: such as "bf16", for model.bf16.safetensors. None: the files without one, or those
            of the only variant.
        overrides: fields of T5Config, such as `dtype` (by name) or `remat`.

    Raises:
        FileNotFoundError: the folder has no config or no weights.
        ValueError: they are damaged, pickled, or do not fit each other.
    """
    parse = functools.partial(config_from_huggingface, **overrides)
    config = read_config(directory, "a T5 encoder", parse)
    files, where = open_model(directory, variant), os.fspath(directory)
    return config, params_from_huggingface(config, files, dtype, sharding=sharding, where=where)


def config_to_huggingface(config: t5.T5Config) -> dict[str, Any]:
    """The config.json of an encoder: the inverse of `config_from_huggingface`.

    `embedding_multiplier` is not among its fields; `save_huggingface` puts it into the weights.
    ValueError names what Hugging Face's T5 has no word for.
    """
    kinds = {form: name for name, form in reversed(FEED_FORWARD.items())}
    form = (config.activation, config.gated)
    if form not in kinds:
        raise ValueError(
            f"T5 of Hugging Face cannot express activation {config.activation!r} with gated "
            f"{config.gated}, only {', '.join(map(str, kinds))}."
        )
    return {
        "architectures": ["UMT5EncoderModel" if config.bias_in_every_layer else "T5EncoderModel"],
        "model_type": "umt5" if config.bias_in_every_layer else "t5",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "feed_forward_proj": kinds[form],
        "layer_norm_epsilon": config.norm_eps,
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def save_huggingface(
    directory: str | os.PathLike,
    config: t5.T5Config,
    params: Params,
    *,
    dtype: str | None = None,
    variant: str | None = None,
) -> list[Path]:
    """Writes an encoder as transformers' save_pretrained does, and returns the weights' files.

    Args:
        dtype: of the parameters on disk; None leaves them as they are.
        variant: such as "fp16", for model.fp16.safetensors.
    """
    values = config_to_huggingface(config)
    if config.embedding_multiplier != 1.0:
        table = np.asarray(params["token_embedding"], np.float32) * config.embedding_multiplier
        params = {**params, "token_embedding": table}
    layout = encoder_layout(config)
    files = save_layout(directory, "model", layout, params, dtype=dtype, variant=variant)
    write_object(Path(directory) / "config.json", values)
    return files
