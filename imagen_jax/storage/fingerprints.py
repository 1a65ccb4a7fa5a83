"""Some digits that change when what they stand for does.

They are kept in models, references and reports: how they are computed must never change.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from imagen_jax.typing import Params

DIGITS = 16  # of SHA-256 in hexadecimal


def of_bytes(content: bytes) -> str:
    """The fingerprint of a file's content."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def of_files(files: Iterable[Path]) -> str:
    """Of the bytes of all files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:DIGITS]


def of_parameters(params: Mapping[str, Params]) -> str:
    """Of the parameters of each part of a model: paths, types, shapes and values."""
    digest = hashlib.sha256()
    for part in sorted(params):
        for path, leaf in jax.tree.leaves_with_path(params[part]):
            digest.update(f"{part}{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()[:DIGITS]
