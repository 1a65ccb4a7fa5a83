"""The true images of an evaluation: a folder, an npz file or a set of TFDS, and their features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen_jax.data.sources import read_npz
from imagen_jax.data.tfds_source import read_tfds
from imagen_jax.evaluation import image_folder
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.reference import (
    Reference,
    is_val2014,
    make_reference,
    write_reference,
)
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.storage.folders import make_folder


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """True images before their features are made: at `size` pixels; `source` is for the report."""

    items: Sequence[Path] | image_folder.SourceImages
    source: dict[str, Any]
    size: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.items)


def open_reference_images(request: EvaluationRequest) -> ReferenceImages | None:
    """The images of --make_reference (a folder, an npz file or tfds:NAME:SPLIT), or of a
    --reference that is a folder; None where neither is given.

    Raises ValueError where there are none, or fewer than two, or their sizes differ and none is
    given; also where --reference could not be written.
    """
    asked = request.make_reference
    if asked is None and (request.reference is None or not request.reference.is_dir()):
        return None
    kind, _, rest = (asked or "").partition(":")
    if rest == "" and kind.endswith(".npz"):
        items = image_folder.SourceImages(read_npz(asked, request.split, None))
        kind, source = "npz", {"path": asked, "split": request.split}
    elif kind == "tfds":
        name, _, split = rest.rpartition(":")
        if not name:
            raise ValueError(f"--make_reference {asked} must be tfds:NAME:SPLIT.")
        items = image_folder.SourceImages(read_tfds(name, split, None))
        source = {"name": name, "split": split}
    else:
        kind, folder = "folder", asked or str(request.reference)
        items, source = image_folder.list_images(folder), {"path": folder}
    if len(items) < 2:
        raise ValueError(f"A reference needs 2 images or more; {source} has {len(items)}.")
    if asked is not None:
        make_folder(request.reference.parent, "--reference")
    source = {"kind": kind, **source}
    source["val2014"] = is_val2014(source, items if kind == "folder" else ())
    size = request.size or image_folder.common_size(items)
    return ReferenceImages(items, source, size)


def compute_reference(
    images: ReferenceImages,
    extractors: Sequence[FeatureExtractor],
    request: EvaluationRequest,
    directory: Path,
) -> Reference | None:
    """The features of the images, written as --reference where they are those of --make_reference;
    None for a share of the work, which leaves its parts.

    Args:
        directory: for the parts of a --reference that is a folder.
    """
    path = request.reference
    saved = request.make_reference is not None
    made = make_reference(
        extractors,
        images.items,
        images.size,
        images.source,
        path.with_name(f"{path.name}.parts") if saved else directory,
        shard=request.shard,
        skip_broken=request.skip_broken,
    )
    if made is not None and saved:
        write_reference(path, made)
        print(f"{path}: {made.count} images, fingerprint {made.fingerprint}")
    return made
