"""Quantized kernels in a tree of parameters, and so in files.

In the place of a kernel stand its numbers, under the name of their scheme, and the scales that they
are multiplied by, one for each output (and layer, and for int4 group of inputs):

    conv1/kernel/int8             int8 [3, 3, in, out]
    conv1/kernel/scales           float32 [1, 1, 1, out]
    layers/attention/query/kernel/int4    int8 [layers, in / 2, out]: two numbers a byte
    layers/attention/query/kernel/scales  float32 [layers, in / group, out]

Of int4, the lower four bits are the first half of the inputs, the upper four the second.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.storage.codec import require
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.typing import Params

SCHEMES = ("int8", "int4", "int8_dynamic")
SCALES = "scales"


def scheme_of(leaf: Any) -> str | None:
    """Of a quantized kernel; None for anything else in a tree of parameters."""
    if not isinstance(leaf, Mapping) or SCALES not in leaf:
        return None
    return next((scheme for scheme in SCHEMES if scheme in leaf), None)


def is_quantized(leaf: Any) -> bool:
    """Whether this part of a tree is a quantized kernel."""
    return scheme_of(leaf) is not None


def schemes_in(params: Any) -> set[str]:
    """The schemes of a tree's kernels; empty where none is quantized."""
    leaves = jax.tree.leaves(params, is_leaf=is_quantized)
    return {scheme for scheme in map(scheme_of, leaves) if scheme is not None}


def refuse_quantized(params: Any, what: str) -> None:
    """ValueError where a tree has quantized kernels, which `what` cannot use."""
    if found := schemes_in(params):
        raise ValueError(f"{what} needs float weights; these are {', '.join(sorted(found))}.")


def numbers_shape(shape: tuple[int, ...], scheme: str) -> tuple[int, ...]:
    """Of the numbers of a kernel [..., in, out]."""
    *outer, size_in, size_out = shape
    return (*outer, size_in // 2, size_out) if scheme == "int4" else tuple(shape)


def stored_shapes(shapes: Params, found: Mapping[str, tuple[int, ...]]) -> Params:
    """The tree of shapes that a model expects, with its kernels as the tensors `found` have them.

    Raises:
        ValueError: scales do not fit their kernel.
    """
    flat = {}
    for path, leaf in flatten(shapes).items():
        scheme = next((name for name in SCHEMES if f"{path}/{name}" in found), None)
        if scheme is None:
            flat[path] = leaf
            continue
        scales = found.get(f"{path}/{SCALES}", ())
        pairs = list(zip(leaf.shape, scales, strict=False))
        fits = len(scales) == len(leaf.shape) >= 2 and scales[-1] == leaf.shape[-1]
        require(
            (
                fits and all(part > 0 and size % part == 0 for size, part in pairs),
                f"{path}/{SCALES} is of shape {scales}, which does not fit a kernel {leaf.shape}.",
            )
        )
        numbers = numbers_shape(leaf.shape, scheme)
        flat[f"{path}/{scheme}"] = jax.ShapeDtypeStruct(numbers, jnp.int8)
        flat[f"{path}/{SCALES}"] = jax.ShapeDtypeStruct(scales, jnp.float32)
    return unflatten(flat)
