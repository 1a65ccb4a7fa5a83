"""Quantized kernels made whole where a program uses them (the form is `storage.quantized`'s)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from imagen_jax.storage.quantized import SCALES, is_quantized, scheme_of, schemes_in
from imagen_jax.typing import Gather, Params


def pack(numbers: Int8[Array, "*outer inputs outputs"]) -> Int8[Array, "*outer half outputs"]:
    """Numbers of four bits, -8 to 7, two in a byte: the first half of the inputs in the lower."""
    low, high = jnp.split(numbers, 2, axis=-2)
    return (high << 4) | (low & 15)


def unpack(packed: Int8[Array, "*outer half outputs"]) -> Int8[Array, "*outer inputs outputs"]:
    """The inverse of `pack`."""
    return jnp.concatenate([(packed << 4) >> 4, packed >> 4], axis=-2)  # the sign is kept


def dequantize(kernel: Params) -> Float[Array, "*outer inputs outputs"]:
    """A quantized kernel's numbers times their scales, float32."""
    scheme, scales = scheme_of(kernel), kernel[SCALES]
    numbers = unpack(kernel[scheme]) if scheme == "int4" else kernel[scheme]
    *outer, inputs, outputs = numbers.shape
    groups = scales.shape[-2]
    split = numbers.reshape(*outer, groups, inputs // groups, outputs)
    return (split * scales[..., None, :].astype(jnp.float32)).reshape(numbers.shape)


def dequantized(params: Params) -> Params:
    """The tree with all of its kernels as floats."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf) if is_quantized(leaf) else leaf, params, is_leaf=is_quantized
    )


def dequantizing(params: Any, gather: Gather | None) -> Gather | None:
    """What makes parameters whole just before a layer uses them: `gather`, and dequantizing where
    some are quantized.
    """
    if not schemes_in(params):
        return gather
    return dequantized if gather is None else lambda part: dequantized(gather(part))
