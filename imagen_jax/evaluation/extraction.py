"""Features of many images, kept on disk part by part, so that a run that was killed goes on."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagen_jax.evaluation.generation import ALL, Share, parts
from imagen_jax.evaluation.image_folder import Part, Treatment, read_parts
from imagen_jax.evaluation.report import ProgressLine
from imagen_jax.storage.atomic import written_whole


@runtime_checkable
class Extractor(Protocol):
    """What is needed of a feature network (`imagen_jax.evaluation.features.FeatureExtractor`)."""

    kind: str
    name: str
    fingerprint: str

    def images(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...

    def describe(self) -> dict[str, Any]: ...


def by_name(extractors: Sequence[Extractor]) -> dict[str, Extractor]:
    """The extractors by name; ValueError where two have the same."""
    named = {extractor.name: extractor for extractor in extractors}
    if len(named) != len(extractors):
        raise ValueError(f"--features names a network twice: {[e.name for e in extractors]}.")
    return named


def identity(extractor: Extractor) -> str:
    """What decides the features, as text: those of another identity do not compare."""
    return json.dumps(extractor.describe(), sort_keys=True)


def cached_features(
    extractors: Sequence[Extractor],
    files: Sequence[Path],
    treatment: Treatment,
    directory: Path,
    batch_size: int,
    *,
    skip_broken: bool = False,
    share: Share = ALL,
) -> tuple[dict[str, np.ndarray], list[int]]:
    """float32 [images, dim] by extractor's name, and which of the files could be read.

    Features that `directory` holds of the same bytes by the same network are not computed again.
    With a share, only every count-th part is, for another run to find.
    """
    line = ProgressLine("features", len(files))
    rows: list[int] = []
    found: dict[str, list[np.ndarray]] = {extractor.name: [] for extractor in extractors}
    for chosen in parts(len(files), batch_size, share):
        wanted = files[chosen.start : chosen.stop]
        (part,) = read_parts(wanted, treatment, len(wanted), skip_broken)
        for extractor in extractors if part.rows else ():
            path = directory / folder_name(extractor) / f"{chosen.start:06d}.safetensors"
            found[extractor.name].append(features_of_part(extractor, part, path))
        rows += [chosen.start + row for row in part.rows]
        line.advance(len(chosen))
    return {name: np.concatenate(each) for name, each in found.items() if each}, rows


def features_of_part(extractor: Extractor, part: Part, path: Path) -> np.ndarray:
    """The features of a part, from its file if that is of these images and this network."""
    wanted = {"pictures": part.digest, "extractor": identity(extractor)}
    features = read_part(path, wanted)
    if features is None or len(features) != len(part.images):
        features = np.asarray(extractor.images(part.images), np.float32)
        write_tensors(path, {"features": features}, wanted)
    return features


def folder_name(extractor: Extractor) -> str:
    """A name for the extractor's features on disk."""
    return re.sub(r"[^\w.-]+", "_", f"{extractor.name}-{extractor.fingerprint}")


def read_part(path: Path, wanted: dict[str, str]) -> np.ndarray | None:
    """The features in a file with these notes; None where there is none, or it is of others."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as tensors:
            notes = tensors.metadata() or {}
            return tensors.get_tensor("features") if notes == wanted else None
    except (SafetensorError, OSError, ValueError):
        return None  # damaged: computed again


def write_tensors(path: Path, tensors: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    """A safetensors file, there whole or not at all."""
    with written_whole(path) as file:
        save_file(tensors, file, notes)
