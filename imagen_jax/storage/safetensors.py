"""A tree of parameters as safetensors, in Hugging Face's layout: one file, or shards and an index.

`save_params(directory, "base", params)` writes `base.safetensors`, or where that would be too large
`base-00001-of-00002.safetensors` ... and `base.safetensors.index.json`. A tensor's name is its path
in the tree, joined by "/". Nothing here reads or writes a pickle.
"""

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.tensor_file import Index, TensorFile
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.typing import Params

SHARD_BYTES = 16 * 2**20
# Of a shard, for its header: JSON of about 100 bytes and the name for each tensor.
HEADER_BYTES = 1024


def is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _as_stored(value: Any, dtype: str | None) -> np.ndarray:
    array = np.asarray(value)
    stored = jnp.dtype(dtype) if dtype is not None and is_float(array.dtype) else array.dtype
    return np.asarray(array, dtype=stored, order="C")


def _split(flat: Mapping[str, Any], dtype: str | None, max_shard_bytes: int) -> list[list[str]]:
    shards, room = [[]], max_shard_bytes - HEADER_BYTES
    for name, value in flat.items():
        stored = jnp.dtype(dtype) if dtype is not None and is_float(value.dtype) else value.dtype
        size = int(np.prod(value.shape)) * jnp.dtype(stored).itemsize + len(name.encode()) + 160
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes - HEADER_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_params(
    directory: str | os.PathLike,
    name: str,
    params: Params,
    dtype: str | None = "bfloat16",
    max_shard_bytes: int = SHARD_BYTES,
    kind: str = "flax",
    variant: str | None = None,
) -> list[Path]:
    """Writes a tree of arrays and returns the files' paths.

    Every file is written whole under a temporary name before any is put in place, so that a full
    disk leaves an earlier save as it was. Equal trees give equal files.

    Args:
        dtype: of the floating-point arrays on disk; None leaves them as they are.
        max_shard_bytes: no file is larger, but for one that holds a single tensor that is.
        kind: whose layout the tensors have: "flax", or "pt" for PyTorch's.
        variant: such as "fp16", for NAME.fp16.safetensors; beside those of other variants.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _check_file_name(name, "The name of the parameters")
    single, (index, *_) = weight_files(name, variant)
    stem = single.removesuffix(".safetensors")
    flat = flatten(params)
    if not flat:
        raise ValueError(f"There are no parameters to save as {name!r}.")
    shards = _split(flat, dtype, max_shard_bytes)
    count = len(shards)
    files = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    files = [single] if count == 1 else files
    old = set(_existing_files(directory, single, index))
    # The index comes last: until it is in place, an earlier single file is what a reader finds.
    written = files if count == 1 else [*files, index]
    temporary = [directory / f".{file}.{os.getpid()}.tmp" for file in written]
    try:
        weight_map, total = {}, 0
        for shard, file, path in zip(shards, files, temporary, strict=False):
            arrays = {tensor: _as_stored(flat[tensor], dtype) for tensor in shard}
            # Sorted within the file by safetensors itself: by alignment, then by name.
            path.touch()
            mode = path.stat().st_mode  # the user's own; safetensors makes its files private
            save_file(arrays, path, metadata={"format": kind})
            path.chmod(mode)
            weight_map |= dict.fromkeys(shard, file)
            total += sum(array.nbytes for array in arrays.values())
        if count > 1:
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write(temporary[-1], json.dumps(content, indent=1).encode())
        for path in temporary:
            _sync(path)
        for path, file in zip(temporary, written, strict=True):
            os.replace(path, directory / file)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    # The old index goes first: without it, a reader finds the single file that replaced it.
    for file in sorted(old - set(written), key=lambda file: file != index):
        (directory / file).unlink(missing_ok=True)
    return [directory / file for file in written]


def _existing_files(directory: Path, single: str, index: str) -> Iterator[str]:
    """The files of an earlier save: the single one, the index, and the shards that it names."""
    stem = single.removesuffix(".safetensors")
    if (directory / single).is_file():
        yield single
    if (directory / index).is_file():
        yield index
        try:
            shards = set(read_index(directory / index).values())
        except ValueError:
            return
        yield from (file for file in shards if file.startswith(f"{stem}-"))


def _check_file_name(name: Any, what: str) -> None:
    plain = isinstance(name, str) and name not in ("", ".", "..")
    if not plain or any(character in name for character in "/\\:\0"):
        raise ValueError(f"{what} is {name!r}; it must be a plain file name, without directories.")


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to the file beside the index that holds it."""
    kind = "an index of safetensors"
    weight_map = read_object(path, kind).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{path} is not {kind}: it has no object 'weight_map'.")
    for file in weight_map.values():
        _check_file_name(file, f"A shard in {path}")
    return weight_map


def check_inside(path: Path, directory: Path) -> None:
    """Raises ValueError if a file or folder is a link to a place outside the model's directory.

    In the cache of the Hugging Face hub a snapshot's files are links to the blobs beside it.
    """
    root = directory.resolve()
    if root.parent.name == "snapshots" or root.parent.parent.name == "snapshots":
        snapshots = root.parent if root.parent.name == "snapshots" else root.parent.parent
        root = snapshots.parent if snapshots.parent.name.startswith("models--") else root
    if not path.resolve().is_relative_to(root):
        raise ValueError(
            f"{path} is a link to {path.resolve()}, outside the model's directory; put what "
            "it links to there."
        )


