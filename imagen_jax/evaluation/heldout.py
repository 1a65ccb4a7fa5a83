"""Text to image on held-out images of a captioned set: is what a model makes of a caption nearest
to the image that has it?
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from imagen_jax.data.sources import ArraySource, read_npz
from imagen_jax.evaluation.image_set import SIZE, Gallery, shrink
from imagen_jax.evaluation.retrieval import TOP, find
from imagen_jax.storage.folders import user_path

FEATURE = f"pixels at {SIZE}x{SIZE}, mean squared error"
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
    with np.load(user_path(path)) as archive:
        if "split" not in archive.files:
            raise ValueError(f"{path} has no array 'split' that says which images are held out")
        split = archive["split"]
    variant = np.asarray(everything.extra.get("variant", np.zeros(len(split))), bool)
    rows = np.flatnonzero(np.isin(split, splits) & ~variant)
    found = split[rows]
    if missing := [name for name in splits if name not in found]:
        raise ValueError(f"{path} has no image in its split {', '.join(map(repr, missing))}")
    draw = np.random.default_rng(DRAW_SEED)
    each = [draw.permutation(np.flatnonzero(found == name))[:num] for name in splits]
    return HeldoutImages(everything.select(rows), found, np.sort(np.concatenate(each)))


def share(hits: int, total: int) -> dict[str, float]:
    """{"share", "low", "high", "hits", "n"}, with the 95 % interval of Wilson (JASA 22, 1927)."""
    interval = binomtest(hits, total).proportion_ci(method="wilson")
    return {
        "share": hits / total,
        "low": float(interval.low),
        "high": float(interval.high),
        "hits": hits,
        "n": total,
    }


def measure_retrieval(heldout: HeldoutImages, images: np.ndarray) -> dict[str, Any]:
    """How often the image that has a caption is the nearest, or among the nearest five, of all
    held-out ones.

    Args:
        images: uint8 [asked, H, W, 3], sampled for `heldout.prompts`.

    Returns:
        {"feature", "candidates", "chance": by top, "shares": {split or "all": {"top1": ...}}}
    """
    gallery = Gallery(shrink(heldout.source.images), np.arange(len(heldout.source)))
    rank, _ = find(images, heldout.asked, gallery)
    splits, count = heldout.split[heldout.asked], len(gallery.classes)
    groups = {ALL: np.full(len(rank), True)} | {str(x): splits == x for x in np.unique(splits)}
    return {
        "feature": FEATURE,
        "candidates": count,
        "chance": {f"top{k}": min(1.0, k / count) for k in TOP},
        "shares": {
            name: {f"top{k}": share(int((rank[rows] <= k).sum()), int(rows.sum())) for k in TOP}
            for name, rows in groups.items()
        },
    }
