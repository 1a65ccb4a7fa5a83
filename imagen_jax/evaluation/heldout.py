"""Text to image on held-out images of a captioned set: is what a model makes of a caption nearest
to the image that has it?
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.sources import ArraySource, read_npz
from imagen_jax.evaluation.retrieval import (
    FEATURE,
    TOP,
    ranks,
    shrink,
    squared_distances,
    top_shares,
)

DRAW_SEED = 0  # which images are asked for never depends on the seed of a run
ALL = "all"


@dataclasses.dataclass(frozen=True, eq=False)
class HeldoutImages:
    """Images that no model has trained on, with a prompt each, and those that are asked for.

    split: of each image. asked: rows of the images whose prompts are sampled.
    """

    source: ArraySource
    split: np.ndarray
    asked: np.ndarray

    @property
    def prompts(self) -> list[str]:
        """The first caption of each image that is asked for."""
        return [self.source.captions[row][0][0] for row in self.asked]

    @property
    def images(self) -> np.ndarray:
        """uint8 images that are asked for."""
        return self.source.images[self.asked]


def read_heldout(path: str | Path, splits: Sequence[str], num: int) -> HeldoutImages:
    """The images of these splits of an npz file, `num` of each asked for.

    Where the file has an array `variant`, what differs from another image by skin tone or gender
    alone is left out: no feature tells such twins apart.

    Raises:
        ValueError: there is no such file, or it lacks captions, splits, or images of a split.
    """
    everything = read_npz(path, "all")
    if "split" not in everything.extra:
        raise ValueError(f"{path} has no array 'split' that says which images are held out")
    split = everything.extra["split"]
    variant = np.asarray(everything.extra.get("variant", np.zeros(len(split))), bool)
    rows = np.flatnonzero(np.isin(split, splits) & ~variant)
    found = split[rows]
    if missing := [name for name in splits if name not in found]:
        raise ValueError(f"{path} has no image in its split {', '.join(map(repr, missing))}")
    draw = np.random.default_rng(DRAW_SEED)
    each = [draw.permutation(np.flatnonzero(found == name))[:num] for name in splits]
    return HeldoutImages(everything.select(rows), found, np.sort(np.concatenate(each)))


def measure_retrieval(heldout: HeldoutImages, images: np.ndarray) -> dict[str, Any]:
    """How often the image that has a caption is the nearest, or among the nearest five, of all
    held-out ones.

    Args:
        images: uint8 [asked, H, W, 3], sampled for `heldout.prompts`.

    Returns:
        {"feature", "candidates", "chance": by top, "shares": {split or "all": {"top1": ...}}}
    """
    distances = squared_distances(shrink(images), shrink(heldout.source.images))
    rank, count = ranks(distances, heldout.asked), len(heldout.source)
    splits = heldout.split[heldout.asked]
    groups = {ALL: np.full(len(rank), True)} | {str(x): splits == x for x in np.unique(splits)}
    return {
        "feature": FEATURE,
        "candidates": count,
        "chance": {f"top{k}": min(1.0, k / count) for k in TOP},
        "shares": {name: top_shares(rank[rows]) for name, rows in groups.items()},
    }
