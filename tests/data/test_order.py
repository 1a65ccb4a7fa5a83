"""Crops, aspect-ratio buckets and mixtures: pure functions of (seed, N)."""

import logging

import numpy as np
import pytest

from imagen_jax.data import ArraySource, Loader, MixtureSource
from imagen_jax.data.order import BucketOrder, WeightedOrder, epochs, nearest_bucket
from tests.images.ramp import ramp

BUCKETS = ((12, 8), (8, 8), (8, 12))
SHAPES = [(24, 16)] * 21 + [(20, 20)] * 9 + [(10, 16)] * 2  # (width, height)


class Shaped:
    """Images of several shapes; image i is grey i."""

    sizes = np.asarray(SHAPES)

    def __len__(self) -> int:
        return len(SHAPES)

    def __getitem__(self, index: int):
        width, height = SHAPES[index]
        return {"image": np.full((height, width, 3), index, np.uint8), "key": str(index)}


def shaped(**changes) -> Loader:
    return Loader(Shaped(), 4, 8, **{"conditioning": None, "buckets": BUCKETS} | changes)


# ------------------------------------------------------------------------------------------ crops


def test_random_crops_reach_every_place_and_depend_on_seed_and_number_alone():
    source = ArraySource(np.broadcast_to(ramp(10, 8), (6, 8, 10, 3)).copy())
    settings = {"conditioning": None, "crop": "random", "crop_size": 5}
    loader = Loader(source, 60, 8, **settings)
    batches = [loader.batch(step)["image"] for step in range(4)]
    places = {tuple(image[0, 0, :2]) for batch in batches for image in batch}
    assert places == {(left, top) for left in range(6) for top in range(4)}
    again = Loader(source, 60, 8, num_threads=1, **settings)
    np.testing.assert_array_equal(next(again.batches(3))["image"], batches[3])
    parts = [Loader(source, 60, 8, rows=range(i, i + 30), **settings) for i in (0, 30)]
    joined = np.concatenate([part.batch(2)["image"] for part in parts])
    np.testing.assert_array_equal(joined, batches[2])
    other = Loader(source, 60, 8, seed=1, **settings).batch(3)["image"]
    assert not np.array_equal(other, batches[3])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"crop": "center"}, "crop is 'center'"),
        ({"crop_size": 9}, r"crop_size is 9; it must be in 1\.\.\.8"),
        ({"buckets": BUCKETS, "crop_size": 4}, "do not go with crop_size"),
        ({"buckets": ((8, 0),)}, "buckets are"),
        ({"buckets": BUCKETS}, "sizes of images, which this source does not know"),
    ],
)
def test_bad_crops_and_buckets_are_named(changes, match):
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=match):
        Loader(source, 2, 8, conditioning=None, **changes)


# ---------------------------------------------------------------------------------------- buckets


def test_a_size_goes_to_the_nearest_aspect_ratio():
    sizes = np.asarray([[3000, 100], [12, 8], [11, 9], [9, 10], [10, 20]])
    assert nearest_bucket(sizes, BUCKETS).tolist() == [0, 0, 1, 1, 2]


def test_a_batch_is_of_one_bucket_and_the_same_from_any_step_on_any_host():
    loader = shaped()
    shapes = [loader.batch(step)["image"].shape for step in range(16)]
    assert {shape[1:3] for shape in shapes} == {(8, 12), (8, 8), (12, 8)}
    resumed = shaped(num_threads=1).batches(9)
    for step in range(9, 12):
        batch = loader.batch(step)["image"]
        np.testing.assert_array_equal(next(resumed)["image"], batch)
        hosts = [shaped(rows=rows).batch(step) for rows in ((0, 1), (2, 3))]
        np.testing.assert_array_equal(np.concatenate([host["image"] for host in hosts]), batch)


