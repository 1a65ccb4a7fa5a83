"""Mean and covariance of feature vectors in float64, gathered part by part, and the Fréchet
distance of two such Gaussians (FID).
"""

import numpy as np


class Statistics:
    """Count, mean and scatter (the sum of outer products about the mean) of vectors seen so far.

    Parts are joined by the formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise
    algorithm for computing sample variances", 1979, eq. 2.1), so that no large sums cancel: in
    which parts and in which order the vectors come changes the result by rounding alone.
    """

    def __init__(self, dim: int):
        if dim < 1:
            raise ValueError(f"dim is {dim}; features have at least one number.")
        self.count = 0
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))

    @property
    def dim(self) -> int:
        return len(self._mean)

    @property
    def mean(self) -> np.ndarray:
        """float64 [dim]; ValueError where there are no vectors."""
        if not self.count:
            raise ValueError("There is no mean: no images have been seen.")
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """float64 [dim, dim], divided by count - 1; ValueError where there are not two vectors."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 images, not {self.count}.")
        return self._scatter / (self.count - 1)

    def update(self, features: np.ndarray) -> None:
        """Joins a part: [vectors, dim], finite, of any floating-point type."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features are {list(features.shape)}; they must be [images, {self.dim}]."
            )
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise ValueError(f"The features of image {self.count + row} are not finite.")
        if len(features):
            mean = features.mean(axis=0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: "Statistics") -> None:
        """Joins what another has seen, such as one on another host."""
        if other.dim != self.dim:
            raise ValueError(f"Statistics of {other.dim} features do not join those of {self.dim}.")
        if other.count:
            self._join(other.count, other._mean, other._scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (self.count * count / total))
        self._mean = self._mean + delta * (count / total)
        self.count = total


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the FID of arXiv 1706.08500, eq. 6.

    With C_a = A A^T and C_b = B B^T the last trace is the sum of the singular values of A^T B: real
    and never negative, whatever the ranks. Raises ValueError where the dimensions differ, or either
    has fewer than two vectors.
    """
    if a.dim != b.dim:
        raise ValueError(f"Statistics of {a.dim} and of {b.dim} features cannot be compared.")
    covariance_a, covariance_b = a.covariance, b.covariance
    cross = _square_root(covariance_a).T @ _square_root(covariance_b)
    shared = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """A [dim, rank] with A A^T = covariance, its null space (eigenvalues of rounding) left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
