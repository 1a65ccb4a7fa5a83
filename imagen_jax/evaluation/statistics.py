"""Mean and covariance of feature vectors in float64, gathered part by part, and the Fréchet
distance of two such Gaussians (FID).
"""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAX_DIM = 2**16  # of the features in a file: what is larger is no statistics of ours
FIELDS = {"count", "mean", "scatter", "about"}


class Statistics:
    """Count, mean and scatter (the sum of outer products about the mean) of vectors seen so far.

    Parts are joined by the formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise
    algorithm for computing sample variances", 1979, eq. 2.1), so that no large sums cancel: in
    which parts and in which order the vectors come changes the result by rounding alone.

    `about` says what the vectors are (network, fingerprint, resize, data set) and is kept in the
    file; it holds JSON values.
    """

    def __init__(self, dim: int, about: Mapping[str, Any] | None = None):
        if dim < 1:
            raise ValueError(f"dim is {dim}; features have at least one number.")
        self.count = 0
        self.about = dict(about or {})
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))

    @property
    def dim(self) -> int:
        return len(self._mean)

    @property
    def mean(self) -> np.ndarray:
        """float64 [dim]; ValueError where there are no vectors."""
        if not self.count:
            raise ValueError("There is no mean: no pictures have been seen.")
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """float64 [dim, dim], divided by count - 1; ValueError where there are not two vectors."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 pictures, not {self.count}.")
        return self._scatter / (self.count - 1)

    def update(self, features: np.ndarray) -> None:
        """Joins a part: [vectors, dim], finite, of any floating-point type."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features are {list(features.shape)}; they must be [pictures, {self.dim}]."
            )
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise ValueError(f"The features of picture {self.count + row} are not finite.")
        if len(features):
            mean = features.mean(axis=0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: "Statistics") -> None:
        """Joins what another has seen: on another host, or before an interruption."""
        if other.dim != self.dim:
            raise ValueError(f"Statistics of {other.dim} features do not join those of {self.dim}.")
        if other.about != self.about:
            raise ValueError(f"Statistics of {other.about} do not join those of {self.about}.")
        if other.count:
            self._join(other.count, other._mean, other._scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (self.count * count / total))
        self._mean = self._mean + delta * (count / total)
        self.count = total

    def save(self, path: str | os.PathLike) -> None:
        """Writes an npz file, whole or not at all. float64 is kept bit for bit."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        about = json.dumps(self.about, ensure_ascii=False, allow_nan=False)
        try:
            with open(temporary, "wb") as file:
                np.savez(
                    file,
                    count=np.int64(self.count),
                    mean=self._mean,
                    scatter=self._scatter,
                    about=np.frombuffer(about.encode(), np.uint8),
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Statistics":
        """What `save` wrote. Raises FileNotFoundError, or ValueError where it is damaged."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file of statistics {path}.")
        try:
            with np.load(path, allow_pickle=False) as archive:
                if set(archive.files) != FIELDS:
                    raise ValueError(f"it holds {archive.files}, not {sorted(FIELDS)}")
                values = {name: archive[name] for name in archive.files}
            return cls._from_arrays(**values)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a file of statistics: {error}.") from None

    @classmethod
    def _from_arrays(
        cls, count: np.ndarray, mean: np.ndarray, scatter: np.ndarray, about: np.ndarray
    ) -> "Statistics":
        if mean.ndim != 1 or not 1 <= len(mean) <= MAX_DIM or scatter.shape != 2 * mean.shape:
            raise ValueError(f"mean {mean.shape} and scatter {scatter.shape} do not fit")
        if mean.dtype != np.float64 or scatter.dtype != np.float64:
            raise ValueError("mean and scatter are not float64")
        if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
            raise ValueError("mean or scatter is not finite")
        if count.dtype != np.int64 or count.ndim or count < 0:
            raise ValueError("count is not a number of pictures")
        values = json.loads(about.astype(np.uint8).tobytes().decode())
        if not isinstance(values, dict):
            raise ValueError("about is no object")
        statistics = cls(len(mean), values)
        statistics.count = int(count)
        statistics._mean, statistics._scatter = mean, scatter
        return statistics


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
