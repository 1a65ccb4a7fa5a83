"""The tensors of a T5X checkpoint: a msgpack file, and zarr directories beside it.

Such a file comes from outside and is read as data: of msgpack's extension types only flax's arrays
are taken, TensorStore only ever opens a zarr directory inside the checkpoint, whatever the file
says.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.safetensors import check_inside
from imagen_jax.storage.tensor_file import Index

CHECKPOINT = "checkpoint"
# The file holds names and small arrays where it is partitioned; without that, all arrays and the
# optimizer's.
MAX_BYTES = 8 * 2**30
MAX_NAME_BYTES = 4096
MAX_ENTRIES = 100_000
MAX_AXES = 8
MAX_AXIS = 2**24
MAX_CHUNK_BYTES = 2**31
# flax.serialization's extension types: an array, a scalar.
ARRAY_TYPES = (1, 3)
DTYPES = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "int8": np.int8,
    "uint16": np.uint16,
    "int16": np.int16,
    "uint32": np.uint32,
    "int32": np.int32,
    "uint64": np.uint64,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
# A zarr array's own names for those of them that parameters have.
ZARR_DTYPES = {
    "<f2": np.float16,
    "<f4": np.float32,
    "<f8": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
}
COMPRESSORS = (None, "gzip", "zlib", "blosc", "zstd", "bz2")
# Where a checkpoint was written to; its arrays lie beside it all the same. T5X puts this bucket's
# name in place of the real one.
WRITTEN_BY = ("file", "gfile")
BUCKET = "t5x-dummy-bucket"
# flax splits arrays of more than 1 GiB.
CHUNKED = "__msgpack_chunked_array__"


def _array(code: int, data: bytes) -> np.ndarray:
    """flax's extension types 1 and 3: (shape, name of the dtype, bytes in row-major order)."""
    import msgpack

    if code not in ARRAY_TYPES:
        raise ValueError(f"it has a value of msgpack's extension type {code}, which is no array")
    parts = msgpack.unpackb(data, raw=True, max_array_len=MAX_AXES, max_map_len=0, max_ext_len=0)
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[0], list):
        raise ValueError("it has an array that is not (shape, dtype, bytes)")
    shape, name, content = parts
    name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    if name not in DTYPES:
        raise ValueError(f"it has an array of dtype {name[:40]!r}; known are {', '.join(DTYPES)}")
    sound = all(isinstance(size, int) and size >= 0 for size in shape)
    dtype = np.dtype(DTYPES[name])
    if not sound or not isinstance(content, bytes):
        raise ValueError(f"it has an array of shape {str(shape)[:80]}")
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"it has an array of shape {tuple(shape)} and dtype {name} in {len(content)} bytes"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    values = {}
    for key, value in pairs:
        if not isinstance(key, str) or key in values:
            raise ValueError(f"it has the name {str(key)[:80]!r} twice, or not as text")
        values[key] = value
    return values


def read_msgpack(path: Path) -> dict[str, Any]:
    """The tree in a flax msgpack file: dicts, plain values and numpy arrays, nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, damaged, or holds anything else.
    """
    import msgpack

    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    size = path.stat().st_size
    kind = "a T5X checkpoint's msgpack file"
    if size > MAX_BYTES:
        raise ValueError(f"{path} is not {kind}: it has {size} bytes, more than {MAX_BYTES}.")
    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_object,
            ext_hook=_array,
            max_str_len=MAX_NAME_BYTES,
            max_bin_len=MAX_NAME_BYTES,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except (ValueError, msgpack.UnpackException) as error:
        # Of msgpack's own errors some have no text.
        reason = str(error) or {"StackError": "it is nested too deeply"}.get(
            type(error).__name__, "it is no msgpack"
        )
        raise ValueError(f"{path} is not {kind}: {reason}.") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not {kind}: it holds a {type(tree).__name__}, not a tree.")
    return tree


