"""A model on disk: `model.json`, the parameters of each part as safetensors, the tokenizer's file.

Nothing in it is executed when it is read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.cascade import cascade as cascade_room
from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.storage.json_file import parse_object, read_object
from imagen_jax.storage.layout_files import ShardingOf, read_params
from imagen_jax.storage.safetensors import SHARD_BYTES, open_tensors, save_params
from imagen_jax.text import encoder as text_room
from imagen_jax.typing import Params

# Some parameters by their paths, joined by "/".
Marks = Mapping[str, np.ndarray]

FORMAT = 1
MODEL_FILE = "model.json"
ENCODER_MARKS = ("final_norm/scale", "relative_bias/embedding")


class Parts(Mapping):
    """Parameters by the name of the part, read from disk when first asked for.

    `free(name)` lets a part go; the next access reads it again. `marks` read a few small parameters
    of a part, which tell it from others.
    """

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Params]],
        marks: Mapping[str, Callable[[], Marks]] | None = None,
    ):
        self._readers = dict(readers)
        self._marks = dict(marks or {})
        self._read: dict[str, Params] = {}

    def __getitem__(self, name: str) -> Params:
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def free(self, name: str) -> None:
        self._read.pop(name, None)

    def reader(self, name: str) -> Callable[[], Params]:
        """Reads a part anew, whatever is in memory: for a Parts that holds this one's parts."""
        return self._readers[name]

    def marks(self, name: str) -> Marks | None:
        """A few parameters of a part by their paths; None where only all could be read."""
        return self._marks[name]() if name in self._marks else None


def part_names(cascade: Cascade) -> list[str]:
    """The parts that have parameters: the stages, and the text encoder if there is one."""
    names = [stage.name for stage in cascade.stages]
    return names if cascade.encoder is None else [*names, TEXT_ENCODER]


def fingerprint(files: list[Path]) -> str:
    """Some digits that change when any of the files does."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def write_model(
    directory: str | os.PathLike,
    cascade: Cascade,
    params: Mapping,
    *,
    name: str | None = None,
    notes: Mapping[str, Any] | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = SHARD_BYTES,
    release: Callable[[str], None] | None = None,
) -> None:
    """Save a model. All is written before any of it is put in place: a full disk changes nothing.

    Args:
        params: of each part, by the stages' names and "text_encoder".
        name: what the model calls itself; the directory's name when None.
        notes: JSON values to keep with the model, such as steps trained.
        dtype: of the parameters on disk.
        max_shard_bytes: a larger part becomes several files.
        release: called with a part's name once it is written.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a directory to save the model in.")
    names = part_names(cascade)
    missing = sorted(set(names) - set(params))
    if missing:
        raise ValueError(f"Parameters of {', '.join(missing)} are missing; got {sorted(params)}.")
    directory.mkdir(parents=True, exist_ok=True)
    workplace = directory / f".saving-{os.getpid()}"
    try:
        files = []
        for part in names:
            files += save_params(workplace, part, params[part], dtype, max_shard_bytes)
            if release is not None:
                release(part)
        if cascade.encoder is not None:
            text_room.copy_tokenizer(cascade.encoder.tokenizer, workplace)
        values = {
            "format": FORMAT,
            "name": name or directory.resolve().name,
            "fingerprint": fingerprint(files),
            **cascade_room.to_dict(cascade),
            "notes": dict(notes or {}),
        }
        content = json.dumps(values, indent=1, ensure_ascii=False)
        parse_object(content.encode("utf-8"))  # what cannot be read again is not written
        (workplace / MODEL_FILE).write_text(content + "\n", encoding="utf-8")
        _move_in(workplace, directory, names)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _move_in(workplace: Path, directory: Path, parts: list[str]) -> None:
    """Put new files in place of old ones, `model.json` last, and drop the parts' other files."""
    new = sorted((file.name for file in workplace.iterdir()), key=lambda file: file == MODEL_FILE)
    for file in new:
        os.replace(workplace / file, directory / file)
    for part in parts:
        for pattern in (f"{part}.safetensors*", f"{part}-*-of-*.safetensors"):
            for old in directory.glob(pattern):
                if old.name not in new:
                    old.unlink()


def read_model(directory: str | os.PathLike) -> tuple[Cascade, dict[str, Any]]:
    """The cascade that `model.json` describes, and the file's other values (name, notes, ...).

    Raises:
        FileNotFoundError: there is no model.json.
        ValueError: it is damaged, or of a newer format.
    """
    path = Path(directory) / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is no model directory: it has no {MODEL_FILE}.")
    values = read_object(path, "the description of a model")
    if "format" not in values or "stages" not in values:
        raise ValueError(f"{path} does not describe a model: it needs 'format' and 'stages'.")
    if values["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {values['format']!r}; this version reads format {FORMAT}."
        )
    try:
        cascade = cascade_room.from_dict(values, os.fspath(directory))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} does not describe a model of this version: {reason}") from error
    return cascade, {key: value for key, value in values.items() if key != "stages"}


def read_parts(
    directory: str | os.PathLike,
    cascade: Cascade,
    *,
    dtype: str = "float32",
    sharding: ShardingOf | None = None,
) -> Parts:
    """The parameters of a model directory, read part by part when first used.

    Missing, unused and misshapen tensors are a ValueError that names them.

    Args:
        sharding: where each parameter shall lie; None gives numpy arrays.
    """

    def reader(part: str) -> Callable[[], Params]:
        def read() -> Params:
            shapes = cascade_room.part_shapes(cascade, part)
            return read_params(directory, part, shapes, dtype=dtype, sharding=sharding)

        return read

    def marks() -> Marks:
        files = open_tensors(directory, TEXT_ENCODER)
        return {path: files[path][()] for path in ENCODER_MARKS if path in files}

    names = part_names(cascade)
    return Parts({part: reader(part) for part in names}, {TEXT_ENCODER: marks})
