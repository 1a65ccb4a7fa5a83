"""Distances between two sets of features, and of images from their captions: NumPy, float64.

Fréchet and kernel distances and CMMD of the features of images and references; cosines and ranks of
CLIP's.
"""

from typing import NamedTuple

import numpy as np

BLOCK = 4096  # vectors that are held in float64 at once
KERNEL_BLOCK = 512  # rows of a kernel matrix that are held at once
# torch-fidelity's; the same draws give the same KID.
KID_SEED = 2020
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class Statistics(NamedTuple):
    """The mean of feature vectors, and their covariance (divided by their number less one)."""

    mean: np.ndarray  # float64 [dim]
    covariance: np.ndarray  # float64 [dim, dim]


def statistics_of(features: np.ndarray) -> Statistics:
    """The statistics of features [images, dim] of any floating-point type.

    In two passes, so that no large sums cancel. Raises ValueError where there are fewer than two
    vectors, or some that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features are {list(features.shape)}; they must be [images, dim] of at least 2 images."
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(f"The features of image {np.argmin(finite)} are not finite.")
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), BLOCK):
        centred = features[start : start + BLOCK] - mean
        scatter += centred.T @ centred
    return Statistics(mean, scatter / (len(features) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the FID of arXiv 1706.08500, eq. 6.

    With C_a = A A^T and C_b = B B^T the last trace is the sum of the singular values of A^T B: real
    and never negative, whatever the ranks. Both must have the same dimension.
    """
    cross = _square_root(a.covariance).T @ _square_root(b.covariance)
    shared = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """A [dim, rank] with A A^T = covariance, its null space (eigenvalues of rounding) left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(
    x: np.ndarray,
    y: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = KID_SEED,
) -> tuple[float, float]:
    """KID (arXiv 1801.01401, section 4): mean and standard deviation over random subsets of the
    unbiased squared MMD with the kernel (x.y / dim + 1)^3.

    Args:
        x, y: features [images, dim], each of at least `subset_size` images.
        subsets, subset_size, seed: with the defaults, those of torch-fidelity and the same draws.
    """
    if min(len(x), len(y)) < subset_size:
        raise ValueError(
            f"There are {len(x)} and {len(y)} images, fewer than KID's subset_size {subset_size}."
        )
    draw = np.random.RandomState(seed)  # torch-fidelity's generator
    distances = [
        _unbiased_mmd(
            x[draw.choice(len(x), subset_size, replace=False)].astype(np.float64),
            y[draw.choice(len(y), subset_size, replace=False)].astype(np.float64),
        )
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """For as many x as y, without the diagonals within each (arXiv 1801.01401, eq. 4)."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    within_x, within_y = kernel(x, x), kernel(y, y)
    pairs = len(x) * (len(x) - 1)
    within = within_x.sum() - np.trace(within_x) + within_y.sum() - np.trace(within_y)
    return within / pairs - 2 * kernel(x, y).mean()


def cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """1000 times the squared MMD, biased, with a Gaussian kernel of sigma 10 (arXiv 2401.09603).

    Of CLIP's image embeddings [images, dim] (the paper's: ViT-L/14 at 336 pixels), which are
    normalized here.
    """
    x, y = normalize(x), normalize(y)
    between = _mean_gaussian(x, y)
    return CMMD_SCALE * (_mean_gaussian(x, x) + _mean_gaussian(y, y) - 2 * between)


def _mean_gaussian(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of unit vectors."""
    total = 0.0
    for start in range(0, len(x), KERNEL_BLOCK):
        # |x - y|^2 = 2 - 2 x.y; expm1 keeps the digits that the difference of three means lives on.
        total += np.expm1((x[start : start + KERNEL_BLOCK] @ y.T - 1) / CMMD_SIGMA**2).sum()
    return 1 + total / (len(x) * len(y))


def cosines(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """float64 [pairs] in [-1, 1]: the cosine of each image and its own caption.

    Args:
        image_features, text_features: [pairs, dim], normalized or not.
    """
    return (normalize(image_features) * normalize(text_features)).sum(axis=1)


def caption_ranks(
    image_features: np.ndarray, text_features: np.ndarray, *, negatives: int = 99, seed: int = 0
) -> np.ndarray:
    """int [pairs]: the place of each image's own caption among `negatives` others, 1 the nearest.

    R-precision with shuffled captions (arXiv 1711.10485, section 4.1, by CLIP): the share of ranks
    1. The others are drawn for each image without replacement from the
    distinct captions that are not its own; one that is exactly as near does not count against it.
    """
    distinct, own = distinct_captions(text_features)
    count = len(distinct)
    if not 1 <= negatives < count:
        raise ValueError(
            f"r_precision compares with other captions: {count} distinct captions have from 1 to "
            f"{count - 1} others, not {negatives}."
        )
    images, texts = normalize(image_features), normalize(distinct)
    generator = np.random.default_rng(seed)
    ranks = np.empty(len(images), np.int64)
    for row, (image, caption) in enumerate(zip(images, own, strict=True)):
        others = generator.choice(count - 1, negatives, replace=False)
        others += others >= caption
        # Not a matrix product, whose rounding depends on the row: as near stays as near.
        near = (texts[[caption, *others]] * image).sum(axis=1)
        ranks[row] = 1 + (near[1:] > near[0]).sum()
    return ranks


def distinct_captions(text_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the features [captions, dim] without repeats, in order; of each row, its place in them).

    Captions are the same where their features are, to the bit.
    """
    _, first, inverse = np.unique(text_features, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return text_features[first[order]], np.argsort(order)[inverse.reshape(-1)]


def normalize(features: np.ndarray) -> np.ndarray:
    """float64 vectors of length 1; ValueError where one is zero or not finite."""
    features = np.asarray(features, np.float64)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    sound = np.isfinite(length) & (length > 0)
    if not sound.all():
        raise ValueError(f"The features of image {np.argmin(sound)} are zero or not finite.")
    return features / length
