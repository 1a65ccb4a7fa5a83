"""Is a generated image recognisable? It is, where its nearest neighbour among all images of the
set, by mean squared error at 32x32, is the one whose name it was generated from.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.images.pixels import resize

SIZE = 32
TOP = (1, 5)


class Gallery(NamedTuple):
    """The distinct images of a set at 32x32, and the class of each."""

    images: np.ndarray  # uint8 [classes, 32, 32, 3]
    classes: np.ndarray  # int [classes]


class Found(NamedTuple):
    """Of each generated image: the rank of the right class, 1 being the nearest, and the class
    that is the nearest.
    """

    rank: np.ndarray  # int [samples]
    nearest: np.ndarray  # int [samples]


def make_gallery(images: np.ndarray, classes: np.ndarray) -> Gallery:
    """The first image of each class, so that pixel-identical images count as one."""
    if len(images) != len(classes):
        raise ValueError(f"there are {len(classes)} classes for {len(images)} images")
    known, first = np.unique(classes, return_index=True)
    return Gallery(shrink(images[first]), known)


def shrink(images: np.ndarray) -> np.ndarray:
    """uint8 images [N, H, W, 3] at 32x32, resized as a base model's training images are."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; they must be uint8 [N, H, W, 3]"
        )
    return np.stack([resize(image, SIZE) for image in images])


def squared_distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Sums of squared differences [images, others] of uint8 images; exact, being integers."""
    a = images.reshape(len(images), -1).astype(np.float64)
    b = others.reshape(len(others), -1).astype(np.float64)
    return np.square(a).sum(1)[:, None] - 2.0 * a @ b.T + np.square(b).sum(1)[None]


def find(images: np.ndarray, classes: np.ndarray, gallery: Gallery) -> Found:
    """Where each generated image finds its class in the gallery.

    The rank is one more than the number of classes that are strictly nearer: classes that look the
    same at 32x32 do not count against each other.

    Args:
        images: uint8 [samples, H, W, 3], of any size.
        classes: the right class of each.
    """
    if len(images) != len(classes):
        raise ValueError(f"there are {len(classes)} classes for {len(images)} images")
    unknown = sorted(set(np.asarray(classes).tolist()) - set(gallery.classes.tolist()))
    if unknown:
        raise ValueError(f"classes {unknown[:5]} are not in the gallery")
    distances = squared_distances(shrink(images), gallery.images)
    right = np.searchsorted(gallery.classes, classes)  # make_gallery sorts them
    own = np.take_along_axis(distances, right[:, None], axis=1)
    rank = 1 + (distances < own).sum(axis=1)
    nearest = np.where(rank == 1, classes, gallery.classes[distances.argmin(axis=1)])
    return Found(rank, nearest)


def scores(rank: np.ndarray) -> dict[str, Any]:
    """{"top1", "top5": shares in [0, 1], "n"}; None instead of a share where n is 0."""
    shares = {f"top{k}": float((rank <= k).mean()) if len(rank) else None for k in TOP}
    return {**shares, "n": len(rank)}


def summarize(
    rank: np.ndarray, language: np.ndarray, variant: np.ndarray, candidates: int
) -> dict[str, Any]:
    """Scores of all samples, by language, and of skin-tone and gender variants by themselves.

    "chance" is what images without any relation to the names would get.
    """
    groups: Mapping[str, np.ndarray] = {name: language == name for name in np.unique(language)}
    return {
        **scores(rank),
        "median_rank": float(np.median(rank)) if len(rank) else None,
        "candidates": candidates,
        "chance": {f"top{k}": min(1.0, k / candidates) for k in TOP},
        "by_language": {str(name): scores(rank[rows]) for name, rows in groups.items()},
        "variants": scores(rank[variant]),
        "not_variants": scores(rank[~variant]),
    }
