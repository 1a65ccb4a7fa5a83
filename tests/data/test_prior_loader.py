"""Batches of a subject and its class: which rows, whose captions, on how many hosts."""

import numpy as np
import pytest

from imagen_jax.data import ArraySource, Loader, PriorLoader
from imagen_jax.data.counts import TooManyBroken
from imagen_jax.data.sources import BrokenExample

SUBJECT, CLASS = 4, 11


def source(size: int, first: int) -> ArraySource:
    """Images of one value each, first, first + 1, ...; captions that say so."""
    values = np.arange(first, first + size, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (size, 2, 2, 3))
    return ArraySource(images, [[(f"v{value}", 1.0)] for value in values])


def tokenize(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The number in a caption; -1 for the prompt."""
    ids = [[-1 if text == "a sks dog" else int(text[1:])] for text in texts]
    return np.asarray(ids, np.int32), np.ones((len(texts), 1), bool)


def loaders(**options) -> tuple[Loader, Loader]:
    shared = {"resolution": 2, "tokenize": tokenize, "num_threads": 2, **options}
    instance = Loader(source(SUBJECT, 0), 3, seed=1, prompt="a sks dog", **shared)
    return instance, Loader(source(CLASS, 100), 5, seed=2, **shared)


def values(batch) -> np.ndarray:
    return batch["image"][:, 0, 0, 0]


def test_instance_rows_come_first_with_their_prompt_and_then_the_priors():
    loader = PriorLoader(*loaders())
    assert loader.batch_size == 8
    for step in (0, 7, 1000):
        batch = loader.batch(step)
        assert (values(batch)[:3] < SUBJECT).all()
        assert (values(batch)[3:] >= 100).all()
        np.testing.assert_array_equal(batch["ids"][:3, 0], -1)
        np.testing.assert_array_equal(batch["ids"][3:, 0], values(batch)[3:])


def test_each_set_is_gone_through_at_its_own_pace():
    """Over 44 batches: 33 passes over 4 images, and 20 over 11."""
    loader = PriorLoader(*loaders())
    drawn = np.concatenate([values(loader.batch(step)) for step in range(44)])
    numbers, counts = np.unique(drawn, return_counts=True)
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == {
        **dict.fromkeys(range(SUBJECT), 33),
        **dict.fromkeys(range(100, 100 + CLASS), 20),
    }


def test_a_batch_depends_on_seed_and_step_alone():
    loader = PriorLoader(*loaders())
    late = next(PriorLoader(*loaders()).batches(5))
    stream = loader.batches(0)
    for _ in range(6):
        batch = next(stream)
    for name in ("image", "ids", "mask"):
        np.testing.assert_array_equal(batch[name], late[name])


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_share_the_rows_of_one_batch(count):
    whole = PriorLoader(*loaders()).batch(3)
    for index in range(count):
        part = PriorLoader(*loaders(), range(index, 8, count)).batch(3)
        for name, rows in whole.items():
            np.testing.assert_array_equal(part[name], rows[index::count])


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match=r"must be in 0\.\.\.7"):
        PriorLoader(*loaders(), (0, 8))
    instance, _ = loaders()
    split = Loader(source(CLASS, 100), 4, 2, tokenize=tokenize, rows=(0, 1))
    with pytest.raises(ValueError, match="all their rows"):
        PriorLoader(instance, split)
    with pytest.raises(ValueError, match="reads no prompt: 'a sks dog'"):
        Loader(source(SUBJECT, 0), 2, 2, conditioning=None, prompt="a sks dog")


class Damaged:
    """A set whose images cannot be read."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise BrokenExample(f"class/{index}", "no image")


def test_the_set_that_is_broken_is_named():
    instance, _ = loaders()
    prior = Loader(Damaged(), 5, 2, tokenize=tokenize, num_threads=2)
    with pytest.raises(TooManyBroken, match=r"^[1-3] broken examples.*class/"):
        next(PriorLoader(instance, prior).batches(0))
