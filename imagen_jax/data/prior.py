"""Batches of two image sets: what a model is to learn, and what it must not forget meanwhile.

DreamBooth's prior preservation (arXiv 2208.12242, section 3.3): a few images of a subject, and
images of its class that the model itself has made.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from imagen_jax.data.loader import Loader, check_rows, prepared


@dataclasses.dataclass(frozen=True, eq=False)
class PriorLoader:
    """Batches whose first rows are `instance`'s and whose last rows are `prior`'s.

    Args:
      instance, prior: loaders of their own rows of the whole batch, for one process; each goes
        through its set in its own order.
      rows: which rows of the whole batch this process gets; None: all.
    """

    instance: Loader
    prior: Loader
    rows: Sequence[int] | None = None

    def __post_init__(self):
        if self.instance.rows is not None or self.prior.rows is not None:
            raise ValueError("the loaders of a PriorLoader give all their rows")
        check_rows(self.rows, self.batch_size)

    @property
    def batch_size(self) -> int:
        """Rows of the whole batch, on all processes together."""
        return self.instance.batch_size + self.prior.batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of batch `step`, a pure function of the seeds and the step."""
        rows = range(self.batch_size) if self.rows is None else sorted(map(int, self.rows))
        parts, first = [], 0
        for loader in (self.instance, self.prior):
            size = loader.batch_size
            own = [row - first for row in rows if first <= row < first + size]
            if own:
                parts.append(loader.examples([step * size + row for row in own]))
            first += size
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches start, start + 1, ... without end."""
        return prepared(self.batch, [self.instance, self.prior], start)
