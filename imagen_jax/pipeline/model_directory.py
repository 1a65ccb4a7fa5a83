"""A model on disk: `model.json`, the parameters of each component (the stages and the text encoder)
as safetensors, and the tokenizer's file.

Nothing in it is executed when it is read.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.cascade import description
from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, part_shapes
from imagen_jax.compress.quantization import quantize as quantized
from imagen_jax.pipeline.lazy_params import PROBED, LazyParams, Probe
from imagen_jax.pipeline.quantized_params import check_quantize, scheme_of_part
from imagen_jax.pipeline.shipped import MODEL_FILE, PRETRAINED, list_models
from imagen_jax.storage import fingerprints
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import CHECKPOINTS, saved_steps
from imagen_jax.storage.json_file import parse_object, read_object
from imagen_jax.storage.layout_files import ShardingOf, read_params
from imagen_jax.storage.quantized import stored_shapes
from imagen_jax.storage.safetensors import (
    SHARD_BYTES,
    kept_dtype,
    open_tensors,
    save_params,
    weight_files,
)
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.storage.wrong_files import absent, brief
from imagen_jax.text.tokenizers import copy_tokenizer
from imagen_jax.typing import Params

FORMAT = 1
# Beside the cascade's; may be null. shared: the shipped model that has the weights of the parts of
# which there are none here.
OTHER_KEYS = {"name": str, "fingerprint": str, "notes": dict, "shared": str}


@dataclass(frozen=True)
class Stored:
    """How parameters are stored.

    dtype: of what is not quantized. quantize: the kernels, as of `load_model`. shared: a shipped
    model; what is the same there is not written, nor quantized, but read from there.
    max_shard_bytes: a larger component becomes several files.
    """

    dtype: str = "bfloat16"
    quantize: str | None = None
    shared: str | None = None
    max_shard_bytes: int = SHARD_BYTES


def component_names(cascade: Cascade) -> list[str]:
    """What has parameters: the stages, and the text encoder if there is one."""
    names = [stage.name for stage in cascade.stages]
    return names if cascade.encoder is None else [*names, TEXT_ENCODER]


def write_model(
    directory: str | os.PathLike,
    cascade: Cascade,
    params: Mapping,
    stored: Stored = Stored(),
    *,
    name: str | None = None,
    notes: Mapping[str, Any] | None = None,
    release: Callable[[str], None] | None = None,
) -> None:
    """Saves a model. All is written before any of it is put in place: a full disk changes nothing.

    Args:
        params: by the stages' names and "text_encoder".
        name: what the model calls itself; the directory's name when None.
        notes: JSON values to keep with the model, such as steps trained.
        release: called with a component's name once it is written.
    """
    directory, names = Path(directory), component_names(cascade)
    check_quantize(stored.quantize)
    missing = sorted(set(names) - set(params))
    require(
        (
            directory.is_dir() or not directory.exists(),
            f"{directory} is a file; give a directory to save the model in.",
        ),
        (
            not saved_steps(directory / CHECKPOINTS),
            f"{directory} is the workdir of a training run, and a model in it would be read in "
            "place of its checkpoints: give another directory.",
        ),
        (not missing, f"Parameters of {', '.join(missing)} are missing; got {sorted(params)}."),
    )
    directory.mkdir(parents=True, exist_ok=True)
    saving = {"prefix": ".saving-", "dir": directory, "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**saving) as temporary:
        workplace, files = Path(temporary), []
        for component in names:
            files += _save_part(workplace, component, params[component], stored)
            if release is not None:
                release(component)
        if cascade.encoder is not None:
            copy_tokenizer(cascade.encoder.tokenizer, workplace)
        values = {
            "format": FORMAT,
            "name": name or directory.resolve().name,
            "fingerprint": fingerprints.of_files(files),
            **description.to_dict(cascade),
            "notes": dict(notes or {}),
        }
        if stored.shared is not None:
            values["shared"] = stored.shared
        content = json.dumps(values, indent=1, ensure_ascii=False)
        parse_object(content.encode("utf-8"))  # what cannot be read again is not written
        (workplace / MODEL_FILE).write_text(content + "\n", encoding="utf-8")
        _move_in(workplace, directory, names)


def _save_part(workplace: Path, name: str, params: Params, stored: Stored) -> Sequence[Path]:
    """Writes a component, unless it is shared; the files that it is in."""
    if stored.shared is not None and is_shared(stored.shared, name, params):
        return sorted((PRETRAINED / stored.shared).glob(f"{name}[.-]*safetensors"))
    if stored.quantize is not None:
        params = quantized(params, scheme_of_part(name, stored.quantize))
    return save_params(workplace, name, params, stored.dtype, stored.max_shard_bytes)


def _move_in(workplace: Path, directory: Path, names: list[str]) -> None:
    """Puts new files in place of old ones, `model.json` last, and drops older weights."""
    new = sorted((file.name for file in workplace.iterdir()), key=lambda file: file == MODEL_FILE)
    for file in new:
        os.replace(workplace / file, directory / file)
    patterns = ("{}.safetensors*", "{}-*-of-*.safetensors")
    weights = [directory.glob(each.format(name)) for name in names for each in patterns]
    for file in itertools.chain(*weights):
        if file.name not in new:
            file.unlink()


def is_shared(model: str, name: str, params: Params) -> bool:
    """Whether a shipped model has a component of this name with the same parameters."""
    cascade, _ = read_model(PRETRAINED / model)
    if name not in component_names(cascade):
        return False
    theirs = flatten(open_params(PRETRAINED / model, cascade)[name])
    ours = flatten(params)
    same = ours.keys() == theirs.keys()
    return same and all(np.array_equal(ours[path], theirs[path]) for path in ours)


def read_model(directory: str | os.PathLike) -> tuple[Cascade, dict[str, Any]]:
    """The cascade that `model.json` describes, and the file's other values (name, notes, ...).

    Raises:
        FileNotFoundError: there is no model.json.
        ValueError: it is damaged, or of a newer format.
    """
    path = Path(directory) / MODEL_FILE
    if not path.parent.is_dir():
        raise FileNotFoundError(absent(directory, "folder"))
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a model directory: it has no {MODEL_FILE}.")
    values = read_object(path, "the description of a model")
    try:
        require(
            (
                values.get("format") == FORMAT,
                f"it has format {values.get('format')!r}; this version reads format {FORMAT}",
            ),
            *(
                (isinstance(values.get(key), kind | None), f"{key!r} is {values.get(key)!r}")
                for key, kind in OTHER_KEYS.items()
            ),
            (
                values.get("shared") in (None, *list_models()),
                f"it shares parts with {values.get('shared')!r}, which is no shipped model",
            ),
        )
        cascade = description.from_dict(values, directory)
    except ValueError as error:
        reason = brief(error)
        raise ValueError(f"{path} does not describe a model of this version: {reason}.") from error
    return cascade, {key: value for key, value in values.items() if key != "stages"}


def open_params(
    directory: str | os.PathLike,
    cascade: Cascade,
    *,
    dtype: str = "float32",
    place: Callable[[str], ShardingOf | None] = lambda part: None,
    shared: str | None = None,
) -> LazyParams:
    """The parameters of a model directory, those of each stage read when they are first used.

    Missing, unused and misshapen tensors are a ValueError that names them.

    Args:
        place: of a stage's name or "text_encoder", where each of its parameters is to lie; None
            gives numpy arrays.
        shared: the shipped model that has what the directory has not.
    """

    def home(name: str) -> Path:
        single, (index,) = weight_files(name, None)
        here = any((Path(directory) / file).is_file() for file in (single, index))
        return Path(directory) if here or shared is None else PRETRAINED / shared

    def read(name: str) -> Params:
        shapes = part_shapes(cascade, name)
        return read_params(home(name), name, shapes, dtype=dtype, sharding=place(name))

    def probe() -> Probe:
        files = open_tensors(home(TEXT_ENCODER), TEXT_ENCODER)
        return {path: files[path][()] for path in PROBED if path in files}

    def shapes(name: str) -> Params:
        files, sharding = open_tensors(home(name), name), place(name)

        def shape(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
            where = None if sharding is None else sharding(path, leaf.shape)
            where = where if isinstance(where, jax.sharding.Sharding) else None
            kept = kept_dtype(files[path].dtype, dtype, path)
            return jax.ShapeDtypeStruct(leaf.shape, kept, sharding=where)

        found = {path: tensor.shape for path, tensor in files.items()}
        flat = flatten(stored_shapes(part_shapes(cascade, name), found))
        return unflatten({path: shape(path, leaf) for path, leaf in flat.items()})

    readers = {name: partial(read, name) for name in component_names(cascade)}
    return LazyParams(readers, probe, shapes=shapes)
