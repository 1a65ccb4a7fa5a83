"""Distances of two sets of features by a kernel, without a Gaussian in between: KID and CMMD."""

import numpy as np

# torch-fidelity's; the same draws give the same KID.
KID_SEED = 2020
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
BLOCK = 512  # rows of a kernel matrix that are held at once


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
    _check_features(x, y)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"KID needs subsets of 2 images or more, not {subsets} x {subset_size}.")
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
    """Of equally many x and y, the diagonals left out within each (arXiv 1801.01401, eq. 4)."""

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
    _check_features(x, y)
    x, y = normalize(x), normalize(y)
    between = _mean_gaussian(x, y)
    return CMMD_SCALE * (_mean_gaussian(x, x) + _mean_gaussian(y, y) - 2 * between)


def _mean_gaussian(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of unit vectors."""
    total = 0.0
    for start in range(0, len(x), BLOCK):
        # |x - y|^2 = 2 - 2 x.y; expm1 keeps the digits that the difference of three means lives on.
        total += np.expm1((x[start : start + BLOCK] @ y.T - 1) / CMMD_SIGMA**2).sum()
    return 1 + total / (len(x) * len(y))


def normalize(features: np.ndarray) -> np.ndarray:
    """float64 vectors of length 1; ValueError where one is zero or not finite."""
    features = np.asarray(features, np.float64)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(length) & (length > 0)))[0])
        raise ValueError(f"The features of image {row} are zero or not finite.")
    return features / length


def _check_features(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not (len(x) and len(y)):
        raise ValueError(
            f"features are {list(x.shape)} and {list(y.shape)}; they must be [images, dim] of "
            "one dim, some of each."
        )
