"""Parameters out of files of another layout and into them.

They are read one after another, each straight to its devices: only the parts that this host's
devices hold are read, and one parameter's tensors are let go before the next one's are read.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.storage.layout import Layout, Tensors, tensor_shapes
from imagen_jax.storage.quantized import stored_shapes
from imagen_jax.storage.safetensors import SHARD_BYTES, kept_dtype, open_tensors, save_params
from imagen_jax.storage.tensor_file import Index
from imagen_jax.storage.trees import flatten, shape_differences, unflatten
from imagen_jax.typing import Params

# Path of a parameter and its shape to where it is to lie; in reading files also to what makes it
# there, of a function that reads a block of it.
ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | Callable[..., Any]]

# XLA takes host memory over without a copy where it begins at such an address (CPU).
ALIGNMENT = 64
# Side of the tiles in which a transposed matrix is copied: two of them fit a core's cache.
TILE = 128


@runtime_checkable
class Tensor(Protocol):
    """What can be read by parts, a slice for each axis: numpy's arrays, and tensors in files."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Index) -> np.ndarray: ...


def check_shapes(
    where: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError that names what is missing, what is unused and what has another shape."""
    if problems := shape_differences(wanted, found):
        raise ValueError(f"{where} does not fit the model. {problems}.")


def _copy(target: np.ndarray, value: np.ndarray) -> None:
    """target[...] = value, cast; a transposed matrix by tiles, two to three times as fast."""
    if value.ndim < 2 or value.flags.c_contiguous:
        target[...] = value
    elif value.ndim > 2:
        for inner, part in zip(target, value, strict=True):
            _copy(inner, part)
    else:
        for i in range(0, value.shape[0], TILE):
            for j in range(0, value.shape[1], TILE):
                tile = slice(i, i + TILE), slice(j, j + TILE)
                target[tile] = value[tile]


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that XLA takes over without a copy, its values not set."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _within(part: Index, block: Index) -> Index:
    """A part of a parameter as an index into a block that contains it."""
    pairs = zip(part, block, strict=True)
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in pairs)


def _read_block(
    tensors: Tensors, files: Mapping[str, Tensor], shape: tuple[int, ...], dtype: Any, block: Index
) -> np.ndarray:
    """The part `block` (slices with bounds) of a parameter of this shape."""
    array = aligned(tuple(bounds.stop - bounds.start for bounds in block), dtype)
    for name, place in tensors.places(shape).items():
        pairs = zip(block, place, strict=True)
        part = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)
        if any(bounds.start >= bounds.stop for bounds in part):
            continue
        target = array[(*_within(part, block), ...)]  # the ellipsis keeps a scalar a view
        theirs = tensors.in_their_order(_within(part, place), slice(0, 1))
        value = np.asarray(files[name][theirs])
        if tensors.axes is not None:
            value = value.transpose(tensors.axes)
        _copy(target, value.reshape(target.shape))  # but for axes of length 1, the shape it has
    return array


def _place(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    read_block: Callable[[Index], np.ndarray],
) -> jax.Array:
    blocks: dict[tuple, np.ndarray] = {}  # devices that hold the same part share its reading

    def read(index: Index) -> np.ndarray:
        key = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if key not in blocks:
            blocks[key] = read_block(tuple(slice(*bounds) for bounds in key))
        return blocks[key]

    # Ready before the next one is read: a transfer under way keeps its host memory.
    return jax.make_array_from_callback(shape, sharding, read, dtype=dtype).block_until_ready()


def read_layout(
    layout: Layout,
    files: Mapping[str, Tensor],
    shapes: Params,
    *,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
    where: str = "The file",
    ignored: tuple[str, ...] = (),
) -> Params:
    """The parameters that `layout` describes, read one after another.

    Args:
        files: the tensors by name.
        shapes: the tree that the model expects, of anything with a `shape` (`jax.eval_shape`).
        dtype: of the floating-point parameters; None leaves them as they are in the files.
        sharding: where each parameter is to lie; None gives numpy arrays.
        where: the files' name for messages.
        ignored: beginnings of the names of tensors that may be in the files unused.

    Raises:
        ValueError: tensors are missing, unused or misshapen; the message lists them.
    """
    sizes = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    found = {name: files[name].shape for name in files if not name.startswith(ignored)}
    check_shapes(where, tensor_shapes(layout, sizes), found)
    flat = {}
    for path, shape in sizes.items():
        tensors = layout[path]
        theirs = {np.dtype(files[name].dtype) for name in tensors.names}
        own = theirs.pop() if len(theirs) == 1 else jnp.result_type(*theirs)
        target = kept_dtype(own, dtype, path)
        read = functools.partial(_read_block, tensors, files, shape)
        place = None if sharding is None else sharding(path, shape)
        if place is None:
            flat[path] = read(target, tuple(slice(0, size) for size in shape))
        elif isinstance(place, jax.sharding.Sharding):
            flat[path] = _place(shape, target, place, functools.partial(read, target))
        else:
            flat[path] = place(functools.partial(read, own))
    return unflatten(flat)


def read_params(
    directory: str | os.PathLike,
    name: str,
    shapes: Params,
    *,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
) -> Params:
    """Reads what `save_params` wrote of a tree, quantized kernels as they are; arguments and errors
    as of `read_layout`.
    """
    files = open_tensors(directory, name)
    shapes = stored_shapes(shapes, {path: tensor.shape for path, tensor in files.items()})
    return read_layout(
        {path: Tensors((path,)) for path in flatten(shapes)},
        files,
        shapes,
        dtype=dtype,
        sharding=sharding,
        where=os.fspath(Path(directory) / f"{name}.safetensors"),
    )


def write_layout(layout: Layout, params: Params) -> dict[str, np.ndarray]:
    """Our parameters as the tensors of another layout, by name: the inverse of `read_layout`.

    The tensors are views of the parameters where those are numpy arrays or lie on the CPU.

    Raises:
        ValueError: the parameters are not those of the layout.
    """
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    shapes = tensor_shapes(layout, {path: value.shape for path, value in flat.items()})
    written = {}
    for path, tensors in layout.items():
        for name, place in tensors.places(flat[path].shape).items():
            axes = tensors.axes or range(len(shapes[name]))
            part = flat[path][place].reshape([shapes[name][axis] for axis in axes])
            written[name] = part.transpose(np.argsort(axes))
    return written


def save_layout(
    directory: str | os.PathLike,
    name: str,
    layout: Layout,
    params: Params,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    variant: str | None = None,
) -> list[Path]:
    """Saves parameters as Hugging Face's libraries do, and returns the files' paths.

    Args:
        name: of the files: "diffusion_pytorch_model" for diffusers, "model" for transformers.
        dtype: of the floating-point tensors on disk; None leaves them as they are.
        max_shard_bytes: a larger set of tensors becomes shards and an index.
        variant: such as "fp16", for NAME.fp16.safetensors.
    """
    tensors = write_layout(layout, params)
    return save_params(directory, name, tensors, dtype, max_shard_bytes, "pt", variant)
