"""Several image sets as one, each drawn at its own rate."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.data.sources import Source


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureSource:
    """Sets one behind the other; `Loader` draws from each at its rate, whatever its size.

    rates: positive, in any unit: 3 and 1 are the same as 0.75 and 0.25.
    """

    sources: Sequence[Source]
    rates: Sequence[float]

    def __post_init__(self):
        if not self.sources or len(self.sources) != len(self.rates):
            raise ValueError(f"there are {len(self.rates)} rates for {len(self.sources)} sets")
        if not all(0 < rate < float("inf") for rate in self.rates):
            raise ValueError(f"the rates of a mixture must be above 0, not {list(self.rates)}")

    @functools.cached_property
    def ends(self) -> list[int]:
        return np.cumsum([len(source) for source in self.sources]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number][index - (self.ends[number - 1] if number else 0)]
