"""What is counted of a set while it is read: images that are broken, images that are small."""

import itertools
import logging
import threading

from imagen_jax.data.order import Size
from imagen_jax.data.sources import BrokenExample

LOOKED_AT, MANY_SMALL = 256, 0.1  # images whose size is looked at; the share that gets a warning


class TooManyBroken(Exception):
    """More of the images are broken than the share that the user allows."""


class Damage:
    """Counts the broken examples of a source, names each once in the log, and stops past a share.

    The share is that of the examples read so far, at least 1000 of them or the whole set.
    """

    def __init__(self, size: int, max_share: float):
        self.size, self.max_share = size, max_share
        self.read, self.broken = 0, {}
        self.lock = threading.Lock()

    def count(self, number: int) -> None:
        """Counts examples that were read."""
        with self.lock:
            self.read += number

    def report(self, error: BrokenExample) -> None:
        """Counts a broken example, with a warning; raises TooManyBroken above the share."""
        with self.lock:
            if error.key not in self.broken:
                self.broken[error.key] = str(error)
                logging.warning("skipped a broken example: %s", error)
        if self.share > self.max_share:
            raise self.error()

    @property
    def share(self) -> float:
        """Broken examples by those that were read, at least 1,000 of them."""
        return len(self.broken) / min(max(self.read, 1000), self.size)

    def error(self) -> TooManyBroken:
        """What a set with too many broken examples raises; it names the first of them."""
        return TooManyBroken(
            f"{len(self.broken)} broken examples, {self.share:.1%} of those read, are more than "
            f"the {self.max_share:.1%} allowed. The first: "
            f"{'; '.join(itertools.islice(self.broken.values(), 5))}. Mend or remove them, or "
            "raise data.max_broken_share."
        )


class Enlarged:
    """Counts the images that are smaller than what is made of them, among the first that are read,
    and warns once where they are many: what is learned of them is blurred.
    """

    def __init__(self, size: int):
        self.first = min(size, LOOKED_AT)
        self.seen = self.small = 0
        self.lock = threading.Lock()

    def count(self, have: Size, wanted: Size) -> None:
        """Counts an image of size `have`, and warns once where many are smaller than `wanted`."""
        if self.seen >= self.first:
            return
        with self.lock:
            self.seen += 1
            self.small += have[0] < wanted[0] or have[1] < wanted[1]
            if self.seen == self.first and self.small > MANY_SMALL * self.first:
                logging.warning(
                    "%d of the first %d images are smaller than %dx%d pixels: they are enlarged, "
                    "and the model learns how blurred they are",
                    *(self.small, self.first, *wanted),
                )
