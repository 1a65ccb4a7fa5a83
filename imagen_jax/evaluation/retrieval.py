"""Is a generated image recognisable? It is, where its nearest neighbour among all images of the
set, by mean squared error at 32x32, is the one whose name it was generated from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.evaluation.image_folder import Preprocessing, read_chunks
from imagen_jax.evaluation.image_set import Gallery, ImagePrompt, ImageSet, shrink
from imagen_jax.evaluation.report import Report, contact_sheet

TOP = (1, 5)


def squared_distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Sums of squared differences [images, others] of uint8 images; exact, being integers."""
    a = images.reshape(len(images), -1).astype(np.float64)
    b = others.reshape(len(others), -1).astype(np.float64)
    return np.square(a).sum(1)[:, None] - 2.0 * a @ b.T + np.square(b).sum(1)[None]


def find(
    images: np.ndarray, classes: np.ndarray, gallery: Gallery
) -> tuple[np.ndarray, np.ndarray]:
    """Where each generated image finds its class in the gallery: (rank, nearest class) of each.

    The rank is one more than the number of classes that are strictly nearer: classes that look the
    same at 32x32 do not count against each other.

    Args:
        images: uint8 [samples, H, W, 3], of any size.
        classes: the right class of each, one of the gallery's.
    """
    distances = squared_distances(shrink(images), gallery.images)
    right = np.searchsorted(gallery.classes, classes)  # make_gallery sorts them
    own = np.take_along_axis(distances, right[:, None], axis=1)
    rank = 1 + (distances < own).sum(axis=1)
    return rank, np.where(rank == 1, classes, gallery.classes[distances.argmin(axis=1)])


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
    return {
        **scores(rank),
        "median_rank": float(np.median(rank)) if len(rank) else None,
        "candidates": candidates,
        "chance": {f"top{k}": min(1.0, k / candidates) for k in TOP},
        "by_language": {str(x): scores(rank[language == x]) for x in np.unique(language)},
        "variants": scores(rank[variant]),
        "not_variants": scores(rank[~variant]),
    }


def evaluate_retrieval(
    emoji: ImageSet, prompts: Sequence[ImagePrompt], files: Sequence[Path], size: int
) -> Report:
    """Looks for each generated image among all distinct ones of the set."""
    chunks = read_chunks(files, Preprocessing(size))
    images = np.concatenate([shrink(chunk.images) for chunk in chunks])
    shown = emoji.source.select(np.asarray([prompt.image for prompt in prompts]))
    rank, nearest = find(images, shown.labels, emoji.gallery)
    language = np.asarray([prompt.language for prompt in prompts])
    variant = shown.extra["variant"].astype(bool)
    values = summarize(rank, language, variant, len(emoji.gallery.classes))
    columns = {
        "index": range(len(images)),
        "key": shown.keys,
        "language": language,
        "prompt": [prompt.text for prompt in prompts],
        "variant": variant.astype(int),
        "rank": rank,
        "nearest_class": nearest,
    }
    rows = [[str(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    # English below both, since few machines have a font that draws Chinese.
    names = zip(rank, language, shown.extra["name_en"], strict=True)
    captions = [f"rank {rank} ({language}): {name}" for rank, language, name in names]
    pairs = list(zip(shrink(shown.images), images, strict=True))
    return Report(
        {"retrieval": values},
        {"retrieval.csv": [list(columns), *rows]},
        {"retrieval.png": contact_sheet(pairs, captions)},
    )
