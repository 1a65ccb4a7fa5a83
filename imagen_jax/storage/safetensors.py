"""A tree of parameters as safetensors, in Hugging Face's layout: one file, or shards and an index.

`save_params(directory, "base", params)` writes `base.safetensors`, or where that would be too large
`base-00001-of-00002.safetensors` ... and `base.safetensors.index.json`. A tensor's name is its path
in the tree, joined by "/". Nothing here reads or writes a pickle.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from imagen_jax.storage.atomic import written_together
from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.quantized import SCALES
from imagen_jax.storage.tensor_file import StoredTensor, open_file
from imagen_jax.storage.trees import flatten, name_some
from imagen_jax.storage.wrong_files import absent
from imagen_jax.typing import Params

# Near what the Hugging Face libraries split at; a shard is held in memory while it is written.
SHARD_BYTES = 5 * 10**9
# Of a shard, for its header: JSON of about 160 bytes and the name for each tensor.
HEADER_BYTES, ENTRY_BYTES = 1024, 160
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")


def kept_dtype(found: Any, dtype: str | None, path: str = "") -> np.dtype:
    """The dtype that an array is kept in: `dtype` for a floating-point one, else its own; and for
    the scales of a quantized kernel, as by their path.
    """
    floating = jnp.issubdtype(found, jnp.floating) and not path.endswith(f"/{SCALES}")
    return np.dtype(jnp.dtype(dtype if dtype is not None and floating else found))


def _split(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """The tensors of each shard, given the bytes of each tensor."""
    shards, room = [[]], max_shard_bytes - HEADER_BYTES
    for name, size in sizes.items():
        needed = size + len(name.encode()) + ENTRY_BYTES
        if needed > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes - HEADER_BYTES
        shards[-1].append(name)
        room -= needed
    return shards


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
    single, (index, *_) = weight_files(name, variant)
    flat = flatten(params)
    if not flat:
        raise ValueError(f"There are no parameters to save as {name!r}.")
    dtypes = {tensor: kept_dtype(value.dtype, dtype, tensor) for tensor, value in flat.items()}
    sizes = {t: math.prod(value.shape) * dtypes[t].itemsize for t, value in flat.items()}
    shards = _split(sizes, max_shard_bytes)
    stem, count = single.removesuffix(".safetensors"), len(shards)
    files = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    # The index comes last: until it is in place, an earlier single file is what a reader finds.
    written = [single] if count == 1 else [*files, index]
    old = {single, index, *_old_shards(directory / index, stem)}
    with written_together([directory / file for file in written], sum(sizes.values())) as temporary:
        for shard, path in zip(shards, temporary, strict=False):
            # Sorted within the file by safetensors itself: by alignment, then by name.
            arrays = {t: np.asarray(flat[t], dtype=dtypes[t], order="C") for t in shard}
            save_file(arrays, path, metadata={"format": kind})
        if count > 1:
            places = {t: file for shard, file in zip(shards, files, strict=True) for t in shard}
            content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
            temporary[-1].write_text(json.dumps(content, indent=1))
    # The old index goes first: without it, a reader finds the single file that replaced it.
    for file in sorted(old - set(written), key=lambda file: file != index):
        (directory / file).unlink(missing_ok=True)
    return [directory / file for file in written]


def _old_shards(index: Path, stem: str) -> set[str]:
    """The shards that an earlier save's index names; none where it is missing or damaged."""
    try:
        return {file for file in read_index(index).values() if file.startswith(f"{stem}-")}
    except (FileNotFoundError, ValueError):
        return set()


def _check_file_name(name: Any, what: str) -> None:
    plain = isinstance(name, str) and name not in ("", ".", "..") and len(name) < 256
    if not plain or any(character in name for character in "/\\:\0"):
        raise ValueError(
            f"{what} is {repr(name)[:80]}; it must be a plain file name, without directories."
        )


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
    for snapshots in (root.parent, root.parent.parent):  # the model's folder, or one of its parts
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            root = snapshots.parent
    if not path.resolve().is_relative_to(root):
        raise ValueError(
            f"{path} is a link to {path.resolve()}, outside the model's directory; put what "
            "it links to there."
        )


