"""Hugging Face encoders of T5 v1.1, mT5, ByT5, umT5 to the parameters of `imagen_jax.models.t5`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.convert.safetensors import (
    TensorFiles,
    check_shapes,
    flatten,
    is_float,
    name_some,
    unflatten,
)
from imagen_jax.models import t5
from imagen_jax.typing import Params

MODEL_TYPES = ("t5", "mt5", "umt5")  # ByT5 calls itself t5
# feed_forward_proj -> (activation, gated). transformers takes "gated-gelu" to mean the tanh form.
FEED_FORWARD = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu_new": ("gelu", True),
    "gated-silu": ("silu", True),
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


def config_from_huggingface(values: Mapping[str, Any], **overrides: Any) -> t5.T5Config:
    """The sizes in a model's config.json; `overrides` are fields of T5Config, such as `dtype`."""
    if values.get("model_type") not in MODEL_TYPES:
        raise ValueError(
            f"The model type is {values.get('model_type')!r}; known are {', '.join(MODEL_TYPES)}."
        )
    kind = values.get("feed_forward_proj", "relu")
    if kind not in FEED_FORWARD:
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


def tensor_names(config: t5.T5Config) -> dict[str, list[str]]:
    """Path of each parameter -> its Hugging Face tensors, one a layer where ours are stacked."""
    layer = LAYER_TENSORS | (GATED if config.gated else UNGATED)
    if config.bias_in_every_layer:
        layer["relative_bias/embedding"] = BIAS
    names = {
        f"layers/{ours}": [f"encoder.block.{i}.{theirs}" for i in range(config.num_layers)]
        for ours, theirs in layer.items()
    }
    if not config.bias_in_every_layer:
        names["relative_bias/embedding"] = [f"encoder.block.0.{BIAS}"]
    names["token_embedding"] = [EMBEDDING]
    names["final_norm/scale"] = ["encoder.final_layer_norm.weight"]
    return names


def params_from_huggingface(
    config: t5.T5Config, tensors: Mapping[str, np.ndarray], dtype: str | None = "float32"
) -> Params:
    """Parameters, as numpy arrays, from a state dict of an encoder or of encoder and decoder.

    Raises ValueError that names every kind of misfit: tensors missing, unused, or misshapen. The
    decoder's are left out. `dtype` None keeps the tensors' own.
    """
    names = tensor_names(config)
    wanted = {theirs for group in names.values() for theirs in group}
    found = {name for name in tensors if not name.startswith(NOT_ENCODER)}
    embedding = EMBEDDING
    if EMBEDDING_COPY in found:
        if EMBEDDING not in found:
            embedding = EMBEDDING_COPY
        elif not np.array_equal(tensors[EMBEDDING], tensors[EMBEDDING_COPY]):
            raise ValueError(f"{EMBEDDING} and {EMBEDDING_COPY} differ; one must be a copy.")
        found = found - {EMBEDDING_COPY} | {EMBEDDING}
    missing, unused = sorted(wanted - found), sorted(found - wanted)
    problems = [f"{len(missing)} missing: {name_some(missing)}"] if missing else []
    problems += [f"{len(unused)} unused: {name_some(unused)}"] if unused else []
    if problems:
        raise ValueError("The tensors do not fit the T5Config. " + "; ".join(problems) + ".")

    flat = {}
    for path, group in names.items():
        arrays = [np.asarray(tensors[embedding if n == EMBEDDING else n]) for n in group]
        if path.endswith("/kernel"):
            arrays = [array.T for array in arrays]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise ValueError(f"The tensors of {path} differ in shape by layer: {sorted(shapes)}.")
        value = np.stack(arrays) if path.startswith("layers/") else arrays[0]
        flat[path] = value.astype(jnp.dtype(dtype)) if dtype and is_float(value.dtype) else value
    expected = flatten(jax.eval_shape(lambda key: t5.init(config, key), jax.random.key(0)))
    check_shapes(
        "The Hugging Face encoder",
        {path: leaf.shape for path, leaf in expected.items()},
        {path: value.shape for path, value in flat.items()},
    )
    return unflatten(flat)


def load_huggingface(
    directory: str | os.PathLike, dtype: str | None = "float32", **overrides: Any
) -> tuple[t5.T5Config, Params]:
    """Config and parameters from a model's folder: config.json and model.safetensors (or shards).

    Pickled weights (pytorch_model.bin) are not read: running a pickle is running its author's code.
    """
    directory = Path(directory)
    values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = config_from_huggingface(values, **overrides)
    try:
        tensors = TensorFiles(directory, "model")
    except FileNotFoundError as error:
        pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
        if not pickles:
            raise
        raise ValueError(
            f"{directory} has its weights in pickles ({pickles[0]}), which are not read: save the "
            "model as safetensors, for example by save_pretrained in transformers."
        ) from error
    return config, params_from_huggingface(config, tensors, dtype)
