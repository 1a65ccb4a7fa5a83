"""Which example comes when: global example number -> index into the source, without state.

Each permutation is Grain's index shuffle, which takes no memory and answers for any number at once.
"""

import bisect
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import grain

Size = tuple[int, int]  # (width, height)
OFTEN = 4  # a warning names the buckets whose images come this many times an epoch
UNIT = 2**31  # the largest weight, as a whole number


def uniform(*parts: Any) -> float:
    """A number in [0, 1) from a hash of its arguments: the same on every machine, at any time."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def epochs(size: int, seed: int, shuffle: bool) -> "grain.MapDataset":
    """All of `size` examples, over and over; every epoch has its own permutation."""
    import grain  # late: a train step needs none

    order = grain.MapDataset.range(size).seed(seed % 2**32)
    return (order.shuffle() if shuffle else order).repeat()


def mixed(
    sizes: Sequence[int], rates: Sequence[float], seed: int, shuffle: bool
) -> "grain.MapDataset":
    """Sets of these sizes, one after the other in the source, each sampled at its rate.

    They are interleaved evenly: any stretch of numbers has them in proportion, to an example.
    """
    import grain

    starts = np.cumsum([0, *sizes]).tolist()
    orders = [
        epochs(size, seed + i, shuffle).map(functools.partial(int.__add__, start))
        for i, (size, start) in enumerate(zip(sizes, starts[:-1], strict=True))
    ]
    return grain.MapDataset.mix(orders, list(rates))


@dataclasses.dataclass(frozen=True, eq=False)
class WeightedOrder:
    """Examples in proportion to their weights, by systematic sampling.

    An epoch has as many places as there are examples, at equal distances along the summed weights,
    from a random start, and in random order. So in each epoch every example comes as often as its
    share of an epoch says, rounded down or up. With equal weights that is the order of `epochs`.

    weights: float [N], finite and not negative, one above 0.
    """

    weights: np.ndarray
    seed: int
    shuffle: bool

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Where each example's stretch ends, in whole numbers: their sum is exact."""
        scaled = np.asarray(self.weights, np.float64) / np.max(self.weights)
        return np.cumsum(np.rint(scaled * UNIT).astype(np.int64))

    @functools.cached_property
    def _places(self) -> "grain.MapDataset":
        return epochs(len(self.weights), self.seed, self.shuffle)

    @functools.cached_property
    def _start(self) -> Callable[[int], int]:
        """Where an epoch starts, of UNIT, once an epoch."""
        part = functools.partial(uniform, self.seed, "start of epoch")
        return functools.lru_cache(maxsize=8)(lambda epoch: int(UNIT * part(epoch)))

    def __getitem__(self, number: int) -> int:
        size, place = len(self.weights), int(self._places[number])
        at = (place * UNIT + self._start(number // size)) * int(self.ends[-1]) // (size * UNIT)
        return bisect.bisect_right(self.ends, at)


def nearest_bucket(sizes: np.ndarray, buckets: Sequence[Size]) -> np.ndarray:
    """The bucket that is nearest to each (width, height) by the logarithm of the aspect ratio."""
    aspects = np.log([width / height for width, height in buckets])
    return np.abs(np.log(sizes[:, 0] / sizes[:, 1])[:, None] - aspects).argmin(1)


@dataclasses.dataclass(frozen=True, eq=False)
class BucketOrder:
    """Batches whose examples are all of one bucket.

    An epoch has for each bucket as many batches as its examples fill, at least one, in a random
    order. Its examples are taken in turn across epochs, so that none is left out.

    rows: for each bucket the source's indices of its examples; a bucket may have none.
    """

    rows: tuple[np.ndarray, ...]
    batch_size: int
    seed: int
    shuffle: bool

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Batches of each bucket in an epoch."""
        sizes = np.asarray([len(rows) for rows in self.rows])
        return np.where(sizes > 0, np.maximum(np.rint(sizes / self.batch_size), 1), 0).astype(int)

    @functools.cached_property
    def _batches(self) -> "grain.MapDataset":
        return epochs(int(self.counts.sum()), self.seed, self.shuffle)

    @functools.cached_property
    def _within(self) -> "list[grain.MapDataset | None]":
        return [
            epochs(len(rows), self.seed + 1 + i, self.shuffle) if len(rows) else None
            for i, rows in enumerate(self.rows)
        ]

    @functools.cached_property
    def place(self) -> Callable[[int], tuple[int, int]]:
        """(bucket of a step's batch, how many of this bucket came before), once a batch."""
        return functools.lru_cache(maxsize=64)(self._find_place)

    def _find_place(self, step: int) -> tuple[int, int]:
        ends = np.cumsum(self.counts)
        epoch, slot = step // int(ends[-1]), int(self._batches[step])
        bucket = int(np.searchsorted(ends, slot, side="right"))
        count = int(self.counts[bucket])
        return bucket, epoch * count + slot - (int(ends[bucket]) - count)

    def __getitem__(self, number: int) -> int:
        step, row = divmod(number, self.batch_size)
        bucket, before = self.place(step)
        return int(self.rows[bucket][self._within[bucket][before * self.batch_size + row]])

    def log_counts(self, buckets: Sequence[Size]) -> None:
        """Logs how often the images of each bucket come, as a warning where that is often."""
        for size, rows, batches in zip(buckets, self.rows, self.counts, strict=True):
            times = batches * self.batch_size / max(len(rows), 1)
            logging.log(
                logging.WARNING if times >= OFTEN else logging.INFO,
                "bucket %dx%d: %d images in %d of %d batches an epoch, each %.2f times",
                *size,
                len(rows),
                batches,
                self.counts.sum(),
                times,
            )