def weight_files(name: str, variant: str | None) -> tuple[str, tuple[str, ...]]:
    """The name of the single file, and the names that an index may have (one now, one formerly)."""
    _check_file_name(name, "The name of the parameters")
    if variant is None:
        return f"{name}.safetensors", (f"{name}.safetensors.index.json",)
    _check_file_name(variant, "The variant")
    indices = f"{name}.safetensors.index.{variant}.json", f"{name}.safetensors.{variant}.index.json"
    return f"{name}.{variant}.safetensors", indices


def _check_folder(directory: Path) -> None:
    if not directory.is_dir():
        raise FileNotFoundError(absent(directory, "folder"))


def pickles_in(directory: Path) -> list[str]:
    """The names of a folder's pickles."""
    return sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))


def find_variant(
    directory: Path, name: str, variant: str | None = None, fall_back: bool = False
) -> str | None:
    """The variant of a folder's safetensors to read: the one asked for; where None is asked for and
    there are none without a variant, the only one there is, with a warning.

    Args:
        fall_back: takes those without a variant where the one asked for is missing.

    Raises:
        FileNotFoundError: there are none.
        ValueError: there are pickles alone.
    """
    _check_folder(directory)
    for choice in (variant, None) if fall_back else (variant,):
        single, indices = weight_files(name, choice)
        if any((directory / file).is_file() for file in (single, *indices)):
            return choice
    end = r"(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json|safetensors\.(\w+)\.index\.json)"
    pattern = re.compile(rf"{re.escape(name)}\.{end}")
    matches = [pattern.fullmatch(path.name) for path in directory.glob("*")]
    only, *others = {match[match.lastindex] for match in matches if match} or {None}
    if variant is None and only is not None and not others:
        warnings.warn(f"{directory} has the variant {only!r} alone: it is read.", stacklevel=2)
        return only
    if pickles := pickles_in(directory):
        raise ValueError(
            f"{directory} has its weights in pickles ({pickles[0]}), which are not read: running a "
            f"pickle is running its author's code. The converted form is {name}.safetensors, as "
            "save_pretrained of diffusers and transformers writes it."
        )
    others = sorted(path.name for path in directory.glob("*.safetensors*"))
    beside = f"; it has {', '.join(others[:4])}" if others else ""
    raise FileNotFoundError(
        f"{directory} has no {weight_files(name, variant)[0]} and no index of shards{beside}."
    )


def _open_inside(path: Path) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise ValueError(f"The shard {path} is missing, of which an index beside it speaks.")
    check_inside(path, path.parent)
    return open_file(path)[0]


def open_tensors(
    directory: str | os.PathLike, name: str, variant: str | None = None
) -> dict[str, StoredTensor]:
    """The tensors of a save by name, to be read one at a time, or by parts.

    Args:
        name: of the parameters: "model" for model.safetensors, or its shards and their index.
        variant: such as "fp16", for model.fp16.safetensors.

    Raises:
        FileNotFoundError: there are neither.
        ValueError: a file is damaged or lies outside the folder, a shard is missing, or index and
            shards disagree.
    """
    directory = Path(directory)
    _check_folder(directory)
    single, indices = weight_files(name, variant)
    index = next((directory / file for file in indices if (directory / file).is_file()), None)
    if index is None:
        if not (directory / single).is_file():
            raise FileNotFoundError(
                f"Neither {directory / single} nor {indices[0]} beside it exists."
            )
        return _open_inside(directory / single)
    weight_map = read_index(index)
    shards = {file: _open_inside(directory / file) for file in sorted(set(weight_map.values()))}
    held = {(tensor, file) for file, tensors in shards.items() for tensor in tensors}
    if differing := sorted(f"{tensor} in {file}" for tensor, file in held ^ weight_map.items()):
        raise ValueError(f"{index} and its shards disagree about {name_some(differing)}.")
    return {tensor: shards[file][tensor] for tensor, file in weight_map.items()}


def open_model(directory: str | os.PathLike, variant: str | None = None) -> dict[str, StoredTensor]:
    """The weights of a model that transformers saved; arguments and errors as of `find_variant`."""
    return open_tensors(directory, "model", find_variant(Path(directory), "model", variant))
