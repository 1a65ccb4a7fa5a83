"""Hugging Face encoders of T5 v1.1, mT5, ByT5, umT5 to the parameters of `imagen_jax.models.t5`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.models import t5
from imagen_jax.storage.json_file import read_object, write_object
from imagen_jax.storage.layout import LINEAR, Layout, Tensors
from imagen_jax.storage.reading import HostTensors, ShardingOf, TensorSource, read_layout
from imagen_jax.storage.safetensors import open_model
from imagen_jax.storage.writing import save_layout
from imagen_jax.typing import Params

MODEL_TYPES = ("t5", "mt5", "umt5")  # ByT5 calls itself t5
# feed_forward_proj -> (activation, gated). transformers takes "gated-gelu" to mean the tanh form.
FEED_FORWARD = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu_new": ("gelu", True),
    "gated-silu": ("silu", True),
}

# Sizes in config.json, and whether they may be absent.
SIZES = {
    "vocab_size": False,
    "d_model": False,
    "num_heads": False,
    "d_kv": False,
    "num_layers": False,
    "d_ff": False,
    "relative_attention_num_buckets": True,
    "relative_attention_max_distance": True,
}

# Ours -> Hugging Face's, in a layer; matrices are transposed (theirs are [out, in]).
LAYER_TENSORS = {
    "attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "attention_norm/scale": "layer.0.layer_norm.weight",
    "feed_forward/wo/kernel": "layer.1.DenseReluDense.wo.weight",
    "feed_forward_norm/scale": "layer.1.layer_norm.weight",
}
GATED = {
    "feed_forward/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
    "feed_forward/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
}
UNGATED = {"feed_forward/wi_0/kernel": "layer.1.DenseReluDense.wi.weight"}
BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
EMBEDDING = "shared.weight"
EMBEDDING_COPY = "encoder.embed_tokens.weight"
# What a checkpoint of encoder and decoder holds besides the encoder.
NOT_ENCODER = ("decoder.", "lm_head.")
COMPARED_ROWS = 4096
# Far above every T5: what is larger is no model, and would exhaust the memory.
MAX_LAYERS = 1024
MAX_SIZE = 2**24


def _check_sizes(values: Mapping[str, Any]) -> None:
    for name, optional in SIZES.items():
        size = values.get(name) if optional else values.get(name, "missing")
        limit = MAX_LAYERS if name == "num_layers" else MAX_SIZE
        if optional and size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= limit:
            raise ValueError(
                f"{name} is {str(size)[:40]}; it must be an integer from 1 to {limit}."
            )
    eps = values.get("layer_norm_epsilon", 1e-6)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"layer_norm_epsilon is {eps!r}; it must be between 0 and 1.")


def config_from_huggingface(values: Mapping[str, Any], **overrides: Any) -> t5.T5Config:
    """The sizes in a model's config.json; `overrides` are fields of T5Config, such as `dtype`."""
    if values.get("model_type") not in MODEL_TYPES:
        raise ValueError(
            f"The model type is {values.get('model_type')!r}; known are {', '.join(MODEL_TYPES)}."
        )
    _check_sizes(values)
    kind = values.get("feed_forward_proj", "relu")
    if not isinstance(kind, str) or kind not in FEED_FORWARD:
        raise ValueError(f"feed_forward_proj is {kind!r}; known are {', '.join(FEED_FORWARD)}.")
    activation, gated = FEED_FORWARD[kind]
    fields = {
        "vocab_size": values["vocab_size"],
        "d_model": values["d_model"],
        "num_heads": values["num_heads"],
        "head_dim": values["d_kv"],
        "num_layers": values["num_layers"],
        "d_ff": values["d_ff"],
        "activation": activation,
        "gated": gated,
        "num_buckets": values.get("relative_attention_num_buckets", 32),
        "max_distance": values.get("relative_attention_max_distance", 128),
        "bias_in_every_layer": values["model_type"] == "umt5",
        "norm_eps": values.get("layer_norm_epsilon", 1e-6),
    }
    return t5.T5Config(**(fields | overrides))


