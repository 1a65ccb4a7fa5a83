"""One safetensors file: its header checked in full, its tensors read by parts.

Eight bytes of length, a JSON header, the tensors' bytes. Our own and not `safetensors.safe_open`,
which maps the whole file, so that all that was read counts as resident memory beside the copies,
and which names a damaged header by a code alone.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax.storage.json_file import parse_object
from imagen_jax.storage.wrong_files import refusal

# The format's own limit.
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 32
DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}

Index = tuple[slice, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `tensor[index]` reads the part that `index`, a slice for each axis,
    selects; `tensor[()]` reads all of it.
    """

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Index) -> np.ndarray:
        pairs = zip_longest(index, self.shape, fillvalue=slice(None))
        bounds = [slice(*part.indices(size)) for part, size in pairs]
        if any(part.step != 1 for part in bounds):
            raise ValueError(f"{self.name} can be read in steps of 1 alone, not by {index}.")
        try:
            if bounds[1:] != [slice(0, size, 1) for size in self.shape[1:]]:
                mapped = np.memmap(self.path, np.uint8, "r", self.start, (self.nbytes,))
                return np.array(mapped.view(self.dtype).reshape(self.shape)[tuple(bounds)])
            # Rows lie together: read without a mapping.
            rows = bounds[0] if bounds else slice(0, 1)
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            count = len(range(rows.start, rows.stop))
            flat = np.fromfile(
                self.path, np.uint8, count * row, offset=self.start + rows.start * row
            )
            return flat.view(self.dtype).reshape((count, *self.shape[1:]) if bounds else ())
        except ValueError:
            raise ValueError(f"{self.path} has been cut short since it was opened.") from None


def are_sizes(values: Any, most: int) -> bool:
    """Whether this is a list of up to `most` whole numbers from 0, as others' files have shapes."""
    fits = isinstance(values, list) and len(values) <= most
    return fits and all(type(value) is int and value >= 0 for value in values)


def _tensor(path: Path, data: int, name: str, values: Any) -> StoredTensor:
    """A tensor by its entry in the header, whose offsets count from the byte `data` on."""
    if not isinstance(values, dict) or set(values) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} lacks one of dtype, shape and data_offsets")
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    for field, fits, known in (
        ("dtype", str(dtype) in DTYPES, ", ".join(DTYPES)),
        ("shape", are_sizes(shape, MAX_AXES), f"lists of up to {MAX_AXES} sizes"),
        ("data_offsets", are_sizes(offsets, 2) and len(offsets) == 2, "pairs of bytes"),
    ):
        if not fits:
            shown = repr(values[field])[:80]
            raise ValueError(f"{name!r} has the {field} {shown}; known are {known}")
    tensor = StoredTensor(path, name, np.dtype(DTYPES[dtype]), tuple(shape), data + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise ValueError(
            f"{name!r} of shape {tensor.shape} and dtype {dtype} takes {tensor.nbytes} bytes, but "
            f"its data_offsets {offsets} are {offsets[1] - offsets[0]} apart"
        )
    return tensor


def _read_header(path: Path) -> tuple[Mapping[str, Any], int]:
    """The header, and the byte at which it ends."""
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"it has only {len(start)} bytes")
        length = int.from_bytes(start, "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(
                f"its header is said to be {length} bytes long; 2 to {MAX_HEADER_BYTES} are allowed"
            )
        content = file.read(length)
    if len(content) < length:
        raise ValueError(
            f"its header ends at byte {8 + length}, the file at {8 + len(content)} (it is cut "
            "short, or something else)"
        )
    try:
        return parse_object(content), 8 + length
    except ValueError as error:
        raise ValueError(f"in its header, {error}") from None


def _read_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    header, end = _read_header(path)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        raise ValueError("its __metadata__ is not an object")
    tensors = {name: _tensor(path, end, name, values) for name, values in header.items()}
    previous = "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            fault = "overlaps" if tensor.start < end else "leaves a gap after"
            raise ValueError(f"{name!r} at byte {tensor.start} {fault} {previous!r}")
        end, previous = end + tensor.nbytes, name
    if end != (size := path.stat().st_size):
        cut = " (it is cut short: download it again)" if size < end else ""
        raise ValueError(f"its tensors end at byte {end}, the file at {size}{cut}")
    return tensors, {name: value for name, value in metadata.items() if isinstance(value, str)}


def open_file(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a file by name, not read yet, and its metadata.

    ValueError: the file is not whole and sound.
    """
    try:
        return _read_tensors(Path(path))
    except ValueError as error:
        message = refusal(path, "a whole safetensors file", error, ("safetensors",))
        raise ValueError(message) from None
