"""KID, CMMD and the CLIP score: torch-fidelity's figures, the definitions, identities."""

import numpy as np
import pytest
from feature_references import torch_fidelity

from imagen_jax.evaluation.distances import caption_ranks, cmmd, cosines, kernel_distance


def features(rng, count: int, shift: float = 0.0, dim: int = 32) -> np.ndarray:
    return (rng.standard_normal((count, dim)) + shift).astype(np.float32)


def test_kid_is_torch_fidelitys(rng):
    torch, module = pytest.importorskip("torch"), torch_fidelity("metric_kid")
    a, b = features(rng, 150), features(rng, 120, 0.3)
    theirs = module.kid_features_to_metric(
        torch.tensor(a).double(), torch.tensor(b).double(), kid_subsets=20, kid_subset_size=100,
        verbose=False,
    )  # fmt: skip
    mean, std = kernel_distance(a, b, subsets=20, subset_size=100)
    np.testing.assert_allclose(mean, theirs[module.KEY_METRIC_KID_MEAN], rtol=1e-9)
    np.testing.assert_allclose(std, theirs[module.KEY_METRIC_KID_STD], rtol=1e-9)


def test_kid_is_its_definition(rng):
    """The unbiased estimator, term by term."""
    x, y = features(rng, 5).astype(np.float64), features(rng, 5, 0.5).astype(np.float64)

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(5) for j in range(5) if i != j)
    between = sum(kernel(a, b) for a in x for b in y)
    mean, std = kernel_distance(x, y, subsets=1, subset_size=5)
    np.testing.assert_allclose(mean, within / 20 - 2 * between / 25, rtol=1e-9)
    assert std == 0


def test_kid_is_unbiased(rng):
    """Around zero, on both sides, for sets of one distribution."""
    pairs = [(features(rng, 60), features(rng, 60)) for _ in range(30)]
    distances = [kernel_distance(*pair, subsets=1, subset_size=60)[0] for pair in pairs]
    assert min(distances) < 0 < max(distances)
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(30)


def test_cmmd_is_its_definition(rng, monkeypatch):
    x, y = features(rng, 50), features(rng, 40, 0.4)
    unit = [np.asarray(s, np.float64) for s in (x, y)]
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in unit]

    def kernel(a, b):
        return np.exp(-np.square(a[:, None] - b[None]).sum(-1) / (2 * 10**2)).mean()

    a, b = unit
    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    np.testing.assert_allclose(cmmd(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(cmmd(*unit), expected, rtol=1e-9)
    monkeypatch.setattr("imagen_jax.evaluation.distances.KERNEL_BLOCK", 7)
    np.testing.assert_allclose(cmmd(x, y), expected, rtol=1e-9)
    assert abs(cmmd(x, x)) < 1e-9


def test_the_clip_score_is_a_cosine(rng):
    images, texts = features(rng, 20), features(rng, 20)
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    expected = (images * texts).sum(axis=1) / norms
    np.testing.assert_allclose(cosines(images, texts), expected, rtol=1e-5)
    np.testing.assert_allclose(cosines(images, 3 * images), 1.0)
    np.testing.assert_allclose(cosines(images, -images), -1.0)


def test_caption_ranks(rng):
    texts = features(rng, 30)
    ranks = caption_ranks(texts + 0.01 * features(rng, 30), texts, negatives=29)
    assert (ranks == 1).all()
    # The farthest of all: each image is the opposite of its caption.
    assert caption_ranks(-texts, texts, negatives=29).min() > 20
    # By chance one in ten is the first of ten.
    many = features(rng, 2000, dim=64)
    chance = caption_ranks(features(rng, 2000, dim=64), many, negatives=9)
    assert chance.min() == 1
    assert chance.max() == 10
    assert abs((chance == 1).mean() - 0.1) < 0.03
    np.testing.assert_array_equal(
        caption_ranks(texts, many[:30, :32], negatives=5, seed=3),
        caption_ranks(texts, many[:30, :32], negatives=5, seed=3),
    )


def test_a_caption_is_no_negative_of_its_own_images(rng):
    """8 images a caption: the others are the other captions, each once, and all count."""
    texts, copies = features(rng, 10), 8
    images = -texts.repeat(copies, 0)  # so that nearly all others are nearer
    ranks = caption_ranks(images, texts.repeat(copies, 0), negatives=9)
    np.testing.assert_array_equal(ranks, caption_ranks(-texts, texts, negatives=9).repeat(copies))
    chance = caption_ranks(features(rng, 4000), texts.repeat(400, 0), negatives=4)
    assert abs((chance == 1).mean() - 0.2) < 0.05
    with pytest.raises(ValueError, match="10 distinct captions have from 1 to 9 others, not 10"):
        caption_ranks(images, texts.repeat(copies, 0), negatives=10)


def test_bad_values_are_named(rng):
    a, zero = features(rng, 10), np.zeros((2, 32))
    with pytest.raises(ValueError, match="fewer than KID's subset_size 1000"):
        kernel_distance(a, a)
    with pytest.raises(ValueError, match="features of image 0 are zero"):
        cmmd(a, zero)
    with pytest.raises(ValueError, match="from 1 to 9 others, not 10"):
        caption_ranks(a, a, negatives=10)