def encoder_layout(config: t5.T5Config, embedding: str = EMBEDDING) -> Layout:
    """Where each parameter of the encoder is among Hugging Face's tensors."""
    layer = LAYER_TENSORS | (GATED if config.gated else UNGATED)
    if config.bias_in_every_layer:
        layer["relative_bias/embedding"] = BIAS
    layout = {}
    for ours, theirs in layer.items():
        names = tuple(f"encoder.block.{i}.{theirs}" for i in range(config.num_layers))
        axes = LINEAR if ours.endswith("/kernel") else None
        layout[f"layers/{ours}"] = Tensors(names, axes, "stack")
    if not config.bias_in_every_layer:
        layout["relative_bias/embedding"] = Tensors((f"encoder.block.0.{BIAS}",))
    layout["token_embedding"] = Tensors((embedding,))
    layout["final_norm/scale"] = Tensors(("encoder.final_layer_norm.weight",))
    return layout


def _same_rows(files: TensorSource, first: str, second: str) -> bool:
    """Whether two matrices are equal, compared some rows at a time."""
    if files.shape(first) != files.shape(second):
        return False
    rows = range(0, files.shape(first)[0], COMPARED_ROWS)
    parts = [(slice(row, row + COMPARED_ROWS),) for row in rows]
    return all(np.array_equal(files.read(first, part), files.read(second, part)) for part in parts)


def params_from_huggingface(
    config: t5.T5Config,
    tensors: Mapping[str, Any] | TensorSource,
    dtype: str | None = "float32",
    *,
    sharding: ShardingOf | None = None,
    where: str = "The Hugging Face encoder",
) -> Params:
    """Parameters from the tensors of an encoder or of encoder and decoder, one after another.

    The decoder's are left out.

    Args:
        tensors: files, or a state dict of arrays.
        dtype: of the parameters; None keeps the tensors' own.
        sharding: where each parameter shall lie; None gives numpy arrays.
        where: the tensors' name for messages.

    Raises:
        ValueError: tensors are missing, unused or misshapen; the message lists them.
    """
    files = tensors if isinstance(tensors, TensorSource) else HostTensors(tensors)
    names, embedding, ignored = set(files), EMBEDDING, NOT_ENCODER
    if names >= {EMBEDDING, EMBEDDING_COPY}:
        if not _same_rows(files, EMBEDDING, EMBEDDING_COPY):
            raise ValueError(
                f"{where}: {EMBEDDING} and {EMBEDDING_COPY} differ; one must be a copy."
            )
        ignored = (*NOT_ENCODER, EMBEDDING_COPY)
    elif EMBEDDING_COPY in names:
        embedding = EMBEDDING_COPY
    return read_layout(
        encoder_layout(config, embedding),
        files,
        encoder_shapes(config),
        dtype=dtype,
        sharding=sharding,
        where=where,
        ignored=ignored,
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
        sharding: where each parameter shall lie; None gives numpy arrays.
        variant: such as "bf16", for model.bf16.safetensors. None: the files without one, or those
            of the only variant.
        overrides: fields of T5Config, such as `dtype` (by name) or `remat`.

    Raises:
        FileNotFoundError: the folder has no config or no weights.
        ValueError: they are damaged, pickled, or do not fit each other.
    """
    directory = Path(directory)
    path = directory / "config.json"
    values = read_object(path, "the config of a model")
    try:
        config = config_from_huggingface(values, **overrides)
    except ValueError as error:
        raise ValueError(f"{path} does not describe a T5 encoder: {error}") from None
    tensors = open_model(directory, variant)
    params = params_from_huggingface(
        config, tensors, dtype, sharding=sharding, where=str(directory)
    )
    return config, params


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
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "num_layers": config.num_layers,
        "d_ff": config.d_ff,
        "feed_forward_proj": kinds[form],
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
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
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = save_layout(
        directory, "model", encoder_layout(config), params, dtype=dtype, variant=variant
    )
    write_object(directory / "config.json", values)
    return files
