"""One safetensors file: its header checked in full, its tensors read by parts.

Eight bytes of length, a JSON header, the tensors' bytes. Read by plain file access and not through
a mapping of the whole file, whose pages would count as resident memory beside the copies.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from imagen_jax.storage.json_file import parse_object

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
class _Entry:
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # in the file
    stop: int


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, values: object) -> _Entry:
    """A tensor's entry in the header, its offsets still relative to the end of the header."""
    if not isinstance(values, dict) or set(values) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} lacks one of dtype, shape and data_offsets")
    shape, offsets = values["shape"], values["data_offsets"]
    if not isinstance(values["dtype"], str) or values["dtype"] not in DTYPES:
        raise ValueError(
            f"{name!r} has the dtype {values['dtype']!r}; known are {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_size, shape)):
        raise ValueError(f"{name!r} has the shape {str(shape)[:80]}, which is none")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"{name!r} has the data_offsets {str(offsets)[:80]}, which are none")
    entry = _Entry(np.dtype(DTYPES[values["dtype"]]), tuple(shape), *offsets)
    size = math.prod(shape) * entry.dtype.itemsize
    if entry.stop - entry.start != size:
        raise ValueError(
            f"{name!r} of shape {entry.shape} and dtype {values['dtype']} takes {size} bytes, but "
            f"its data_offsets {offsets} are {entry.stop - entry.start} apart"
        )
    return entry


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"it has only {len(start)} bytes")
        length = int.from_bytes(start, "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(
                f"its header is said to be {length} bytes long; 2 to {MAX_HEADER_BYTES} are allowed"
            )
        if 8 + length > size:
            raise ValueError(f"its header ends at byte {8 + length}, the file at {size}")
        content = file.read(length)
    try:
        header = parse_object(content)
    except ValueError as error:
        raise ValueError(f"in its header, {error}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its __metadata__ is no object")
    entries = {name: _entry(name, values) for name, values in header.items()}
    end, previous = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "overlaps" if entry.start < end else "leaves a gap after"
            raise ValueError(f"{name!r} at byte {entry.start} {fault} {previous!r}")
        end, previous = entry.stop, name
    if 8 + length + end != size:
        raise ValueError(f"its tensors end at byte {8 + length + end}, the file at {size}")
    placed = {
        name: _Entry(entry.dtype, entry.shape, 8 + length + entry.start, 8 + length + entry.stop)
        for name, entry in entries.items()
    }
    return placed, {name: value for name, value in metadata.items() if isinstance(value, str)}


class TensorFile:
    """The tensors of one file by name; ValueError at once if the file is not whole and sound."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._entries, self.metadata = _read_header(self.path)
        except ValueError as error:
            raise ValueError(f"{self.path} is not a whole safetensors file: {error}.") from None

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name].dtype

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` (a slice for each axis) selects."""
        entry = self._entries[name]
        bounds = [part.indices(size) for part, size in zip(index or (), entry.shape, strict=False)]
        bounds += [(0, size, 1) for size in entry.shape[len(bounds) :]]
        if any(step != 1 for _, _, step in bounds):
            raise ValueError(f"{name!r} can be read in steps of 1 alone, not by {index}.")
        shape = tuple(max(stop - start, 0) for start, stop, _ in bounds)
        if entry.stop > self.path.stat().st_size:
            raise ValueError(f"{self.path} has been cut short since it was opened.")
        if 0 in shape:
            return np.empty(shape, entry.dtype)
        if shape[1:] != entry.shape[1:]:
            mapped = np.memmap(self.path, np.uint8, "r", entry.start, (entry.stop - entry.start,))
            whole = mapped.view(entry.dtype).reshape(entry.shape)
            return np.array(whole[tuple(slice(*bound) for bound in bounds)])
        # A whole tensor or some of its rows lie together.
        row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        array = np.empty(shape, entry.dtype)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(entry.start + (bounds[0][0] * row if bounds else 0))
            _read_into(file, array.reshape(-1).view(np.uint8), self.path)
        return array


def _read_into(file, array: np.ndarray, path: Path) -> None:
    view = memoryview(array)
    while view:
        # Linux reads at most 2 GiB at once.
        count = file.readinto(view[: 2**30])
        if not count:
            raise ValueError(f"{path} ended while it was read.")
        view = view[count:]
