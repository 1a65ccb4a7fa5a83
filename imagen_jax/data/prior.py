"""Batches of two picture sets: what a model is to learn, and what it shall not forget meanwhile.

DreamBooth's prior preservation (arXiv 2208.12242, section 3.3): a few pictures of a subject, and
pictures of its class that the model itself has made.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from imagen_jax.data.loader import Loader, prepared


@dataclasses.dataclass(frozen=True, eq=False)
class PriorLoader:
    """Batches whose first rows are `instance`'s and whose last rows are `prior`'s.

    Args:
      instance, prior: loaders of their own rows of the whole batch, for one process; each goes
        through its set in its own order.
      process_index: this process gets rows [index * B / count, (index + 1) * B / count).
    """

    instance: Loader
    prior: Loader
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.instance.process_count != 1 or self.prior.process_count != 1:
            raise ValueError("the loaders of a PriorLoader are each for one process")
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by {self.process_count} processes"
            )

    @property
    def batch_size(self) -> int:
        """Rows of the whole batch, on all processes together."""
        return self.instance.batch_size + self.prior.batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of batch `step`, a pure function of the seeds and the step."""
        rows = self.batch_size // self.process_count
        start, stop = self.process_index * rows, (self.process_index + 1) * rows
        parts, first = [], 0
        for loader in (self.instance, self.prior):
            size = loader.batch_size
            low, high = (min(max(row - first, 0), size) for row in (start, stop))
            if low < high:
                parts.append(loader.examples(range(step * size + low, step * size + high)))
            first += size
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches start, start + 1, ... without end."""
        return prepared(self.batch, [self.instance, self.prior], start)
