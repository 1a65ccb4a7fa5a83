"""The features of the true images, in one file with what they were made of."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from imagen_jax.data.coco import TFDS_NAME, TFDS_SPLITS
from imagen_jax.evaluation.extraction import extract, write_tensors
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.image_folder import Preprocessing, SourceImages, read_chunks
from imagen_jax.evaluation.shards import WHOLE, Shard
from imagen_jax.storage import fingerprints
from imagen_jax.storage.json_file import parse_object
from imagen_jax.storage.wrong_files import refusal

NOTE = "imagen_jax_reference"
VERSION = 1
VAL2014_NAME = re.compile(r"COCO_val2014_\d{12}\.\w+")


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of the reference images by the name of the network that made them.

    about: the source, how many images, their size, what was done to them, and the networks.
    """

    features: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Changes with all of `about` and with any byte of the images."""
        return fingerprints.of_bytes(json.dumps(self.about, sort_keys=True).encode())

    @property
    def count(self) -> int:
        """How many images it was made of."""
        return int(self.about["pictures"])

    @property
    def size(self) -> int:
        """Of the images, in pixels."""
        return int(self.about["treatment"]["size"])

    def of(self, extractor: FeatureExtractor) -> np.ndarray:
        """The features by this network; ValueError where the file has none by just this one."""
        made_by = self.about["extractors"].get(extractor.name)
        if made_by is None:
            known = ", ".join(self.about["extractors"])
            raise ValueError(
                f"The reference has no features of {extractor.name}, only of {known}: make it "
                "again with --make_reference and these --features."
            )
        if made_by != extractor.identity:
            raise ValueError(
                f"The reference's features of {extractor.name} are by {made_by}, not by "
                f"{extractor.identity}: make it again with --make_reference."
            )
        return self.features[extractor.name]


def make_reference(
    extractors: Sequence[FeatureExtractor],
    items: Sequence[Path] | SourceImages,
    size: int,
    source: dict[str, Any],
    directory: Path,
    *,
    shard: Shard = WHOLE,
    skip_broken: bool = False,
) -> Reference | None:
    """Features of all images by all networks; None for a shard: only its chunks are kept.

    Each chunk's features are a file in `directory`, and are not computed again.

    Args:
        source: where the images come from.

    Raises:
        ValueError: there are fewer than two images, or one is broken and `skip_broken` is false.
    """
    preprocessing, ranges = Preprocessing(size), shard.chunks(len(items))
    chunks = read_chunks(items, preprocessing, ranges, skip_broken)
    total, what = sum(map(len, ranges)), "reference's features"
    features = extract(extractors, chunks, directory, total, numbered=True, what=what)
    if shard != WHOLE:
        return None
    count = preprocessing.counts["pictures"]
    if count < 2:
        raise ValueError(f"A reference needs 2 images or more, not {count}.")
    about = {
        "source": source,
        "pictures": count,
        "treatment": preprocessing.to_dict(),
        "digest": features.digest,
        "extractors": {extractor.name: extractor.identity for extractor in extractors},
    }
    return Reference(features.by_network, about)


def is_val2014(source: Mapping[str, Any], files: Sequence[Path]) -> bool:
    """Whether a reference's source is COCO's val2014: all images named so, or TFDS's splits."""
    if source["kind"] == "tfds":
        return source["name"] == TFDS_NAME and source["split"] == TFDS_SPLITS
    return bool(files) and all(VAL2014_NAME.fullmatch(file.name) for file in files)


def write_reference(path: Path, reference: Reference) -> None:
    """One safetensors file: float32 features by network, and `about` as its metadata."""
    notes = {NOTE: json.dumps({"version": VERSION, **reference.about}, sort_keys=True)}
    write_tensors(path, reference.features, notes)


def read_reference(path: Path) -> Reference:
    """What `write_reference` wrote.

    Raises FileNotFoundError, or ValueError where the file is another, or damaged.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; give the file of its features: imagen-jax evaluate "
            f"--make_reference {path} --reference FILE writes it."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file or folder {path}. --reference takes a folder of true images, or the "
            f"file that --make_reference FOLDER --reference {path} writes."
        )
    try:
        with safe_open(path, "np") as tensors:
            about = parse_object((tensors.metadata() or {})[NOTE])
            features = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        version = about.pop("version")
        if version != VERSION or set(features) != set(about["extractors"]):
            raise ValueError(f"version {version}, features of {sorted(features)}")
        for name, values in features.items():
            if values.shape[:1] != (about["pictures"],) or not np.isfinite(values).all():
                raise ValueError(f"features of {name} {list(values.shape)} are not whole")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        kind = "a reference that can be read"
        raise ValueError(refusal(path, kind, repr(error), ("safetensors",))) from None
    return Reference(features, about)
