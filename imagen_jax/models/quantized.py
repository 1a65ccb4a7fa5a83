"""Quantized kernels made whole where a program uses them (the form is `storage.quantized`'s)."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int8

from imagen_jax.models.dense import Dense
from imagen_jax.models.image_attention import Weights
from imagen_jax.models.layers import NHWC, Conv3x3, convolve
from imagen_jax.storage.quantized import SCALES, is_quantized, scheme_of, schemes_in
from imagen_jax.typing import Params

Layer = nn.Dense | Dense | Conv3x3 | Weights  # the modules that have kernels


def pack(numbers: Int8[Array, "*outer inputs outputs"]) -> Int8[Array, "*outer half outputs"]:
    """Numbers of four bits, -8 to 7, two in a byte: the first half of the inputs in the lower."""
    low, high = jnp.split(numbers, 2, axis=-2)
    return (high << 4) | (low & 15)


def unpack(packed: Int8[Array, "*outer half outputs"]) -> Int8[Array, "*outer inputs outputs"]:
    """The inverse of `pack`."""
    return jnp.concatenate([(packed << 4) >> 4, packed >> 4], axis=-2)  # the sign is kept


def dequantize(kernel: Params) -> Float[Array, "*outer inputs outputs"]:
    """A quantized kernel's numbers times their scales, float32."""
    scheme = scheme_of(kernel)
    numbers, scales = jnp.asarray(kernel[scheme]), jnp.asarray(kernel[SCALES], jnp.float32)
    numbers = unpack(numbers) if scheme == "int4" else numbers
    *outer, inputs, outputs = numbers.shape
    groups = scales.shape[-2]
    split = numbers.reshape(*outer, groups, inputs // groups, outputs)
    return (split * scales[..., None, :]).reshape(numbers.shape)


def dequantized(params: Params) -> Params:
    """The tree with all of its kernels as floats."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf) if is_quantized(leaf) else leaf, params, is_leaf=is_quantized
    )


@contextlib.contextmanager
def quantized_layers(params: Any) -> Iterator[None]:
    """Within it, modules run with what is quantized among their parameters."""
    if not schemes_in(params):
        yield
        return
    with nn.intercept_methods(_run):
        yield


def _run(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """A layer, if its kernel is quantized: float products with what is dequantized just before, or,
    for int8_dynamic, products of int8.
    """
    module = context.module
    layer = context.method_name == "__call__" and isinstance(module, Layer)
    kernel = module.get_variable("params", "kernel") if layer else None
    if not is_quantized(kernel):
        return call(*args, **kwargs)
    bias = module.get_variable("params", "bias")
    if isinstance(module, Weights):
        return dequantize(kernel), bias
    x, stride = args[0], module.stride if isinstance(module, Conv3x3) else None
    dtype = jnp.dtype(module.dtype or x.dtype)
    # The kernel waits for its input. XLA would make all floats at the start, and hold them.
    x, kernel = jax.lax.optimization_barrier((x.astype(dtype), kernel))
    if scheme_of(kernel) == "int8_dynamic":
        out = _int8_product(x, kernel, stride).astype(dtype)
    elif stride is None:
        out = jnp.dot(x, dequantize(kernel).astype(dtype))
    else:
        out = convolve(x, dequantize(kernel).astype(dtype), stride)
    if stride is not None and not module.add_bias:
        return out, bias
    return out if bias is None else out + bias.astype(dtype)


def _int8_product(x: Array, kernel: Params, stride: int | None) -> Array:
    """x, quantized with a scale for each row (of a convolution: each image), times a kernel."""
    import qwix

    kernel = qwix.QArray(kernel["int8_dynamic"], kernel[SCALES])
    rows = range(x.ndim - 1) if stride is None else (0,)
    x = qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=tuple(rows))
    if stride is None:
        return qwix.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    strides = (stride, stride)
    return qwix.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=NHWC)