def test_every_example_comes_as_often_as_its_bucket_has_batches():
    """21, 9 and 2 examples fill 5, 2 and 1 batches of 4: 8 batches an epoch."""
    order = shaped().order
    assert order.counts.tolist() == [5, 2, 1]
    epochs = [[order.place(step)[0] for step in range(8 * e, 8 * e + 8)] for e in range(9)]
    assert all(np.bincount(epoch).tolist() == [5, 2, 1] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    plain = BucketOrder(order.rows, 4, seed=0, shuffle=False)  # a shuffle of few takes long
    seen = np.bincount([plain[number] for number in range(8 * 63 * 4)], minlength=len(SHAPES))
    # In 63 epochs: 63 * 5 batches of 4 are 60 passes over 21, 56 over 9, 126 over 2.
    assert seen.tolist() == [60] * 21 + [56] * 9 + [126] * 2
    drawn = [order[4 * step + row] for step in range(8 * 3) for row in range(4)]
    assert np.bincount(drawn).min() >= 2


def test_a_bucket_without_examples_has_no_batches():
    rows = (np.arange(0), np.arange(5))
    order = BucketOrder(rows, 5, seed=0, shuffle=False)
    assert [order[number] for number in range(10)] == [*range(5), *range(5)]


class Unmeasured(Shaped):
    """Image 3 has no known size, as where it is broken."""

    sizes = np.asarray([(0, 0) if i == 3 else shape for i, shape in enumerate(SHAPES)])


def test_a_few_images_of_unknown_size_are_left_out(caplog):
    settings = {"conditioning": None, "buckets": BUCKETS}
    loader = Loader(Unmeasured(), 4, 8, **settings, max_broken_share=0.05)
    assert sorted(np.concatenate(loader.order.rows)) == [i for i in range(len(SHAPES)) if i != 3]
    assert "1 of 32 images of unknown size are left out" in caplog.text
    assert loader.batch(0)["image"].shape[0] == 4
    message = r"1 of 32 are not known, more than the 1\.0% allowed: data\.measure=True"
    with pytest.raises(ValueError, match=message):
        Loader(Unmeasured(), 4, 8, **settings)


def test_how_often_a_rare_bucket_is_drawn_is_said(caplog):
    """2 images fill a batch of 4 twice over, and one of 8 four times."""
    with caplog.at_level(logging.INFO):
        shaped()
    assert "bucket 8x12: 2 images in 1 of 8 batches an epoch, each 2.00 times" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}
    caplog.clear()
    Loader(Shaped(), 8, 8, conditioning=None, buckets=BUCKETS)
    assert [record.getMessage() for record in caplog.records] == [
        "bucket 8x12: 2 images in 1 of 5 batches an epoch, each 4.00 times"
    ]


# --------------------------------------------------------------------------------------- mixtures


def mixture(rates=(3.0, 1.0)) -> MixtureSource:
    """Greys 0..4, and 100..152."""
    sets = [np.arange(5, dtype=np.uint8), np.arange(100, 153, dtype=np.uint8)]
    images = [np.broadcast_to(greys[:, None, None, None], (len(greys), 8, 8, 3)) for greys in sets]
    return MixtureSource([ArraySource(np.array(i)) for i in images], rates)


def test_a_mixture_draws_each_set_at_its_rate():
    loader = Loader(mixture(), 8, 4, conditioning=None)
    greys = np.concatenate([loader.batch(step)["image"][:, 0, 0, 0] for step in range(40)])
    counts = [(batch < 100).sum() for batch in greys.reshape(40, 8)]
    assert counts == [6] * 40
    # 240 are 48 passes over 5; 80 are one pass over 53 and 27 of the next.
    assert np.bincount(greys[greys < 100]).tolist() == [48] * 5
    assert sorted(np.bincount(greys[greys >= 100])[100:]) == [1] * 26 + [2] * 27
    np.testing.assert_array_equal(
        next(Loader(mixture(), 8, 4, conditioning=None).batches(39))["image"][:, 0, 0, 0],
        greys[-8:],
    )


def test_bad_rates_are_named():
    with pytest.raises(ValueError, match=r"above 0, not \[1\.0, 0\.0\]"):
        mixture((1.0, 0.0))
    with pytest.raises(ValueError, match="1 rates for 2 sets"):
        mixture((1.0,))


# ---------------------------------------------------------------------------------------- weights

WEIGHTS = np.asarray([0.0, 3.0, 0.5, 0.1, 1.0, 2.0, 0.7, 0.7])


def drawn(order: WeightedOrder, start: int, stop: int) -> np.ndarray:
    return np.asarray([order[number] for number in range(start, stop)])


