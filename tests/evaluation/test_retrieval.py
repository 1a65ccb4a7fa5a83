"""Retrieval: exact copies are all found, noise is found by chance, equal images count once."""

import numpy as np
import pytest

from imagen_jax.evaluation.retrieval import (
    distinct,
    ranks,
    share,
    shrink,
    squared_distances,
    top_shares,
)
from imagen_jax.human_study.study import wilson


def random_images(rng, count, side=32):
    return rng.integers(0, 256, (count, side, side, 3), np.uint8)


def rank(images, right, candidates):
    return ranks(squared_distances(shrink(images), shrink(candidates)), right)


def test_exact_copies_are_all_found(rng):
    images, right = random_images(rng, 50), rng.permutation(50)
    assert (rank(images[right], right, images) == 1).all()


def test_copies_are_found_through_noise_and_at_another_size(rng):
    """Images of 64 pixels, shrunk to 32 like the candidates, with noise added."""
    images = random_images(rng, 30, 64)
    noisy = np.clip(images + rng.normal(0, 20, images.shape), 0, 255).astype(np.uint8)
    assert (rank(noisy, np.arange(30), images) == 1).all()


def test_noise_is_found_by_chance(rng):
    """1,000 samples among 40 candidates: top-1 near 1/40, top-5 near 1/8."""
    # Images of one value each, so that distances are ranks of random numbers.
    images = np.broadcast_to(rng.integers(0, 256, (1000, 1, 1, 1)), (1000, 32, 32, 3))
    noise = np.clip(images * 0.1 + random_images(rng, 1000), 0, 255).astype(np.uint8)
    found = top_shares(rank(noise, rng.integers(0, 40, 1000), random_images(rng, 40)))
    assert found["top1"]["share"] == pytest.approx(1 / 40, abs=0.02)
    assert found["top5"]["share"] == pytest.approx(1 / 8, abs=0.04)


def test_equal_images_are_one(rng):
    images = random_images(rng, 6)
    images[4] = images[1]
    others, place = distinct(images)
    assert len(others) == 5
    np.testing.assert_array_equal(others[place], images)


def test_candidates_that_look_alike_do_not_count_against_each_other(rng):
    images = random_images(rng, 4)
    images[3] = images[0]
    assert (rank(images, np.arange(4), images) == 1).all()


def test_the_rank_counts_the_nearer_candidates():
    candidates = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 100, 200)])
    grey = np.full((3, 32, 32, 3), 90, np.uint8)
    np.testing.assert_array_equal(rank(grey, np.array([1, 0, 2]), candidates), [1, 2, 3])


def test_distances_are_exact(rng):
    a, b = random_images(rng, 3), random_images(rng, 4)
    expected = np.square(a.astype(int)[:, None] - b.astype(int)[None]).sum((2, 3, 4))
    np.testing.assert_array_equal(squared_distances(a, b), expected)


@pytest.mark.parametrize(("hits", "total"), [(0, 20), (3, 20), (20, 20)])
def test_intervals_are_wilsons(hits, total):
    found = share(hits, total)
    assert (found["low"], found["high"]) == pytest.approx(wilson(hits, total), abs=1e-6)
