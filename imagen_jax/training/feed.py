"""A run's batches as the loop takes them: on their devices, without those that are left out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.devices.hosts import gather_json
from imagen_jax.devices.sharding import shard_batch

Batch = dict[str, np.ndarray]
# (batch to start at, iterator state out of a checkpoint or None) -> this host's rows of that batch,
# the one after it, ...
Batches = Callable[[int, Any], Iterator[Batch]]
Ranges = Sequence[tuple[int, int]]  # (first, last) numbers of batches, both among them


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
    number = steps - 1
    for first, last in _joined(skipped):
        if first <= number:
            number += last - first + 1
    return number + 1


def _joined(ranges: Ranges) -> Ranges:
    """The ranges in order, overlapping ones made one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


class LabelError(ValueError):
    """The images have a label that the network has no class for."""


def check_labels(batch: Batch, num_classes: int | None) -> None:
    """LabelError where a label is out of range; `num_classes` itself is the model's null class."""
    labels = np.asarray(batch.get("label", []))
    if num_classes is None or not (wrong := labels[(labels < 0) | (labels >= num_classes)]).size:
        return
    raise LabelError(
        f"the images have label {wrong[0]}, but stage.network.num_classes is {num_classes}: "
        f"labels go from 0 to {num_classes - 1}"
    )


class Feed:
    """The batches of a run on their devices, without those that are left out.

    Of a stream it takes the state of each host and gives each its own back. The labels of every
    batch, whatever its source, are checked against `num_classes`.
    """

    def __init__(
        self,
        batches: Batches,
        start: int,
        saved: Any,
        skipped: Ranges,
        mesh: Mesh,
        num_classes: int | None = None,
    ):
        self.batches, self.skipped, self.mesh = batches, skipped, mesh
        self.num_classes = num_classes
        self.number = batches_taken(start, self.skipped)
        state = None
        if isinstance(saved, list) and len(saved) == jax.process_count():
            state = saved[jax.process_index()]
        self.stream = batches(self.number, state)
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
        check_labels(batch, self.num_classes)
        self.batch = shard_batch(batch, self.mesh)
        return self.batch

    def state(self) -> list[Any] | None:
        """Where the stream is on each host; None where batches need no state."""
        if not hasattr(self.stream, "get_state"):
            return None
        return gather_json(self.stream.get_state())
