"""Statistics of features and the Fréchet distance: identities, NumPy's and SciPy's figures."""

import numpy as np
import pytest
from feature_references import torch_fidelity

from imagen_jax.evaluation import distances
from imagen_jax.evaluation.distances import frechet_distance
from imagen_jax.evaluation.distances import statistics_of as of

DIM = 24


def features(rng, count: int, shift: float = 0.0, dim: int = DIM) -> np.ndarray:
    """Correlated, positive and far from zero, as Inception's are."""
    mixed = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim))
    return np.abs(mixed + shift + 5).astype(np.float32)


def test_they_are_numpys(rng, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 30)
    values = features(rng, 200)
    statistics = of(values)
    np.testing.assert_allclose(statistics.mean, values.mean(0, dtype=np.float64), rtol=1e-13)
    expected = np.cov(values.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-10, atol=1e-10)


def test_a_large_offset_does_not_cancel(rng):
    values = rng.standard_normal((1000, 3))
    shifted = of(values + 1e7)
    np.testing.assert_allclose(shifted.covariance, np.cov(values, rowvar=False), atol=1e-6)


def test_parts_and_order_do_not_matter(rng, monkeypatch):
    values = features(rng, 150)
    whole = of(values)
    for block, rows in ((4, values), (50, values[::-1])):
        monkeypatch.setattr(distances, "BLOCK", block)
        found = of(rows)
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-9, atol=1e-10)


def test_frechet_distance_is_scipys_and_torch_fidelitys(rng):
    a, b = features(rng, 300), features(rng, 250, 0.7)
    ours = frechet_distance(of(a), of(b))
    linalg = pytest.importorskip("scipy.linalg")
    covariances = [np.cov(x.astype(np.float64), rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    module, torch = torch_fidelity("metric_fid"), pytest.importorskip("torch")
    theirs = [module.fid_features_to_statistics(torch.tensor(x).double()) for x in (a, b)]
    named = module.fid_statistics_to_metric(*theirs, False)[module.KEY_METRIC_FID]
    np.testing.assert_allclose(ours, named, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(of(b), of(a)), ours, rtol=1e-9)


def test_between_gaussians_of_one_covariance_it_is_the_means_distance(rng):
    values = features(rng, 100)
    shift = rng.standard_normal(DIM)
    distance = frechet_distance(of(values), of(values.astype(np.float64) + shift))
    np.testing.assert_allclose(distance, shift @ shift, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 10, 300])
def test_of_a_set_with_itself_it_is_zero(rng, count):
    values = 20 * features(rng, count, dim=256)  # of lower rank than 256, or nearly singular
    assert abs(frechet_distance(of(values), of(values[::-1]))) < 1e-3


def test_without_full_rank_it_is_finite_and_right(rng):
    """Ten images against many; images all equal; and subspaces that meet nowhere."""
    few, many = features(rng, 10, dim=64), features(rng, 500, 1.0, dim=64)
    distance = frechet_distance(of(few), of(many))
    assert np.isfinite(distance)
    # On the space that the few span the square root is an ordinary one.
    covariance, other = np.cov(few, rowvar=False), np.cov(many, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors[:, -9:] * np.sqrt(values[-9:])
    shared = np.sqrt(np.linalg.eigvalsh(root.T @ other @ root)).sum()
    gap = few.mean(0, dtype=np.float64) - many.mean(0, dtype=np.float64)
    expected = gap @ gap + np.trace(covariance) + np.trace(other) - 2 * shared
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    equal = of(np.ones((5, DIM)))
    assert frechet_distance(equal, equal) == 0
    first, second = np.zeros((20, 4)), np.zeros((20, 4))
    first[:, 0], second[:, 1] = (rng.standard_normal(20) for _ in range(2))
    apart = frechet_distance(of(first), of(second))
    traces = sum(of(x).covariance.trace() + x.mean(0) @ x.mean(0) for x in (first, second))
    np.testing.assert_allclose(apart, traces, rtol=1e-9)


def test_bad_values_are_named(rng):
    broken = features(rng, 4)
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match="image 2 are not finite"):
        of(broken)
    for wrong in (features(rng, 1), features(rng, 4)[0]):
        with pytest.raises(ValueError, match=r"\[images, dim\] of at least 2 images"):
            of(wrong)