def weight_files(name: str, variant: str | None) -> tuple[str, tuple[str, ...]]:
    """The name of the single file, and the names that an index may have (one now, one formerly)."""
    if variant is None:
        return f"{name}.safetensors", (f"{name}.safetensors.index.json",)
    indices = f"{name}.safetensors.index.{variant}.json", f"{name}.safetensors.{variant}.index.json"
    return f"{name}.{variant}.safetensors", indices


def lone_variant(directory: Path, name: str) -> str | None:
    """The variant of the weights where a folder has those of one and none without a variant; a
    warning names it.
    """
    plain, plain_indices = weight_files(name, None)
    if any((directory / file).is_file() for file in (plain, *plain_indices)):
        return None
    single, indices = weight_files(name, r"(\w+)")
    patterns = [re.compile(pattern.replace(".", r"\.")) for pattern in (single, *indices)]
    matches = [pattern.fullmatch(path.name) for path in directory.iterdir() for pattern in patterns]
    found = {match[1] for match in matches if match}
    if len(found) != 1:
        return None
    (variant,) = found
    warnings.warn(f"{directory} has the variant {variant!r} alone: it is read.", stacklevel=2)
    return variant


class TensorFiles(Mapping):
    """The tensors of a save by name, read from disk one at a time, or by parts.

    Args:
        name: of the parameters: "model" for model.safetensors, or its shards and their index.
        variant: such as "fp16", for model.fp16.safetensors.
    """

    def __init__(self, directory: str | os.PathLike, name: str, variant: str | None = None):
        _check_file_name(name, "The name of the parameters")
        if variant is not None:
            _check_file_name(variant, "The variant")
        self.directory = Path(directory)
        file, index_files = weight_files(name, variant)
        single = self.directory / file
        indices = [self.directory / index for index in index_files]
        index = next((index for index in indices if index.is_file()), None)
        if index is not None:
            self._read_sharded(index)
        elif single.is_file():
            self._open = {single.name: self._file(single.name)}
            self._where = dict.fromkeys(self._open[single.name].names(), single.name)
        else:
            raise FileNotFoundError(f"Neither {single} nor {index_files[0]} beside it exists.")

    def _read_sharded(self, index: Path) -> None:
        weight_map = read_index(index)
        self._open = {file: self._file(file) for file in sorted(set(weight_map.values()))}
        listed = set(weight_map.items())
        held = {(tensor, file) for file, shard in self._open.items() for tensor in shard.names()}
        if listed != held:
            differing = sorted(f"{tensor} in {file}" for tensor, file in listed ^ held)
            raise ValueError(f"{index} and its shards disagree about {name_some(differing)}.")
        self._where = weight_map

    def _file(self, file: str) -> TensorFile:
        path = self.directory / file
        if not path.is_file():
            raise FileNotFoundError(f"The shard {path} is missing.")
        check_inside(path, self.directory)
        return TensorFile(path)

    def files(self) -> list[str]:
        """The names of the files that hold the tensors."""
        return sorted(self._open)

    def __getitem__(self, tensor: str) -> np.ndarray:
        return self.read(tensor)

    def __contains__(self, tensor: object) -> bool:
        return tensor in self._where  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._open[self._where[tensor]].shape(tensor)

    def dtype(self, tensor: str) -> np.dtype:
        return self._open[self._where[tensor]].dtype(tensor)

    def read(self, tensor: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` (a slice for each axis) selects."""
        return self._open[self._where[tensor]].read(tensor, index)


def open_model(directory: str | os.PathLike, variant: str | None = None) -> TensorFiles:
    """The weights of a model that transformers saved; ValueError where they are pickled alone.

    variant: None for the files without one, or else those of the only variant.
    """
    try:
        return TensorFiles(directory, "model", variant or lone_variant(Path(directory), "model"))
    except FileNotFoundError as error:
        pickles = sorted(path.name for path in Path(directory).glob("pytorch_model*.bin"))
        if not pickles:
            raise
        raise ValueError(
            f"{directory} has its weights in pickles ({pickles[0]}), which are not read: save the "
            "model as safetensors, for example by save_pretrained in transformers."
        ) from error


def check_shapes(
    where: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError that names what is missing, what is unused and what has another shape."""
    missing = sorted(set(wanted) - set(found))
    unused = sorted(set(found) - set(wanted))
    misshapen = [
        f"{name} is {tuple(found[name])}, not {tuple(wanted[name])}"
        for name in sorted(set(wanted) & set(found))
        if tuple(found[name]) != tuple(wanted[name])
    ]
    kinds = {"missing": missing, "unused": unused, "misshapen": misshapen}
    problems = [
        f"{len(names)} {kind}: {name_some(names)}" for kind, names in kinds.items() if names
    ]
    if problems:
        raise ValueError(f"{where} does not fit the model. " + "; ".join(problems) + ".")


def load_params(
    directory: str | os.PathLike,
    name: str,
    shapes: Params | None = None,
    dtype: str | None = "float32",
) -> Params:
    """Reads what `save_params` wrote, as a tree of numpy arrays.

    Args:
        shapes: the tree that the model expects, of anything with a `shape` (`jax.eval_shape` gives
            one); a parameter missing, unused or of another shape is a ValueError that names it.
        dtype: of the floating-point arrays in memory; None leaves them as they are on disk.
    """
    files = TensorFiles(directory, name)
    if shapes is not None:
        wanted = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
        found = {path: files.shape(path) for path in files}
        check_shapes(f"{files.directory / name}.safetensors", wanted, found)
    return unflatten({path: _as_stored(files[path], dtype) for path in sorted(files)})
