"""Retrieval: exact copies are all found, noise is found by chance, equal images are one class."""

import numpy as np
import pytest

from imagen_jax.evaluation.image_set import Gallery, make_gallery
from imagen_jax.evaluation.retrieval import find, scores, squared_distances, summarize


def random_images(rng, count, side=32):
    return rng.integers(0, 256, (count, side, side, 3), np.uint8)


def test_exact_copies_are_all_found(rng):
    images, classes = random_images(rng, 50), np.arange(50)[::-1].copy()
    rank, nearest = find(images, classes, make_gallery(images, classes))
    assert scores(rank) == {"top1": 1.0, "top5": 1.0, "n": 50}
    np.testing.assert_array_equal(nearest, classes)


def test_copies_are_found_through_noise_and_at_another_size(rng):
    """Images of 64 pixels, shrunk to 32 like the gallery's, with noise added."""
    images, classes = random_images(rng, 30, 64), np.arange(30)
    noisy = np.clip(images + rng.normal(0, 20, images.shape), 0, 255).astype(np.uint8)
    rank, _ = find(noisy, classes, make_gallery(images, classes))
    assert (rank == 1).all()


def test_noise_is_found_by_chance(rng):
    """1,000 samples among 40 classes: top-1 near 1/40, top-5 near 1/8, median rank near 20."""
    classes = rng.integers(0, 40, 1000)
    # Images of one value each, so that distances are ranks of random numbers.
    images = np.broadcast_to(rng.integers(0, 256, (1000, 1, 1, 1)), (1000, 32, 32, 3))
    gallery = make_gallery(random_images(rng, 40), np.arange(40))
    noise = np.clip(images * 0.1 + random_images(rng, 1000), 0, 255).astype(np.uint8)
    result = summarize(
        find(noise, classes, gallery)[0], np.full(1000, "en"), np.zeros(1000, bool), 40
    )
    assert result["top1"] == pytest.approx(result["chance"]["top1"], abs=0.02)
    assert result["top5"] == pytest.approx(result["chance"]["top5"], abs=0.04)
    assert result["variants"] == {"top1": None, "top5": None, "n": 0}


def test_pixel_identical_images_are_one_class(rng):
    images = random_images(rng, 6)
    images[4] = images[1]
    classes = np.array([10, 11, 12, 13, 11, 15])
    gallery = make_gallery(images, classes)
    assert len(gallery.classes) == 5
    rank, nearest = find(images, classes, gallery)
    assert (rank == 1).all()
    np.testing.assert_array_equal(nearest, classes)


def test_classes_that_look_alike_do_not_count_against_each_other(rng):
    images = random_images(rng, 4)
    images[3] = images[0]
    rank, nearest = find(images, np.arange(4), make_gallery(images, np.arange(4)))
    assert (rank == 1).all()
    np.testing.assert_array_equal(nearest, np.arange(4))


def test_the_rank_counts_the_nearer_classes():
    gallery = Gallery(
        np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 100, 200)]),
        np.array([0, 1, 2]),
    )
    grey = np.full((3, 32, 32, 3), 90, np.uint8)
    rank, nearest = find(grey, np.array([1, 0, 2]), gallery)
    np.testing.assert_array_equal(rank, [1, 2, 3])
    np.testing.assert_array_equal(nearest, [1, 1, 1])


def test_distances_are_exact(rng):
    a, b = random_images(rng, 3), random_images(rng, 4)
    expected = np.square(a.astype(int)[:, None] - b.astype(int)[None]).sum((2, 3, 4))
    np.testing.assert_array_equal(squared_distances(a, b), expected)
