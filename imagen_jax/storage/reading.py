"""Parameters out of files of another layout, tensor by tensor, each straight to its devices.

Of every parameter only the parts that this host's devices hold are read; one parameter's tensors
are let go before the next one's are read.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.storage.layout import Layout, Tensors, joined_shape, kept_axes, part_shape
from imagen_jax.storage.safetensors import is_float
from imagen_jax.storage.tensor_file import Index
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.typing import Params

# Path of a parameter and its shape to where it shall lie.
ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# XLA takes host memory over without a copy where it begins at such an address (CPU).
ALIGNMENT = 64
# Side of the tiles in which a transposed matrix is copied: two of them fit a core's cache.
TILE = 128


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors that can be read by parts: `TensorFiles`, a T5X checkpoint, `HostTensors`."""

    def __iter__(self): ...

    def shape(self, tensor: str) -> tuple[int, ...]: ...

    def dtype(self, tensor: str) -> np.dtype: ...

    def read(self, tensor: str, index: Index | None = None) -> np.ndarray: ...


class HostTensors:
    """Arrays in memory as a TensorSource."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}

    def __iter__(self):
        return iter(self._arrays)

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._arrays[tensor].shape

    def dtype(self, tensor: str) -> np.dtype:
        return self._arrays[tensor].dtype

    def read(self, tensor: str, index: Index | None = None) -> np.ndarray:
        return self._arrays[tensor][(*(index or ()), ...)]  # the ellipsis keeps scalars arrays


def _in_our_order(tensors: Tensors, shape: tuple[int, ...], part: tuple[int, ...]):
    """The shape of one of their tensors as ours; what is wrong with it instead, as a string."""
    axes = tensors.axes or tuple(range(len(shape)))
    if len(axes) != len(shape):
        return f"has {len(shape)} axes {shape}, not {len(axes)}"
    permuted = tuple(shape[axis] for axis in axes)
    return part if kept_axes(permuted, part) is not None else permuted


def _misfit(path: str, tensors: Tensors, files: TensorSource, wanted: tuple[int, ...]) -> str:
    """What is wrong with the tensors of one parameter; "" where they fit."""
    part = part_shape(tensors, wanted)
    found = {name: _in_our_order(tensors, files.shape(name), part) for name in tensors.names}
    for name, shape in found.items():
        if isinstance(shape, str):
            return f"{name} {shape}"
    if len(set(found.values())) > 1:
        odd = next(name for name, shape in found.items() if shape != found[tensors.names[0]])
        return (
            f"the tensors of {path} differ in shape: {tensors.names[0]} is "
            f"{files.shape(tensors.names[0])}, {odd} is {files.shape(odd)}"
        )
    joined = joined_shape(tensors, found[tensors.names[0]])
    return "" if joined == wanted else f"{path} is {joined}, not {wanted}"


def check_layout(
    where: str,
    layout: Layout,
    files: TensorSource,
    shapes: Mapping[str, tuple[int, ...]],
    ignored: tuple[str, ...] = (),
) -> None:
    """One ValueError that lists tensors missing from the files, unused in them, and misshapen.

    Args:
        where: the files' name for the message.
        shapes: of our parameters by path.
        ignored: beginnings of the names of tensors that may be in the files unused.
    """
    if set(layout) != set(shapes):
        odd = name_some(sorted(set(layout) ^ set(shapes)))
        raise ValueError(f"The layout and the model disagree about the parameters {odd}.")
    wanted = {name for tensors in layout.values() for name in tensors.names}
    found = {name for name in files if not name.startswith(ignored)}
    whole = [path for path in sorted(layout) if found.issuperset(layout[path].names)]
    misfits = [_misfit(path, layout[path], files, shapes[path]) for path in whole]
    kinds = {
        "missing": sorted(wanted - found),
        "unused": sorted(found - wanted),
        "misshapen": [misfit for misfit in misfits if misfit],
    }
    problems = [
        f"{len(names)} {kind}: {name_some(names)}" for kind, names in kinds.items() if names
    ]
    if problems:
        raise ValueError(f"{where} does not fit the model. " + "; ".join(problems) + ".")


def _their_index(
    tensors: Tensors, shape: tuple[int, ...], part: tuple[int, ...], index: Index
) -> Index:
    """An index into a part, in our order, as an index into their tensor of this shape."""
    axes = tensors.axes or tuple(range(len(shape)))
    theirs = [slice(0, 1)] * len(shape)
    kept = kept_axes([shape[axis] for axis in axes], part)
    for bounds, position in zip(index, kept, strict=True):
        theirs[axes[position]] = bounds
    return tuple(theirs)


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


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _pieces(tensors: Tensors, shape: tuple[int, ...], index: Index):
    """The tensors that a block `index` of a parameter needs: name, index into it, place in it."""
    whole = (slice(None),) * len(index)
    if tensors.join == "stack":
        for place, layer in enumerate(range(index[0].start, index[0].stop)):
            yield tensors.names[layer], index[1:], (place,)
    elif tensors.join == "concat":
        width = shape[-1] // len(tensors.names)
        for number, name in enumerate(tensors.names):
            start = max(index[-1].start, number * width)
            stop = min(index[-1].stop, (number + 1) * width)
            if start < stop:
                inner = slice(start - number * width, stop - number * width)
                place = slice(start - index[-1].start, stop - index[-1].start)
                yield name, (*index[:-1], inner), (*whole[:-1], place)
    else:
        yield tensors.names[0], index, whole


def _read_block(
    tensors: Tensors, files: TensorSource, shape: tuple[int, ...], index: Index, dtype: np.dtype
) -> np.ndarray:
    """The block `index` (slices with bounds) of a parameter of this shape."""
    block = _aligned(tuple(bounds.stop - bounds.start for bounds in index), dtype)
    part = part_shape(tensors, shape)
    for name, inner, place in _pieces(tensors, shape, index):
        theirs = files.shape(name)
        value = files.read(name, _their_index(tensors, theirs, part, inner))
        target = block[(*place, ...)]  # the ellipsis keeps a scalar a view
        if tensors.axes is not None:
            value = value.transpose(tensors.axes)
        _copy(target, value.reshape(target.shape))  # but for axes of length 1, the shape it has
    return block


def _target_dtype(tensors: Tensors, files: TensorSource, dtype: str | None) -> np.dtype:
    theirs = [files.dtype(name) for name in tensors.names]
    common = theirs[0] if len(set(theirs)) == 1 else np.dtype(jnp.result_type(*theirs))
    return np.dtype(jnp.dtype(dtype)) if dtype is not None and is_float(common) else common


def _place(
    tensors: Tensors,
    files: TensorSource,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    blocks: dict[tuple, np.ndarray] = {}  # devices that hold the same part share its reading

    def read(index: Index) -> np.ndarray:
        bounds = tuple(
            slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True)
        )
        key = tuple((part.start, part.stop) for part in bounds)
        if key not in blocks:
            blocks[key] = _read_block(tensors, files, shape, bounds, dtype)
        return blocks[key]

    # Ready before the next one is read: a transfer under way keeps its host memory.
    return jax.make_array_from_callback(shape, sharding, read, dtype=dtype).block_until_ready()


def read_layout(
    layout: Layout,
    files: TensorSource,
    shapes: Params,
    *,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
    where: str = "The file",
    ignored: tuple[str, ...] = (),
) -> Params:
    """The parameters that `layout` describes, read one after another.

    Args:
        shapes: the tree that the model expects, of anything with a `shape` (`jax.eval_shape`).
        dtype: of the floating-point parameters; None leaves them as they are in the files.
        sharding: where each parameter shall lie; None gives numpy arrays.
        where: the files' name for messages.
        ignored: beginnings of the names of tensors that may be in the files unused.

    Raises:
        ValueError: tensors are missing, unused or misshapen; the message lists them.
    """
    sizes = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    check_layout(where, layout, files, sizes, ignored)
    flat = {}
    for path, shape in sizes.items():
        tensors = layout[path]
        target = _target_dtype(tensors, files, dtype)
        if sharding is None:
            whole = tuple(slice(0, size) for size in shape)
            flat[path] = _read_block(tensors, files, shape, whole, target)
        else:
            flat[path] = _place(tensors, files, shape, target, sharding(path, shape))
    return unflatten(flat)
