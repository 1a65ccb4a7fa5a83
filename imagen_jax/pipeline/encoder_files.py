"""A text encoder by itself on disk: Hugging Face's, T5X's, ours; and the frozen one of a workdir.

Ours is text_encoder.json, its sizes, beside text_encoder.safetensors (or shards and an index) and,
where it has one, the tokenizer's spiece.model. A workdir keeps its frozen encoder as the same
weights, or, where they are large, as a reference to where they are.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.convert.hub import NAME, resolve
from imagen_jax.convert.t5 import config_from_huggingface, encoder_shapes, load_huggingface
from imagen_jax.convert.t5x import load_t5x, read_t5x_config
from imagen_jax.convert.t5x_checkpoint import CHECKPOINT
from imagen_jax.devices.hosts import whole
from imagen_jax.models.t5 import T5Config
from imagen_jax.storage.codec import Section, to_dict
from imagen_jax.storage.folders import CHECKPOINTS, user_path
from imagen_jax.storage.json_file import read_dataclass, read_object, write_object
from imagen_jax.storage.layout_files import ShardingOf, read_params
from imagen_jax.storage.safetensors import SHARD_BYTES, open_model, save_params, weight_files
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.storage.wrong_files import absent
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizers import SENTENCEPIECE_FILE, tokenizer_digest
from imagen_jax.typing import Params

CONFIG_FILE = f"{TEXT_ENCODER}.json"
REFERENCE_FILE = f"{TEXT_ENCODER}_reference.json"
LARGEST_COPY = 10**9  # bytes of an encoder that a workdir keeps itself
SAMPLE = 2**20  # bytes of each file that a fingerprint reads, at its start and at its end
# How an encoder is run or was initialized, not what it is.
NOT_COMPARED = ("dtype", "remat", "embedding_init_scale")
# What the shapes of a T5X checkpoint do not tell.
T5X_UNKNOWN = ("max_distance", "norm_eps", "activation")


@dataclass(frozen=True)
class Reference:
    """Where the frozen encoder of a workdir is, and the fingerprint of its files there."""

    source: str
    fingerprint: str


def is_encoder(source: str | os.PathLike) -> bool:
    """Whether a path is that of a text encoder by itself, in any of the three forms."""
    path = user_path(source)
    if (path / CHECKPOINT).is_file() or (path / CONFIG_FILE).is_file():
        return True
    config = path / "config.json"
    return config.is_file() and "model_type" in read_object(config, "the config of a model")


def read_config(source: str | os.PathLike) -> T5Config:
    """The sizes of an encoder. Raises ValueError where its files are damaged or not a T5's."""
    path = user_path(source)
    if (path / CHECKPOINT).is_file():
        return read_t5x_config(path)
    if (path / CONFIG_FILE).is_file():
        return read_dataclass(path / CONFIG_FILE, "the config of a text encoder", T5Config)
    return config_from_huggingface(read_object(path / "config.json", "the config of a model"))


def read_encoder(
    source: str | os.PathLike,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
    variant: str | None = None,
) -> tuple[T5Config, Params]:
    """Config and parameters of an encoder in any of the three forms.

    Args:
        dtype: of the parameters; None keeps the files' own.
        sharding: where each parameter is to lie; None gives numpy arrays.
        variant: of Hugging Face's weights, such as "bf16".

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged.
    """
    path = user_path(source)
    if (path / CHECKPOINT).is_file():
        return load_t5x(path, dtype, sharding=sharding)
    if (path / CONFIG_FILE).is_file():
        config = read_config(path)
        return config, read_weights(path, config, dtype, sharding)
    return load_huggingface(path, dtype, sharding=sharding, variant=variant)


def read_weights(
    directory: Path, config: T5Config, dtype: str | None, sharding: ShardingOf | None
) -> Params:
    """The parameters in a directory's text_encoder.safetensors."""
    shapes = encoder_shapes(config)
    return read_params(directory, TEXT_ENCODER, shapes, dtype=dtype, sharding=sharding)


