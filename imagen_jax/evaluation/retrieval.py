"""Is an image recognisable? It is, where its nearest neighbour among the images of a set, by mean
squared error at 32x32, is the right one.
"""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest

from imagen_jax.images.pixels import resize

SIZE = 32  # pixels, at which images are compared
FEATURE = f"pixels at {SIZE}x{SIZE}, mean squared error"
TOP = (1, 5)


def shrink(images: np.ndarray) -> np.ndarray:
    """uint8 images [N, H, W, 3] at 32x32, resized as a base model's training images are."""
    return np.stack([resize(image, SIZE) for image in images])


def distinct(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the images without repetitions, the place among them of each of `images`)."""
    places: dict[bytes, int] = {}
    place = np.asarray([places.setdefault(image.tobytes(), len(places)) for image in images])
    return images[np.unique(place, return_index=True)[1]], place


def squared_distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Sums of squared differences [images, others] of uint8 images; exact, being integers."""
    a = images.reshape(len(images), -1).astype(np.float64)
    b = others.reshape(len(others), -1).astype(np.float64)
    return np.square(a).sum(1)[:, None] - 2.0 * a @ b.T + np.square(b).sum(1)[None]


def ranks(distances: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One more than the number of candidates that are strictly nearer than the right one.

    Args:
        distances: [images, candidates].
        right: the candidate that each image should be nearest to.
    """
    own = np.take_along_axis(distances, right[:, None], axis=1)
    return 1 + (distances < own).sum(axis=1)


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


def top_shares(rank: np.ndarray) -> dict[str, dict[str, float]]:
    """{"top1", "top5": `share`} of some ranks."""
    return {f"top{k}": share(int((rank <= k).sum()), len(rank)) for k in TOP}


def percent(found: Mapping[str, float]) -> str:
    """4.2 % (3.1-5.6)."""
    return f"{found['share']:.1%} ({100 * found['low']:.1f}-{100 * found['high']:.1f})"
