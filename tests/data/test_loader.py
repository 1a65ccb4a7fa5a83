"""Batch N is a function of (seed, N) alone; broken examples are replaced, counted and limited."""

import itertools
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.counts import TooManyBroken
from imagen_jax.data.loader import Loader, captions_of, choose_caption
from imagen_jax.data.sources import ArraySource, BrokenExample

SIZE = 37


def tokenize(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A token for each caption: the number in it, and the language."""
    ids = np.asarray([[int(text[1:]), "ez".index(text[0])] for text in texts], np.int32)
    return ids, np.ones(ids.shape, bool)


@pytest.fixture
def source() -> ArraySource:
    """Image i is filled with i and called "e<i>" or, three times as often, "z<i>"."""
    images = np.broadcast_to(np.arange(SIZE, dtype=np.uint8)[:, None, None, None], (SIZE, 8, 8, 3))
    captions = [[(f"e{i}", 0.25), (f"z{i}", 0.75)] for i in range(SIZE)]
    return ArraySource(np.array(images), captions, labels=np.arange(SIZE))


def make(source, **changes) -> Loader:
    return Loader(source, **{"batch_size": 12, "resolution": 4, "tokenize": tokenize} | changes)


def equal(left: dict, right: dict) -> bool:
    same = [np.array_equal(left[name], right[name]) for name in left]
    return left.keys() == right.keys() and all(same)


def test_a_batch_holds_images_and_their_captions(source):
    batch = make(source).batch(0)
    assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
        "image": ((12, 4, 4, 3), "uint8"),
        "ids": ((12, 2), "int32"),
        "mask": ((12, 2), "bool"),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["ids"][:, 0])
    labelled = make(source, conditioning="label", tokenize=None).batch(0)
    np.testing.assert_array_equal(labelled["image"][:, 0, 0, 0], labelled["label"])
    assert make(source, conditioning=None, tokenize=None).batch(0).keys() == {"image"}


def test_the_stream_is_the_same_from_any_step_in_any_process(source):
    whole = list(itertools.islice(make(source).batches(), 12))
    for start in (0, 1, 7):
        resumed = itertools.islice(make(source, num_threads=1).batches(start), 12 - start)
        assert all(map(equal, whole[start:], resumed))
    assert equal(make(source).batch(5), whole[5])


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_any_number_of_hosts_makes_the_same_global_batch(source, count):
    for step in (0, 4):
        parts = [make(source, rows=range(index, 12, count)).batch(step) for index in range(count)]
        whole = make(source).batch(step)
        for index, part in enumerate(parts):
            assert equal({name: rows[index::count] for name, rows in whole.items()}, part)


def test_every_epoch_is_another_permutation(source):
    loader = make(source)
    numbers = [loader.example(number)["image"][0, 0, 0] for number in range(3 * SIZE)]
    epochs = [tuple(numbers[i * SIZE : (i + 1) * SIZE]) for i in range(3)]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len(set(epochs)) == 3
    other = [make(source, seed=1).example(number)["image"][0, 0, 0] for number in range(SIZE)]
    assert tuple(other) not in epochs
    plain = [make(source, shuffle=False).example(n)["image"][0, 0, 0] for n in range(SIZE + 2)]
    assert plain == [*range(SIZE), 0, 1]


def test_captions_are_drawn_by_their_weights_and_anew_each_epoch(source):
    loader = make(source)
    drawn = [loader.example(number)["caption"][0] for number in range(20 * SIZE)]
    assert np.mean([letter == "z" for letter in drawn]) == pytest.approx(0.75, abs=0.06)
    assert drawn[:SIZE] != drawn[SIZE : 2 * SIZE]
    pair = [("a", 1.0), ("b", 3.0)]
    assert [choose_caption(pair, number) for number in (0.0, 0.24, 0.26, 0.999)] == [*"aabb"]


def test_flips_mirror_half_of_the_images(rng):
    images = rng.integers(0, 256, (SIZE, 4, 4, 3), np.uint8)
    settings = {"batch_size": 74, "resolution": 4, "conditioning": None}
    flipped = Loader(ArraySource(images), **settings, flip=True).batch(0)["image"]
    plain = Loader(ArraySource(images), **settings).batch(0)["image"]
    mirrored = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == plain).all((1, 2, 3))).all()
    assert 20 < mirrored.sum() < 54


class Damaged:
    """A source whose examples at some indices cannot be read."""

    def __init__(self, source, broken):
        self.source, self.broken = source, broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        if index in self.broken:
            raise BrokenExample(f"image-{index}", "is truncated")
        return self.source[index]


@pytest.mark.parametrize(("small", "told"), [(0, False), (3, False), (4, True), (SIZE, True)])
def test_images_that_are_enlarged_are_told_once(small, told, caplog):
    class Sizes:
        """Images of 8x8 pixels, `small` of them narrower."""

        def __len__(self):
            return SIZE

        def __getitem__(self, index):
            image = np.zeros((8, 1 if index < small else 8, 3), np.uint8)
            return {"image": Image.fromarray(image) if index % 2 else image, "key": str(index)}

    for _ in itertools.islice(
        make(Sizes(), conditioning=None, resolution=8, num_threads=1).batches(), 8
    ):
        pass
    said = [record.getMessage() for record in caplog.records if "enlarged" in record.message]
    assert len(said) == told
    assert all(f"{small} of the first {SIZE} images are smaller than 8x8" in line for line in said)


def test_arrays_that_are_enlarged_are_told(source, caplog):
    make(source, resolution=8)
    assert not caplog.text
    make(source, resolution=16)
    assert f"{SIZE} of the first {SIZE} images are smaller than 16x16 pixels" in caplog.text


def test_broken_examples_are_replaced_counted_and_named_once(source, caplog):
    loader = make(Damaged(source, {3, 4, 36}), max_broken_share=0.1, shuffle=False)
    with caplog.at_level(logging.WARNING):
        batches = [loader.batch(step) for step in range(7)]
    seen = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])[:SIZE]
    expected = [*range(36), 0]
    expected[3] = expected[4] = 5
    assert seen.tolist() == expected
    assert sorted(loader.damage.broken) == ["image-3", "image-36", "image-4"]
    assert sum("image-36" in record.message for record in caplog.records) == 1
    again = make(Damaged(source, {3, 4, 36}), max_broken_share=0.1, shuffle=False)
    assert equal(again.batch(6), batches[6])


def test_too_many_broken_examples_stop_the_run_also_through_the_threads(source):
    loader = make(Damaged(source, {3, 4, 36}), max_broken_share=0.05)
    message = r"^[23] broken examples, .*% of those read, are more than the 5\.0% allowed.*share\.$"
    with pytest.raises(TooManyBroken, match=message):
        for _ in itertools.islice(loader.batches(), 20):
            pass
    everything = make(Damaged(source, set(range(SIZE))), max_broken_share=1.0)
    with pytest.raises(TooManyBroken, match="37 broken examples"):
        everything.batch(0)


def test_captions_alone_stop_at_the_same_share_of_these_rows(source):
    damaged = Damaged(source, set(range(SIZE // 2, SIZE)))
    assert captions_of(damaged, range(2), 0.01) == [
        (str(i), [(f"e{i}", 0.25), (f"z{i}", 0.75)]) for i in range(2)
    ]
    with pytest.raises(TooManyBroken, match=r"is truncated.*data\.max_broken_share"):
        captions_of(damaged, range(16, 22), 0.05)
    found = captions_of(damaged, range(16, 22), 0.2)
    assert [len(captions) for _, captions in found] == [2, 2, 0, 0, 0, 0]


def test_reading_ahead_does_not_wait_for_the_consumer(source):
    loader = make(source, prefetch=4)
    read = []
    source_batch = loader.batch
    object.__setattr__(loader, "batch", lambda step: read.append(step) or source_batch(step))
    batches = loader.batches()
    next(batches)
    next(batches)
    assert max(read) >= 2
    batches.close()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rows": (3, 99)}, r"rows are \[3, 99\]...; they must be in 0...11"),
        ({"tokenize": None}, "needs a tokenize function"),
        ({"conditioning": "words"}, "conditioning is 'words'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_named(source, changes, match):
    with pytest.raises(ValueError, match=match):
        make(source, **changes)


def test_folders_and_npz_files_need_no_tensorflow(tmp_path, repository):
    code = (
        "import sys, numpy as np\n"
        "sys.modules.update(dict.fromkeys(['tensorflow', 'tensorflow_datasets', 'seqio']))\n"
        "from imagen_jax import data\n"
        f"np.savez(r'{tmp_path}/a.npz', image=np.zeros((3, 8, 8, 3), np.uint8))\n"
        f"source = data.SOURCES['npz'](r'{tmp_path}/a.npz', conditioning=None)\n"
        "loader = data.Loader(source, 2, 4, conditioning=None)\n"
        "assert next(loader.batches(3))['image'].shape == (2, 4, 4, 3)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_images_in_memory_are_taken_together_as_one_by_one(source, rng):
    images = rng.integers(0, 256, (SIZE, 5, 5, 3), np.uint8)
    loader = make(ArraySource(images, source.captions), resolution=5, flip=True)
    batch = loader.batch(3)
    examples = [loader.example(number) for number in range(36, 48)]
    np.testing.assert_array_equal(batch["image"], [example["image"] for example in examples])
    ids, _ = tokenize([example["caption"] for example in examples])
    np.testing.assert_array_equal(batch["ids"], ids)
    np.testing.assert_array_equal(images, loader.images)  # no batch wrote into them
