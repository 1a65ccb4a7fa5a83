"""The tensors of a T5X checkpoint: a msgpack file, and zarr directories beside it.

Such a file comes from outside and is read as data: of msgpack's extension types only flax's arrays
are taken, TensorStore only ever opens a zarr directory inside the checkpoint, whatever the file
says.
"""

import functools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.layout_files import Tensor
from imagen_jax.storage.safetensors import check_inside
from imagen_jax.storage.tensor_file import Index, are_sizes
from imagen_jax.storage.wrong_files import brief, refusal

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
NO_FILTERS = ("none",)
COMPRESSORS = ("nothing", "gzip", "zlib", "blosc", "zstd", "bz2")
# Where a checkpoint was written to; its arrays lie beside it all the same. T5X puts this bucket's
# name in place of the real one.
WRITTEN_BY = ("file", "gfile")
BUCKET = "t5x-dummy-bucket"
# flax splits arrays of more than 1 GiB.
CHUNKED = "__msgpack_chunked_array__"
SPEC = {"driver", "kvstore"}  # what every TensorStore spec has


def _array(code: int, data: bytes) -> np.ndarray:
    """flax's extension types 1 and 3: (shape, name of the dtype, bytes in row-major order)."""
    if code not in ARRAY_TYPES:
        raise ValueError(
            f"it has a value of msgpack's extension type {code}, which is not an array"
        )
    parts = msgpack.unpackb(data, raw=True, max_array_len=MAX_AXES, max_map_len=0, max_ext_len=0)
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[0], list):
        raise ValueError("it has an array that is not (shape, dtype, bytes)")
    shape, name, content = parts
    name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    if name not in DTYPES:
        raise ValueError(f"it has an array of dtype {name[:40]!r}; known are {', '.join(DTYPES)}")
    if not are_sizes(shape, MAX_AXES) or not isinstance(content, bytes):
        raise ValueError(f"it has an array of shape {str(shape)[:80]}")
    if len(content) != math.prod(shape) * np.dtype(DTYPES[name]).itemsize:
        raise ValueError(
            f"it has an array of shape {tuple(shape)} and dtype {name} in {len(content)} bytes"
        )
    return np.frombuffer(content, DTYPES[name]).reshape(shape)


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
    size = path.stat().st_size
    try:
        if size > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, more than {MAX_BYTES}")
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
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}, not a tree")
    except (ValueError, msgpack.UnpackException) as error:
        # Of msgpack's own errors some have no text.
        reason = str(error) or {"StackError": "it is nested too deeply"}.get(
            type(error).__name__, "it is not msgpack"
        )
        raise ValueError(refusal(path, "a T5X checkpoint's msgpack file", reason)) from None
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
        if not isinstance(value, dict) or CHUNKED in value or set(value) >= SPEC:
            yield prefix + key, value
        else:
            yield from _leaves(value, f"{prefix}{key}/")


def _spec_folder(spec: Mapping[str, Any]) -> str:
    """The zarr directory that a TensorStore spec names, a plain name beside the checkpoint."""
    if spec["driver"] != "zarr":
        raise ValueError(
            f"it asks for TensorStore's driver {str(spec['driver'])[:40]!r}; 'zarr' is read"
        )
    kvstore = spec["kvstore"] if isinstance(spec["kvstore"], dict) else {}
    written_by = kvstore.get("driver"), kvstore.get("bucket")
    if written_by[0] not in WRITTEN_BY and written_by != ("gcs", BUCKET):
        raise ValueError(
            f"its kvstore is {str(spec['kvstore'])[:120]}; only a directory beside the checkpoint "
            "is read"
        )
    path = kvstore.get("path", spec.get("path"))
    plain = path.removesuffix("/") if isinstance(path, str) else ""
    if plain in ("", ".", "..") or any(character in plain for character in "/\\:\0"):
        raise ValueError(f"its path is {path!r}; it must be a plain name beside the checkpoint")
    return plain