def write_encoder(
    directory: str | os.PathLike,
    config: T5Config,
    params: Params,
    *,
    dtype: str | None = None,
    tokenizer_from: str | os.PathLike | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes an encoder in our form, with the spiece.model of `tokenizer_from` if it has one."""
    directory = Path(directory)
    save_params(directory, TEXT_ENCODER, params, dtype, max_shard_bytes)
    tokenizer = None if tokenizer_from is None else Path(tokenizer_from) / SENTENCEPIECE_FILE
    if tokenizer is not None and tokenizer.is_file():
        shutil.copyfile(tokenizer, directory / SENTENCEPIECE_FILE)
    write_object(directory / CONFIG_FILE, to_dict(config))


def check_config(source: str | os.PathLike, found: T5Config, wanted: T5Config) -> None:
    """ValueError names the fields by which an encoder differs from the config's `text.encoder`."""
    in_t5x = (Path(source) / CHECKPOINT).is_file()
    ignored = (*NOT_COMPARED, *T5X_UNKNOWN) if in_t5x else NOT_COMPARED
    there = to_dict(found)
    differing = [
        f"{name} {value!r} (there {there[name]!r})"
        for name, value in to_dict(wanted).items()
        if name not in ignored and value != there[name]
    ]
    if differing:
        raise ValueError(
            f"text.encoder is not the encoder in {source}: {', '.join(differing)}. Leave "
            "text.encoder out to take the encoder's own."
        )


def text_section(section: Mapping[str, Any], source: str | os.PathLike) -> dict[str, Any]:
    """The config's section `text` with what it leaves out taken from an encoder's files.

    Raises:
        ValueError: the tokenizer is left out, and there is none beside the encoder.
    """
    values = dict(section)
    if values.get("encoder") is None:
        values["encoder"] = to_dict(read_config(source))
    if values.get("tokenizer") is None:
        tokenizer = Path(source) / SENTENCEPIECE_FILE
        if not tokenizer.is_file():
            raise ValueError(
                f"text.tokenizer is left out, and {source} has no {SENTENCEPIECE_FILE}: give the "
                "path of a SentencePiece model, or 'bytes' for ByT5"
            )
        values["tokenizer"] = os.path.abspath(tokenizer)
    return values


def with_encoder(raw: Section) -> dict[str, Any]:
    """A run's config with what its section `text` leaves out: an encoder by itself has it."""
    values = to_dict(raw)
    section = values.get("text") or {}
    source = section.get("init_from") or values.get("init_from")
    if section and isinstance(source, str) and is_encoder(source):
        values["text"] = text_section(section, source)
    return values


def text_fingerprint(encoder: TextEncoder, source: str | os.PathLike | None) -> dict[str, Any]:
    """What embeddings depend on: the encoder's files (None where it is not said where they are) and
    sizes, the tokenizer's content, and how text is prepared. JSON-able.
    """
    values = to_dict(encoder)
    sizes = values.pop("config")
    return {
        "weights": None if source is None else fingerprint(_directory(source)),
        "encoder": {name: value for name, value in sizes.items() if name not in NOT_COMPARED},
        **values,
        "tokenizer": tokenizer_digest(encoder.tokenizer),
    }


def _directory(source: str | os.PathLike) -> Path:
    """Where an encoder, a model directory or a shipped model lies; ValueError for anything else."""
    shipped = Path(__file__).parents[1] / "pretrained" / source
    directory = shipped if shipped.is_dir() else Path(source)
    if not directory.is_dir():
        raise ValueError(absent(directory, "folder"))
    if (directory / CHECKPOINTS).is_dir():
        raise ValueError(f"{source} is not the directory of a text encoder or of a model")
    return directory


def fingerprint(directory: str | os.PathLike, names: Collection[str] | None = None) -> str:
    """Some digits that change with the files of an encoder (or those of these names): names, sizes,
    beginnings and ends.
    """
    root, digest = Path(directory), hashlib.sha256()
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in sorted(path for path in files if names is None or path.name in names):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root)} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(size - SAMPLE, 0))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def reference_fingerprint(directory: str | os.PathLike) -> str:
    """`fingerprint`, of Hugging Face's files of those alone that are read: another variant, which
    may come to the hub's cache later, changes nothing.
    """
    path = Path(directory)
    if (path / CHECKPOINT).is_file() or (path / CONFIG_FILE).is_file():
        return fingerprint(path)
    files = {tensor.path.name for tensor in open_model(path).values()}
    return fingerprint(path, {"config.json", *files})


def encoder_folder(source: str | os.PathLike) -> Path | None:
    """Where an encoder's own files are: `source`, or its text_encoder/ (DeepFloyd IF, also by its
    name on the hub). None for a workdir or a model directory, which may change.
    """
    path = user_path(source)
    if not path.is_dir() and NAME.fullmatch(os.fspath(source)):
        path = resolve(source)
    found = [folder for folder in (path, path / TEXT_ENCODER) if is_encoder(folder)]
    return found[0] if found else None


def keep(workdir: str | os.PathLike, source: str | os.PathLike, params: Params) -> None:
    """Makes a workdir whole: a copy of its frozen encoder, or of a large one a reference.

    Only an encoder's own files are referred to: a workdir's or a model's may change.
    """
    workdir = Path(workdir)
    flat, folder = flatten(params), None
    if sum(leaf.nbytes for leaf in flat.values()) > LARGEST_COPY:
        folder = encoder_folder(source)
    if folder is not None:
        reference = Reference(os.path.abspath(folder), reference_fingerprint(folder))
        if jax.process_index() == 0:
            write_object(workdir / REFERENCE_FILE, to_dict(reference))
        return
    gathered = {name: whole(leaf) for name, leaf in flat.items()}
    if jax.process_index() == 0:
        save_params(workdir, TEXT_ENCODER, unflatten(gathered), None)
        (workdir / REFERENCE_FILE).unlink(missing_ok=True)


def is_kept(workdir: str | os.PathLike) -> bool:
    """Whether a workdir has its frozen encoder, or a reference to it."""
    single, (index, *_) = weight_files(TEXT_ENCODER, None)
    return any((Path(workdir) / name).is_file() for name in (single, index, REFERENCE_FILE))


def read_kept(
    workdir: str | os.PathLike,
    config: T5Config,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
) -> Params:
    """The frozen encoder of a workdir.

    Raises:
        ValueError: the files that it refers to are gone, or others by now.
    """
    workdir = Path(workdir)
    if not (workdir / REFERENCE_FILE).is_file():
        return read_weights(workdir, config, dtype, sharding)
    kept = read_dataclass(workdir / REFERENCE_FILE, "a reference to a text encoder", Reference)
    if not is_encoder(kept.source):
        raise ValueError(
            f"{workdir} was trained with the text encoder in {kept.source}: it is gone."
        )
    # Earlier versions took the fingerprint of the whole folder.
    if kept.fingerprint not in (reference_fingerprint(kept.source), fingerprint(kept.source)):
        raise ValueError(
            f"{workdir} was trained with the text encoder in {kept.source}, whose files have "
            "changed."
        )
    found, params = read_encoder(kept.source, dtype, sharding)
    check_config(kept.source, found, config)
    return params
