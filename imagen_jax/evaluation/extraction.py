"""Features of many images, kept on disk chunk by chunk, so that a killed run can resume."""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagen_jax.evaluation import shards
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.image_folder import Chunk
from imagen_jax.evaluation.progress import image_bar
from imagen_jax.storage.atomic import written_whole


class Features(NamedTuple):
    """float32 [images, dim] by extractor's name, which images could be read, and their digest."""

    by_network: dict[str, np.ndarray]
    rows: list[int]
    digest: str


def extract(
    extractors: Sequence[FeatureExtractor],
    chunks: Iterable[Chunk],
    directory: Path,
    total: int,
    *,
    numbered: bool = False,
    what: str = "features",
) -> Features:
    """The features of all images by all networks.

    Those that `directory` holds of the same bytes by the same network are not computed again.

    Args:
        total: the number of images in all chunks, for the progress bar.
        what: the name of the progress bar.
        numbered: whether files are named by the number of their chunk; else by its first image.
    """
    found: dict[str, list[np.ndarray]] = {extractor.name: [] for extractor in extractors}
    rows, digest = [], hashlib.sha256()
    with image_bar(what, total) as bar:
        for chunk in chunks:
            digest.update(chunk.digest.encode())
            rows += chunk.rows
            name = chunk.start // shards.CHUNK if numbered else chunk.start
            for extractor in extractors if chunk.rows else ():
                folder = re.sub(r"[^\w.-]+", "_", f"{extractor.name}-{extractor.fingerprint}")
                path = directory / folder / f"{name:06d}.safetensors"
                found[extractor.name].append(_features_of(extractor, chunk, path))
            bar.update(len(chunk.rows))
    features = {name: np.concatenate(each) for name, each in found.items() if each}
    return Features(features, rows, digest.hexdigest())


def _features_of(extractor: FeatureExtractor, chunk: Chunk, path: Path) -> np.ndarray:
    """The features of a chunk, from its file if that is of these images and this network."""
    notes = {"pictures": chunk.digest, "extractor": extractor.identity}
    damaged = SafetensorError, OSError, ValueError  # or there is none yet
    with contextlib.suppress(*damaged), safe_open(path, "np") as tensors:
        if tensors.metadata() == notes:
            return tensors.get_tensor("features")
    features = np.asarray(extractor.images(chunk.images), np.float32)
    write_tensors(path, {"features": features}, notes)
    return features


def write_tensors(path: Path, tensors: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    """A safetensors file, there whole or not at all."""
    with written_whole(path) as file:
        save_file(tensors, file, notes)
