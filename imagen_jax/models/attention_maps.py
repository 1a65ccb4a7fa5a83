"""How much each pixel attends to each token of the text: kept by a network's layers where it is
asked for, and nothing of it computed elsewhere.

The attention itself, which may be a fused one, stays as it is: the weights are computed beside it.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from imagen_jax.storage.trees import flatten

COLLECTION = "attention_maps"
# By layer: the softmax's columns that are the text's, the mean over heads. What is left of 1 is
# attention to pixels, where they are keys as well, and to other tokens of the sequence.
TextMaps = dict[str, Float[Array, "batch rows columns tokens"]]


def keeps_maps(module: nn.Module) -> bool:
    """Whether a layer is asked for its map."""
    return module.is_mutable_collection(COLLECTION) and not module.is_initializing()


def keep_map(
    module: nn.Module,
    query: Float[Array, "b queries heads head"],
    key: Float[Array, "b keys heads head"],
    mask: Bool[Array, "b keys"] | None,
    text: slice,
) -> None:
    """Keeps softmax(query key) at the keys `text`, the mean over heads, in float32, for a network
    that is asked for it. Nobody looks at a key where `mask` is False.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    logits *= query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min / 2)
    weights = nn.softmax(logits)[..., text].mean(1)
    module.sow(COLLECTION, "text", weights, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def by_layer(kept: Mapping[str, Any], rows: int, columns: int) -> TextMaps:
    """What layers kept, by their names; those of a loop have a number as well.

    Args:
        rows, columns: of the finest feature map. Tokens after those of the image are left out.
    """
    found = {}
    for path, values in flatten(dict(kept)).items():
        name, values = path.removesuffix("/text"), values[..., : rows * columns, :]
        factor = isqrt(rows * columns // values.shape[-2])
        shape = rows // factor, columns // factor
        values = values.reshape(*values.shape[:-2], *shape, values.shape[-1])
        if values.ndim == 4:
            found[name] = values
        else:
            found |= {f"{name}/{i}": layer for i, layer in enumerate(values)}
    return found
