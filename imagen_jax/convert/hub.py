"""A model's files by its name on the Hugging Face hub, through huggingface_hub and its cache."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from imagen_jax.storage.folders import user_path
from imagen_jax.storage.wrong_files import absent

# Weights as safetensors, configs, tokenizers.
FILES = ("*.safetensors", "*.json", "*.model")
# Never fetched: they are never read.
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.msgpack", "*.h5")
# Kept out where no variant is asked for: each holds the model once more.
VARIANTS = ("fp16", "bf16", "fp32", "non_ema", "ema")
# Parts of pipelines that nothing here reads.
UNUSED_FOLDERS = ("safety_checker/*", "feature_extractor/*", "watermarker/*")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def file_patterns(variant: str | None = None) -> tuple[list[str], list[str]]:
    """The names of files to fetch, as patterns, and those to leave out of them."""
    if variant is None:
        left_out = [f"*.{name}{end}" for name in VARIANTS for end in (".*", "-*")]
        return list(FILES), [*UNUSED_FOLDERS, *PICKLES, *left_out]
    weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors", f"*-of-*.{variant}.*"]
    return [*weights, "*.json", "*.model"], [*UNUSED_FOLDERS, *PICKLES]


def resolve(
    name_or_directory: str | os.PathLike,
    *,
    allow_patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] = (),
    revision: str | None = None,
    variant: str | None = None,
) -> Path:
    """A directory with the model's files: a local one as it is, "org/name" from the hub.

    The hub's cache, access token and offline mode are those of huggingface_hub (its environment
    variables apply); files that are in the cache already are not fetched again.

    Args:
        allow_patterns: the files to fetch; None fetches safetensors, JSON and tokenizers. Pickles
            are never fetched.
        ignore_patterns: files to leave out of them.
        revision: a branch, tag or commit; None is the main branch.
        variant: such as "fp16": only those weights.

    Raises:
        FileNotFoundError: there is no such directory or repository, or it cannot be reached.
        PermissionError: the repository asks for its terms to be accepted.
        ValueError: a revision or variant is given for a local directory.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    name = os.fspath(name_or_directory)
    directory = user_path(name)
    if name and directory.is_dir():
        if revision is not None:
            raise ValueError(f"{directory} is a directory here; it has no revision {revision!r}.")
        return directory
    if name and directory.exists():
        raise ValueError(f"{name} is a file; give the directory that holds the model.")
    if not NAME.fullmatch(name) or ".." in name:
        raise FileNotFoundError(
            f"{absent(name, 'folder')} Names on the Hugging Face hub have the form "
            "'organization/model'."
        )
    allowed, left_out = file_patterns(variant)
    return _download(name, list(allow_patterns or allowed), [*left_out, *ignore_patterns], revision)


def _import_hub(name: str) -> ModuleType:
    try:
        import huggingface_hub.errors  # not an attribute of the package before it is imported
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{absent(name, 'folder')} If it is a name on the Hugging Face hub, install "
            "huggingface_hub to fetch it (pip install 'imagen_jax[hub]')."
        ) from None
    return huggingface_hub


def _download(name: str, allowed: list[str], left_out: list[str], revision: str | None) -> Path:
    hub = _import_hub(name)
    at = "" if revision is None else f" at revision {revision!r}"
    # In this order: some are kinds of others.
    refusals = (
        (
            hub.errors.GatedRepoError,
            PermissionError,
            f"{name} asks for its terms to be accepted: accept them on its page on the Hugging "
            "Face hub, then log in here with `hf auth login`, or set HF_TOKEN.",
        ),
        (
            hub.errors.RevisionNotFoundError,
            FileNotFoundError,
            f"{name} on the Hugging Face hub has no revision {revision!r}.",
        ),
        (
            hub.errors.RepositoryNotFoundError,
            FileNotFoundError,
            f"{absent(name, 'folder')} Nor is there a repository of that name on the Hugging Face "
            "hub; if it is private, log in with `hf auth login`, or set HF_TOKEN.",
        ),
        (
            hub.errors.LocalEntryNotFoundError,
            FileNotFoundError,
            f"{absent(name, 'folder')} As a name on the Hugging Face hub, {name}{at} is not "
            "(whole) in the cache, and the hub cannot be reached: connect, unset HF_HUB_OFFLINE if "
            "it is set, or give a directory that holds the model.",
        ),
    )
    try:
        path = hub.snapshot_download(
            name, revision=revision, allow_patterns=allowed, ignore_patterns=left_out
        )
    except (OSError, ValueError) as error:
        for kind, ours, said in refusals:
            if isinstance(error, kind):
                raise ours(said) from None
        # Other answers of the hub, of the network, and of a full disk.
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{name}{at} could not be fetched from the Hugging Face hub: {reason}"
        ) from error
    return Path(path)
