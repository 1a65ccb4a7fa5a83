"""The features of the true images, in one file with what they were made of."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from imagen_jax.evaluation.extraction import (
    Extractor,
    features_of_part,
    folder_name,
    identity,
    write_tensors,
)
from imagen_jax.evaluation.generation import ALL, Share
from imagen_jax.evaluation.image_folder import Part, Treatment
from imagen_jax.evaluation.report import ProgressLine
from imagen_jax.evaluation.statistics import Statistics

NOTE = "imagen_jax_reference"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of the reference images by the name of the network that made them.

    about: the source, how many images, their size, what was done to them, and the networks.
    fingerprint: changes with any of it and with any byte of the images.
    """

    features: dict[str, np.ndarray]
    about: dict[str, Any]
    fingerprint: str

    @property
    def count(self) -> int:
        return int(self.about["pictures"])

    def of(self, extractor: Extractor) -> np.ndarray:
        """The features by this network; ValueError where the file has none by just this one."""
        made_by = self.about["extractors"].get(extractor.name)
        if made_by is None:
            known = ", ".join(self.about["extractors"])
            raise ValueError(
                f"The reference has no features of {extractor.name}, only of {known}: make it "
                "again with --make_reference and these --features."
            )
        if made_by != identity(extractor):
            raise ValueError(
                f"The reference's features of {extractor.name} are by {made_by}, not by "
                f"{identity(extractor)}: make it again with --make_reference."
            )
        return self.features[extractor.name]


def make_reference(
    extractors: Sequence[Extractor],
    images: Iterable[Part],
    source: dict[str, Any],
    treatment: Treatment,
    total: int,
    directory: Path,
    share: Share = ALL,
) -> Reference | None:
    """Features of all images by all networks; None for a share, whose parts are kept alone.

    Each part's features are a file in `directory`, and are not computed again.

    Args:
        images: the parts of this share.

    Raises:
        ValueError: there are fewer than two images.
    """
    line = ProgressLine("reference", -(-total // share.count))
    found: dict[str, list[np.ndarray]] = {extractor.name: [] for extractor in extractors}
    digest = hashlib.sha256()
    for number, part in enumerate(images):
        digest.update(part.digest.encode())
        for extractor in extractors if part.rows else ():
            place = share.index + number * share.count
            path = directory / folder_name(extractor) / f"{place:06d}.safetensors"
            found[extractor.name].append(features_of_part(extractor, part, path))
        line.advance(len(part.rows))
    if share != ALL:
        return None
    count = treatment.counts["pictures"]
    if count < 2:
        raise ValueError(f"A reference needs 2 images or more, not {count}.")
    about = {
        "source": source,
        "pictures": count,
        "treatment": treatment.to_dict(),
        "digest": digest.hexdigest(),
        "extractors": {extractor.name: identity(extractor) for extractor in extractors},
    }
    features = {name: np.concatenate(each) for name, each in found.items()}
    return Reference(features, about, _fingerprint(about))


def write_reference(path: Path, reference: Reference) -> None:
    """One safetensors file: float32 features by network, and `about` as its metadata."""
    notes = {NOTE: json.dumps({"version": VERSION, **reference.about}, sort_keys=True)}
    write_tensors(path, reference.features, notes)


def read_reference(path: Path) -> Reference:
    """What `write_reference` wrote.

    Raises FileNotFoundError, or ValueError where the file is another, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; make it with --make_reference FOLDER --features DIR "
            f"--reference {path}."
        )
    try:
        with safe_open(path, "np") as tensors:
            about = json.loads((tensors.metadata() or {})[NOTE])
            features = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        version = about.pop("version")
        if version != VERSION or set(features) != set(about["extractors"]):
            raise ValueError(f"version {version}, features of {sorted(features)}")
        for name, values in features.items():
            if values.shape[:1] != (about["pictures"],) or not np.isfinite(values).all():
                raise ValueError(f"features of {name} {list(values.shape)} are not whole")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a reference that can be read: {error!r}.") from None
    return Reference(features, about, _fingerprint(about))


def statistics_of(features: np.ndarray, block: int = 4096) -> Statistics:
    """Mean and covariance of features, in float64."""
    statistics = Statistics(features.shape[1])
    for start in range(0, len(features), block):
        statistics.update(features[start : start + block])
    return statistics


def _fingerprint(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
