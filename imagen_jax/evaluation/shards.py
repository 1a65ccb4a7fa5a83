"""How the images of an evaluation are divided: into chunks, and the chunks among processes."""

from typing import NamedTuple

CHUNK = 128  # images at least, whose features are one file


class Shard(NamedTuple):
    """The part of the work that this process does: shard `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def chunks(self, total: int, batch_size: int = 1) -> list[range]:
        """The indices 0 ... total - 1 in chunks of whole batches, every count-th chunk of them."""
        size = batch_size * -(-CHUNK // batch_size)
        starts = range(self.index * size, total, self.count * size)
        return [range(start, min(start + size, total)) for start in starts]


WHOLE = Shard()


def read_shard(text: str | None) -> Shard:
    """ "2/4" is the second of four; None is the whole. ValueError for anything else."""
    if text is None:
        return WHOLE
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--share is {text!r}; it must be I/N, for example 1/4 to 4/4.")
    return Shard(int(number) - 1, int(count))
