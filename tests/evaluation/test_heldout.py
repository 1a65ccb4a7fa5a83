"""What is measured on held-out images: retrieval of exact copies and of others, and the x0 error of
denoisers whose error is known.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import BASE, random_conditions, random_params

from imagen_jax.cascade.cascade import Cascade, Sampling, sample_keys
from imagen_jax.cascade.stage import init_params
from imagen_jax.diffusion.schedules import Cosine, Flow
from imagen_jax.evaluation.heldout import measure_retrieval, read_heldout
from imagen_jax.evaluation.x0_error import LOGSNRS, x0_errors
from imagen_jax.images.pixels import to_float

SPLITS = np.array(["train", "heldout", "pair"] * 20)
VARIANT = np.arange(60) % 10 == 1


@pytest.fixture
def heldout(tmp_path, rng):
    path = tmp_path / "set.npz"
    images = rng.integers(0, 256, (60, 8, 8, 3), np.uint8)
    captions = np.array([f"number {i}" for i in range(60)])
    np.savez(path, image=images, captions=captions, split=SPLITS, variant=VARIANT)
    return read_heldout(path, ("heldout", "pair"), 7)


def test_what_is_asked_for_is_held_out_and_no_variant(heldout):
    rows = [int(prompt.split()[1]) for prompt in heldout.prompts]
    assert sorted(SPLITS[rows]) == ["heldout"] * 7 + ["pair"] * 7
    assert not VARIANT[rows].any()
    assert len(heldout.source) == ((SPLITS != "train") & ~VARIANT).sum()


def test_a_split_that_is_missing_is_named(heldout, tmp_path):
    with pytest.raises(ValueError, match="no image in its split 'other'"):
        read_heldout(tmp_path / "set.npz", ("heldout", "other"), 1)


def test_copies_are_found_and_other_images_are_not(heldout, rng):
    """Of each split by itself: the images of "pair" are copies, those of "heldout" are not."""
    copied = heldout.split[heldout.asked] == "pair"
    # Each of the others is the copy of its neighbour among the held-out images.
    rows = np.where(copied, heldout.asked, (heldout.asked + 1) % len(heldout.source))
    found = measure_retrieval(heldout, heldout.source.images[rows])
    assert found["shares"]["pair"]["top1"]["share"] == 1.0
    assert found["shares"]["heldout"]["top1"]["hits"] == 0
    assert found["shares"]["all"]["top1"]["share"] == 0.5
    assert found["chance"]["top5"] == 5 / found["candidates"] == 5 / len(heldout.source)


# ------------------------------------------------------------------------------------ x0 error


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (5, 4, 4, 3), np.uint8)


KEYS = sample_keys(0, range(5))


@pytest.mark.parametrize("schedule", [Cosine(), Flow()])
def test_the_error_of_a_network_that_outputs_zero(images, schedule):
    """A fresh network does. As an estimate of x0 it is off by x0, at every level; as one of eps by
    (sigma / alpha) eps, whatever the path.
    """
    fresh = init_params(BASE, jax.random.key(0))
    text = jax.tree.map(lambda leaf: jnp.resize(leaf, (5, *leaf.shape[1:])), random_text())
    squares = np.square(np.asarray(to_float(jnp.asarray(images)))).mean()
    eps = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(KEYS)
    stage = replace(BASE, prediction="x0", schedule=schedule)
    errors = x0_errors(stage, fresh, text, images, KEYS, batch_size=2)
    np.testing.assert_allclose(list(errors.values()), squares, rtol=1e-4)
    stage = replace(BASE, prediction="eps", schedule=schedule)
    errors = x0_errors(stage, fresh, text, images, KEYS, batch_size=2)
    expected = np.exp(-np.array(LOGSNRS)) * np.square(eps).mean()
    np.testing.assert_allclose(list(errors.values()), expected, rtol=1e-3)


def random_text():
    return random_conditions(3).text


def test_the_error_does_not_depend_on_the_batch(images):
    params = random_params(Cascade((BASE,), (Sampling(),)))["base"]
    text = jax.tree.map(lambda leaf: jnp.resize(leaf, (5, *leaf.shape[1:])), random_text())
    one, other = (
        x0_errors(BASE, params, text, images, KEYS, (0.0, 3.0), batch_size=size) for size in (2, 5)
    )
    assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-4)
