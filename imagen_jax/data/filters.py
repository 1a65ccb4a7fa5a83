"""Which examples of an indexed set are used, by what the index knows of them."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagen_jax.data.index import Index
from imagen_jax.storage.codec import from_dict

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Filters:
    """Examples that pass all of these are kept; each range includes both ends.

    min_size: pixels of the shorter side. aspect: width / height. caption_length: characters of the
    first caption. scores: of the numbers in the example's json or record, by name, such as
    {"similarity": (0.28, 1)}; an example without that number does not pass. A size or caption that
    the index does not know passes, and so does a broken example that reading will count.
    """

    min_size: int | None = None
    aspect: Range | None = None
    caption_length: Range | None = None
    scores: Mapping[str, Range] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.min_size is not None and not self.min_size > 0:
            raise ValueError(f"min_size is {self.min_size!r}; it must be above 0")
        ranges = {"aspect": self.aspect, "caption_length": self.caption_length}
        ranges |= {f"scores.{name}": limits for name, limits in self.scores.items()}
        for name, limits in ranges.items():
            if limits is not None and not limits[0] <= limits[1]:
                raise ValueError(f"{name} is {limits}; the least comes first")

    @property
    def need_sizes(self) -> bool:
        return self.min_size is not None or self.aspect is not None

    def kept(self, index: Index, broken: np.ndarray) -> np.ndarray:
        """bool [N]; says in the log what each filter took away.

        Args:
          broken: the rows that cannot be read, which pass.

        Raises:
          ValueError: the index has no sizes, or no such score.
        """
        if self.need_sizes and not index.sizes.any():
            raise ValueError(
                "filters on the size need each example's width and height, and its json or record "
                "does not have them: data.measure=True reads them from the images, once"
            )
        kept = np.ones(len(index), bool)
        for name, passed in self._tests(index):
            logging.info(
                "filter %s: %d of %d examples do not pass", name, (~passed).sum(), len(kept)
            )
            kept &= passed
        kept[broken] = True
        return kept

    def _tests(self, index: Index) -> list[tuple[str, np.ndarray]]:
        width, height = index.sizes[:, 0], index.sizes[:, 1]
        unknown, tests = width == 0, []
        if self.min_size is not None:
            tests.append(("min_size", unknown | (np.minimum(width, height) >= self.min_size)))
        if self.aspect is not None:
            aspect = width / np.maximum(height, 1)
            tests.append(("aspect", unknown | _between(aspect, self.aspect)))
        if self.caption_length is not None:
            inside = _between(index.lengths, self.caption_length)
            tests.append(("caption_length", (index.lengths == 0) | inside))
        for name, limits in self.scores.items():
            if name not in index.fields:
                known = ", ".join(sorted(index.names)) or "none"
                raise ValueError(f"filters.scores.{name}: no example has it; there are: {known}")
            tests.append((name, _between(index.fields[name], limits)))
        return tests


def _between(values: np.ndarray, limits: Range) -> np.ndarray:
    return (values >= limits[0]) & (values <= limits[1])


def make_filters(section: Mapping[str, Any] | None) -> Filters:
    """The filters of a config's section `data.filters`."""
    given = {name: value for name, value in (section or {}).items() if value is not None}
    return from_dict(Filters, given, "data.filters")
