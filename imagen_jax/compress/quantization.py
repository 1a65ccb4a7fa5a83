"""Kernels as int8 or int4 with scales, by qwix; what a model is quantized to is said here alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.compress.kernels import takes
from imagen_jax.devices.sharding import STACKED
from imagen_jax.models.quantized import pack
from imagen_jax.storage.codec import nearest
from imagen_jax.storage.layout_files import ShardingOf, aligned
from imagen_jax.storage.quantized import (
    SCALES,
    SCHEMES,
    is_quantized,
    numbers_shape,
    scheme_of,
    schemes_in,
)
from imagen_jax.storage.tensor_file import Index
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.typing import Params

GROUP = 64  # inputs that share a scale in int4


def check_scheme(scheme: str) -> None:
    """ValueError, with the nearest known one, for a scheme that there is none of."""
    if scheme not in SCHEMES:
        raise ValueError(f"quantize is {scheme!r}{nearest(str(scheme), SCHEMES)}")


def import_qwix() -> Any:
    """qwix; ImportError says how to install it."""
    try:
        import qwix
    except ImportError as error:
        raise ImportError(
            f"Quantizing needs {error.name} (pip install 'imagen_jax[quantize]'); a model that is "
            "stored quantized is read without it."
        ) from None
    return qwix


def quantize_kernel(
    path: str,
    shape: tuple[int, ...],
    scheme: str,
    layer: Callable[[int | None], np.ndarray | jax.Array],
) -> dict[str, np.ndarray]:
    """One kernel [..., in, out] in a scheme: {scheme: numbers, "scales": scales}, on the host.

    Args:
        layer: gives the kernel of one of the layers that are stacked, the only floats that are
            there at a time; or, for None, one that is not stacked.

    Raises:
        ValueError: int4 cannot pack the kernel's inputs in pairs.
        ImportError: qwix is missing.
    """
    if scheme == "int4" and shape[-2] % 2:
        raise ValueError(f"{path} has {shape[-2]} inputs, an odd number: int4 packs them in pairs.")
    if not STACKED.search(path):
        return _quantize_layer(layer(None), scheme)
    made = {}
    for number in range(shape[0]):
        for name, values in _quantize_layer(layer(number), scheme).items():
            if number == 0:
                made[name] = aligned((shape[0], *values.shape), values.dtype)
            made[name][number] = values
    return made


def _group(inputs: int) -> int:
    """How many inputs share a scale in int4: all where they do not split."""
    return GROUP if inputs % GROUP == 0 else inputs


def _quantize_layer(kernel: np.ndarray | jax.Array, scheme: str) -> dict[str, np.ndarray]:
    qwix, axis, inputs = import_qwix(), kernel.ndim - 2, kernel.shape[-2]
    four = scheme == "int4"
    found = qwix.quantize(
        jnp.asarray(kernel, jnp.float32),
        jnp.int4 if four else jnp.int8,
        channelwise_axes=(kernel.ndim - 1,),
        tiled_axes={axis: _group(inputs)} if four else {},
    )
    numbers = found.qvalue.astype(jnp.int8)
    numbers = pack(numbers) if four else numbers
    return {scheme: np.asarray(numbers), SCALES: np.asarray(found.scale)}


def quantize(params: Params, scheme: str, place: ShardingOf | None = None) -> Params:
    """A tree with its kernels in a scheme. Those that are in one already stay as they are, but that
    int8 and int8_dynamic, which are the same numbers, become each other.

    Args:
        place: where a parameter is to lie; None gives numpy arrays for those that are quantized.

    Raises:
        ValueError: an unknown scheme; kernels are in another one, or there are none to quantize.
        ImportError: qwix is missing.
    """
    check_scheme(scheme)
    flat = {}
    for path, leaf in flatten(renamed(params, scheme)).items():
        if not takes(path, leaf.shape):
            flat[path] = leaf
            continue
        made = quantize_kernel(path, leaf.shape, scheme, partial(_layer_of, leaf))
        flat |= {f"{path}/{name}": _placed(f"{path}/{name}", made[name], place) for name in made}
    tree = unflatten(flat)
    if not schemes_in(tree):
        raise ValueError(f"There is no kernel to quantize among {name_some(sorted(flat))}.")
    return tree


def _layer_of(kernel: Any, number: int | None) -> Any:
    return kernel if number is None else kernel[number]


def _placed(path: str, values: np.ndarray, place: ShardingOf | None) -> np.ndarray | jax.Array:
    return values if place is None else jax.device_put(values, place(path, values.shape))


def renamed(params: Params, scheme: str) -> Params:
    """A tree whose quantized kernels, int8 or int8_dynamic, have the other of these names.

    Raises:
        ValueError: they are in another scheme.
    """
    others = schemes_in(params) - {scheme}
    if not others:
        return params
    if not {scheme, *others} <= {"int8", "int8_dynamic"}:
        raise ValueError(f"The weights are {', '.join(sorted(others))} already, not {scheme}.")

    def rename(leaf: Any) -> Any:
        found = scheme_of(leaf)
        return leaf if found is None else {scheme: leaf[found], SCALES: leaf[SCALES]}

    return jax.tree.map(rename, params, is_leaf=is_quantized)


def quantized_shapes(shapes: Params, scheme: str, place: ShardingOf | None = None) -> Params:
    """The shapes that `quantize` gives of a tree of shapes."""
    flat = {}
    for path, leaf in flatten(renamed(shapes, scheme)).items():
        if not takes(path, leaf.shape):
            flat[path] = leaf
            continue
        outer = (leaf.shape[0],) if STACKED.search(path) else ()
        ones = (1,) * (len(leaf.shape) - len(outer) - 2)
        groups = leaf.shape[-2] // _group(leaf.shape[-2]) if scheme == "int4" else 1
        parts = {
            scheme: (numbers_shape(leaf.shape, scheme), jnp.int8),
            SCALES: ((*outer, *ones, groups, leaf.shape[-1]), jnp.float32),
        }
        for name, (shape, dtype) in parts.items():
            where = None if place is None else place(f"{path}/{name}", shape)
            flat[f"{path}/{name}"] = jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    return unflatten(flat)


def quantizing(place: ShardingOf, scheme: str) -> ShardingOf:
    """`place` for reading files: a kernel is quantized while it is read, a layer at a time."""

    def choose(path: str, shape: tuple[int, ...]) -> Any:
        if not takes(path, shape):
            return place(path, shape)
        return partial(_read_quantized, path, scheme, place, shape)

    return choose


def _read_quantized(
    path: str,
    scheme: str,
    place: ShardingOf,
    shape: tuple[int, ...],
    read: Callable[[Index], np.ndarray],
) -> Params:
    whole = tuple(slice(0, size) for size in shape)

    def layer(number: int | None) -> np.ndarray:
        return read(whole) if number is None else read((slice(number, number + 1), *whole[1:]))[0]

    made = quantize_kernel(path, shape, scheme, layer)
    return {name: _placed(f"{path}/{name}", values, place) for name, values in made.items()}