@pytest.mark.parametrize(("shuffle", "times"), [(True, 20), (False, 400)])
def test_each_comes_as_often_in_an_epoch_as_its_weight_says(shuffle, times):
    order, size = WeightedOrder(WEIGHTS, 7, shuffle), len(WEIGHTS)
    expected = WEIGHTS / WEIGHTS.sum() * size
    counts = [
        np.bincount(drawn(order, start, start + size), minlength=size)
        for start in range(0, times * size, size)
    ]
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    deviation = 0.5 / np.sqrt(times)  # at most
    np.testing.assert_allclose(np.mean(counts, 0), expected, atol=3 * deviation)


@pytest.mark.parametrize("size", [1, 37, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_equal_weights_are_as_none(size, shuffle):
    order = WeightedOrder(np.full(size, 0.1, np.float32), 3, shuffle)
    plain = epochs(size, 3, shuffle)
    assert drawn(order, 0, 3 * size).tolist() == [int(plain[n]) for n in range(3 * size)]


def test_a_weighted_example_is_a_function_of_seed_and_number():
    whole = drawn(WeightedOrder(WEIGHTS, 7, True), 0, 64)
    assert drawn(WeightedOrder(WEIGHTS, 7, True), 40, 64).tolist() == whole[40:].tolist()
    assert drawn(WeightedOrder(WEIGHTS * 5, 7, True), 0, 64).tolist() == whole.tolist()
    assert drawn(WeightedOrder(WEIGHTS, 8, True), 0, 64).tolist() != whole.tolist()


def test_a_few_heavy_among_many_are_exact():
    weights = np.full(300_000, 1e-4)
    weights[[5, 299_999]] = 40.0
    ends = WeightedOrder(weights, 0, True).ends
    shares = np.diff(ends, prepend=0) / ends[-1]
    np.testing.assert_allclose(shares[[5, 299_999]], 40 / weights.sum(), rtol=1e-3)


def weighted(weights, **changes) -> Loader:
    images = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], (8, 4, 4, 3)).copy()
    source = ArraySource(images, extra={} if weights is None else {"weight": np.asarray(weights)})
    options = {"conditioning": None, "weights": True, "max_broken_share": 0.2} | changes
    return Loader(source, 4, 4, **options)


def test_a_loader_draws_by_weights_wherever_it_starts_and_on_any_rows():
    loader = weighted(WEIGHTS)
    shades = np.concatenate([loader.batch(step)["image"][:, 0, 0, 0] for step in range(6)])
    assert shades.tolist() == drawn(WeightedOrder(WEIGHTS, 0, True), 0, 24).tolist()
    resumed = weighted(WEIGHTS).batches(4)
    np.testing.assert_array_equal(next(resumed)["image"][:, 0, 0, 0], shades[16:20])
    part = weighted(WEIGHTS, rows=[1, 3]).batch(5)
    np.testing.assert_array_equal(part["image"][:, 0, 0, 0], shades[[21, 23]])


@pytest.mark.parametrize("unknown", [np.nan, np.inf, -np.inf])
def test_examples_without_weight_are_left_out_up_to_a_share(caplog, unknown):
    known = np.where(np.arange(8) == 3, unknown, 1.0)
    loader = weighted(known)
    assert "1 of 8 images without weight are left out" in caplog.text
    assert 3 not in np.concatenate([loader.batch(step)["image"] for step in range(8)])
    with pytest.raises(ValueError, match="1 of 8 images have no weight"):
        weighted(known, max_broken_share=0.01)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (None, "weights need the field 'weight', which this source lacks"),
        (["a"] * 8, "which this source lacks"),
        ([1.0, -1.0] * 4, "must not be negative"),
        ([0.0] * 8, "nor all 0"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_named(weights, match):
    with pytest.raises(ValueError, match=match):
        weighted(weights)


def test_weights_do_not_go_with_buckets_or_mixtures():
    with pytest.raises(ValueError, match="weights do not go with buckets"):
        shaped(weights=True)
    source = weighted(WEIGHTS).source
    mixture = MixtureSource([source, source], [1.0, 1.0])
    with pytest.raises(ValueError, match="nor with a mixture"):
        Loader(mixture, 4, 4, conditioning=None, weights=True)
