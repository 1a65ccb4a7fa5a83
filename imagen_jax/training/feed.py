"""A run's batches as the loop takes them: on their devices, without those that are skipped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from imagen_jax.devices.hosts import gather_json
from imagen_jax.devices.sharding import shard_batch

Batch = dict[str, np.ndarray | jax.Array]  # arrays of jax are on the devices already
# (batch to start at, iterator state out of a checkpoint or None) -> this host's rows of that batch,
# the one after it, ...
Batches = Callable[[int, Any], Iterator[Batch]]
Ranges = Sequence[tuple[int, int]]  # (first, last) numbers of batches, both included


def after_skipped(number: int, skipped: Ranges) -> int:
    """The first number from `number` on that lies in none of the (first, last) ranges."""
    for first, last in sorted(skipped):
        if first <= number <= last:
            number = last + 1
    return number


def batches_taken(steps: int, skipped: Ranges) -> int:
    """The number after that of the last batch that `steps` steps have used."""
    if steps == 0:
        return 0
    number, end = steps - 1, 0
    for first, last in sorted(skipped):
        first = max(first, end)  # ranges may overlap
        if first <= number and first <= last:
            number += last + 1 - first
            end = last + 1
    return number + 1


class LabelError(ValueError):
    """The images have a label that the network has no class for."""


def check_labels(labels: Any, num_classes: int | None) -> None:
    """LabelError where a label is out of range; `num_classes` itself is the model's null class."""
    if labels is None or num_classes is None:
        return
    lowest, highest = np.min(labels), np.max(labels)
    if lowest < 0 or highest >= num_classes:
        raise LabelError(
            f"the images have labels from {lowest} to {highest}, but stage.network.num_classes is "
            f"{num_classes}: labels go from 0 to {num_classes - 1}"
        )


class Feed:
    """The batches of a run on their devices, without those that are skipped; `batch` is the current
    one.

    Of a stream it collects the state of each host, and gives each host its own back. The labels of
    every batch, whatever its source, are checked against the network's classes.
    """

    def __init__(
        self,
        batches: Batches,
        start: int,
        saved: Any,
        skipped: Ranges,
        mesh: jax.sharding.Mesh,
        num_classes: int | None = None,
    ):
        """`start`: how many steps were done; `saved`: what `state` gave after them."""
        self.batches, self.skipped, self.mesh = batches, skipped, mesh
        self.num_classes = num_classes
        self.number = batches_taken(start, self.skipped)
        own = isinstance(saved, list) and len(saved) == jax.process_count()
        self.stream = batches(self.number, saved[jax.process_index()] if own else None)
        self.batch = self.next()

    def next(self) -> dict[str, jax.Array]:
        """Puts the next batch into `batch`."""
        wanted = after_skipped(self.number, self.skipped)
        if hasattr(self.stream, "get_state"):
            for _ in range(wanted - self.number):
                next(self.stream)
        elif wanted > self.number:
            self.stream = self.batches(wanted, None)
        self.number = wanted + 1
        batch = next(self.stream)
        check_labels(batch.get("label"), self.num_classes)
        self.batch = shard_batch(batch, self.mesh)
        return self.batch

    def state(self) -> list[Any] | None:
        """The position of the stream on each host; None where batches need no state."""
        if not hasattr(self.stream, "get_state"):
            return None
        return gather_json(self.stream.get_state())