def _joined(chunked: Mapping[str, Any]) -> np.ndarray:
    """An array that flax split into flat pieces."""
    try:
        shape = [chunked["shape"][str(i)] for i in range(len(chunked["shape"]))]
        pieces = [chunked["chunks"][str(i)] for i in range(len(chunked["chunks"]))]
        return np.concatenate(pieces).reshape(shape)
    except (KeyError, TypeError, ValueError):
        raise ValueError("it is an array in pieces that do not fit together") from None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and leaf: an array, or the TensorStore spec of one."""
    for key, value in tree.items():
        if isinstance(value, dict) and not ({"driver", "kvstore"} <= set(value)):
            if CHUNKED in value:
                yield prefix + key, value
            else:
                yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _spec_folder(spec: Mapping[str, Any]) -> str:
    """The zarr directory that a TensorStore spec names, a plain name beside the checkpoint."""
    if spec["driver"] != "zarr":
        raise ValueError(
            f"it asks for TensorStore's driver {str(spec['driver'])[:40]!r}; 'zarr' is read"
        )
    kvstore = spec["kvstore"]
    if not isinstance(kvstore, dict):
        raise ValueError(
            f"its kvstore is {str(kvstore)[:80]!r}; only a directory beside the checkpoint is read"
        )
    driver = kvstore.get("driver")
    if driver not in WRITTEN_BY and (driver, kvstore.get("bucket")) != ("gcs", BUCKET):
        raise ValueError(
            f"its kvstore is {str(kvstore)[:120]}; only a directory beside the checkpoint is read"
        )
    path = kvstore.get("path", spec.get("path"))
    plain = path.removesuffix("/") if isinstance(path, str) else ""
    if plain in ("", ".", "..") or any(character in plain for character in "/\\:\0"):
        raise ValueError(f"its path is {path!r}; it must be a plain name beside the checkpoint")
    return plain


def _zarr_metadata(folder: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a zarr directory, after a look at what decides how it is read."""
    path, kind = folder / ".zarray", "the metadata of a zarr array"
    values = read_object(path, kind)
    shape, chunks = values.get("shape"), values.get("chunks")
    for name, sizes, least in (("shape", shape, 0), ("chunks", chunks, 1)):
        if (
            not isinstance(sizes, list)
            or len(sizes) > MAX_AXES
            or not all(isinstance(size, int) and least <= size <= MAX_AXIS for size in sizes)
        ):
            raise ValueError(f"{path} is not {kind}: its {name} is {str(sizes)[:80]}.")
    dtype, compressor = values.get("dtype"), values.get("compressor")
    if not isinstance(dtype, str) or dtype not in ZARR_DTYPES:
        raise ValueError(
            f"{path} has the dtype {str(dtype)[:40]!r}; known are {', '.join(ZARR_DTYPES)}."
        )
    number = np.dtype(ZARR_DTYPES[dtype])
    if len(chunks) != len(shape) or math.prod(chunks) * number.itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"{path} splits shape {shape} into chunks of {chunks}.")
    compressor = compressor.get("id") if isinstance(compressor, dict) else compressor
    if compressor is not None and compressor not in COMPRESSORS:
        raise ValueError(
            f"{path} is compressed by {str(compressor)[:40]!r}; known are {COMPRESSORS}."
        )
    if values.get("filters"):
        raise ValueError(f"{path} asks for filters, {str(values['filters'])[:80]}; none are known.")
    needed = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
    held = sum(file.is_file() and file.name[0] != "." for file in folder.rglob("*"))
    if held < needed:
        raise ValueError(f"{folder} has {held} of the {needed} chunks of its array.")
    return tuple(shape), number


class T5XTensors:
    """The parameters in a checkpoint by name ("encoder/layers_0/mlp/wo/kernel"), read by parts.

    Each array of `directory/checkpoint` is inline, or in a zarr directory beside it.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        path = self.directory / CHECKPOINT
        tree = read_msgpack(path)
        # The tree of a train state, or of its optimizer, as T5X's versions write it.
        optimizer = tree.get("optimizer", tree)
        target = optimizer.get("target") if isinstance(optimizer, dict) else None
        if not isinstance(target, dict):
            raise ValueError(f"{path} holds no parameters: it has no tree optimizer/target.")
        self._arrays: dict[str, np.ndarray] = {}
        self._folders: dict[str, tuple[Path, tuple[int, ...], np.dtype]] = {}
        for name, leaf in _leaves(target):
            if name.startswith("decoder/"):
                continue  # nothing here reads it: its arrays may be left away
            try:
                self._add(name, leaf)
            except ValueError as error:
                raise ValueError(f"{path}, {name}: {str(error).removesuffix('.')}.") from None
        self._stores: dict[str, Any] = {}

    def _add(self, name: str, leaf: Any) -> None:
        if isinstance(leaf, dict) and CHUNKED in leaf:
            leaf = _joined(leaf)
        if isinstance(leaf, np.ndarray):
            self._arrays[name] = leaf
            return
        if not isinstance(leaf, dict):
            raise ValueError(f"it is a {type(leaf).__name__}, not an array")
        folder = self.directory / _spec_folder(leaf)
        if not folder.is_dir():
            raise FileNotFoundError(f"The array {name} is missing: there is no directory {folder}.")
        check_inside(folder, self.directory)
        shape, dtype = _zarr_metadata(folder)
        metadata = leaf.get("metadata")
        told = metadata.get("shape") if isinstance(metadata, dict) else None
        if told is not None and told != list(shape):
            raise ValueError(f"its shape is {told}, but {folder} holds {shape}")
        self._folders[name] = folder, shape, dtype

    def __iter__(self) -> Iterator[str]:
        yield from self._arrays
        yield from self._folders

    def shape(self, tensor: str) -> tuple[int, ...]:
        found = self._arrays.get(tensor)
        return self._folders[tensor][1] if found is None else found.shape

    def dtype(self, tensor: str) -> np.dtype:
        found = self._arrays.get(tensor)
        return self._folders[tensor][2] if found is None else found.dtype

    def read(self, tensor: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` (a slice for each axis) selects."""
        if tensor in self._arrays:
            return self._arrays[tensor][(*(index or ()), ...)]
        import tensorstore

        folder, shape, _ = self._folders[tensor]
        bounds = [part.indices(size)[:2] for part, size in zip(index or (), shape, strict=False)]
        # A spec of our own making; a chunk that is not there is a fault, not zeros.
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(folder.resolve()) + "/"},
            "fill_missing_data_reads": False,
        }
        try:
            if tensor not in self._stores:
                self._stores[tensor] = tensorstore.open(spec, open=True, read=True).result()
            store = self._stores[tensor]
            part = store[tuple(slice(*bound) for bound in bounds)] if bounds else store
            return np.asarray(part.read().result())
        except (ValueError, OSError) as error:
            reason = str(error).split("\n")[0].removesuffix(".")
            raise ValueError(f"{folder} cannot be read as a zarr array: {reason}.") from None