@dataclass(frozen=True)
class ZarrArray:
    """An array in a zarr directory; `array[index]` reads the part that `index`, a slice for each
    axis, selects.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @functools.cached_property
    def _store(self) -> Any:
        import tensorstore

        # A spec of our own making; a chunk that is not there is a fault, not zeros.
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(self.folder.resolve()) + "/"},
            "fill_missing_data_reads": False,
        }
        return tensorstore.open(spec, open=True, read=True).result()

    def __getitem__(self, index: Index) -> np.ndarray:
        pairs = zip(index, self.shape, strict=False)
        bounds = tuple(slice(*part.indices(size)[:2]) for part, size in pairs)
        try:
            return np.asarray(self._store[(*bounds, ...)].read().result())
        except (ValueError, OSError) as error:
            reason = brief(str(error).split("\n")[0])
            raise ValueError(f"{self.folder} cannot be read as a zarr array: {reason}.") from None


def _open_zarr(folder: Path) -> ZarrArray:
    """The array in a directory, after a look at what decides how it is read."""
    path = folder / ".zarray"
    values = read_object(path, "the metadata of a zarr array")
    shape, chunks, dtype = values.get("shape"), values.get("chunks"), values.get("dtype")
    for name, sizes, least in (("shape", shape, 0), ("chunks", chunks, 1)):
        if not are_sizes(sizes, MAX_AXES) or not all(least <= n <= MAX_AXIS for n in sizes):
            raise ValueError(f"{path}: its {name} is {str(sizes)[:80]}.")
    compressor = values.get("compressor")
    compressor = compressor.get("id") if isinstance(compressor, dict) else compressor
    filters = values.get("filters")
    for what, value, known in (
        ("has the dtype", dtype, ZARR_DTYPES),
        ("is compressed by", compressor or "nothing", COMPRESSORS),
        ("asks for the filters", filters or "none", NO_FILTERS),
    ):
        if str(value) not in known:
            raise ValueError(f"{path} {what} {str(value)[:80]!r}; known are {', '.join(known)}.")
    array = ZarrArray(folder, tuple(shape), np.dtype(ZARR_DTYPES[dtype]))
    if len(chunks) != len(shape) or math.prod(chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"{path} splits shape {shape} into chunks of {chunks}.")
    needed = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
    held = sum(file.is_file() and file.name[0] != "." for file in folder.rglob("*"))
    if held < needed:
        raise ValueError(f"{folder} has {held} of the {needed} chunks of its array.")
    return array


def _open_leaf(directory: Path, name: str, leaf: Any) -> Tensor:
    if isinstance(leaf, np.ndarray):
        return leaf
    if not isinstance(leaf, dict):
        raise ValueError(f"it is a {type(leaf).__name__}, not an array")
    if CHUNKED in leaf:
        return _joined(leaf)
    folder = directory / _spec_folder(leaf)
    if not folder.is_dir():
        raise FileNotFoundError(f"The array {name} is missing: there is no directory {folder}.")
    check_inside(folder, directory)
    array, metadata = _open_zarr(folder), leaf.get("metadata")
    told = metadata.get("shape") if isinstance(metadata, dict) else None
    if told is not None and told != list(array.shape):
        raise ValueError(f"its shape is {told}, but {folder} holds {array.shape}")
    return array


def read_checkpoint(directory: str | os.PathLike) -> dict[str, Tensor]:
    """The parameters in a checkpoint by name ("encoder/layers_0/mlp/wo/kernel"), without the
    decoder's; to be read by parts.

    Each array of `directory/checkpoint` is inline, or in a zarr directory beside it.

    Raises:
        FileNotFoundError: an array is missing.
        ValueError: the checkpoint is damaged, or asks for files elsewhere.
    """
    directory = Path(directory)
    path = directory / CHECKPOINT
    tree = read_msgpack(path)
    # The tree of a train state, or of its optimizer, as T5X's versions write it.
    optimizer = tree.get("optimizer", tree)
    target = optimizer.get("target") if isinstance(optimizer, dict) else None
    if not isinstance(target, dict):
        raise ValueError(f"{path} holds no parameters: it has no tree optimizer/target.")
    files = {}
    for name, leaf in _leaves(target):
        if name.startswith("decoder/"):
            continue  # nothing here reads it: its arrays may be missing
        try:
            files[name] = _open_leaf(directory, name, leaf)
        except ValueError as error:
            raise ValueError(f"{path}, {name}: {str(error).removesuffix('.')}.") from None
    return files
