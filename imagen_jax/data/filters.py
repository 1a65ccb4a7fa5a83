"""Which examples of an indexed set are used, by what the index knows of them."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
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
        scores = {f"scores.{name}": limits for name, limits in self.scores.items()}
        ranges = {"aspect": self.aspect, "caption_length": self.caption_length} | scores
        for name, limits in ranges.items():
            if limits is not None and not limits[0] <= limits[1]:
                raise ValueError(f"{name} is {limits}; its smaller end must come first")

    def kept(self, index: Index, broken: np.ndarray) -> np.ndarray:
        """bool [N]; says in the log what each filter took away.

        Args:
          broken: the rows that cannot be read, which pass.

        Raises:
          ValueError: the index has no sizes, or no such score.
        """
        if (self.min_size or self.aspect) and not index.sizes.any():
            raise ValueError(
                "filters on the size need each example's width and height, and its json or record "
                "does not have them: data.measure=True reads them from the images, once"
            )
        kept = np.ones(len(index), bool)
        for name, values, (least, most), unknown in self._tests(index):
            passed = unknown | ((values >= least) & (values <= most))
            logging.info(
                "filter %s: %d of %d examples do not pass", name, (~passed).sum(), len(kept)
            )
            kept &= passed
        kept[broken] = True
        return kept

    def _tests(self, index: Index) -> Iterator[tuple[str, np.ndarray, Range, np.ndarray]]:
        """(name, values, their range, which are unknown and pass) of each filter that is set."""
        width, height = index.sizes.T
        if self.min_size is not None:
            yield "min_size", np.minimum(width, height), (self.min_size, np.inf), width == 0
        if self.aspect is not None:
            yield "aspect", width / np.maximum(height, 1), self.aspect, width == 0
        if self.caption_length is not None:
            yield "caption_length", index.lengths, self.caption_length, index.lengths == 0
        for name, limits in self.scores.items():
            if name not in index.fields:
                known = ", ".join(sorted(index.names)) or "none"
                raise ValueError(f"filters.scores.{name}: no example has it; there are: {known}")
            yield name, index.fields[name], limits, np.zeros(len(index), bool)


def make_filters(section: Mapping[str, Any] | None) -> Filters:
    """The filters of a config's section `data.filters`."""
    given = {name: value for name, value in (section or {}).items() if value is not None}
    return from_dict(Filters, given, "data.filters")
