"""What a data set is generated from: a list of prompts, each with a seed, none of them twice."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagen_jax.evaluation.prompts import read_prompts
from imagen_jax.pipeline.request import LARGEST_SEED
from imagen_jax.storage import fingerprints


@dataclass(frozen=True)
class Row:
    """A prompt; seed: its own, None for the run's. negative: its own negative prompt."""

    prompt: str
    seed: int | None = None
    negative: str | None = None


@dataclass(frozen=True)
class Example:
    """One image: its row, and the index and seed that make its noise. number: in the data set."""

    number: int
    row: Row
    seed: int
    index: int


@dataclass(frozen=True)
class Examples:
    """All images of a data set, `num_images` a row; duplicates: rows that were there before.

    The images of a row with a seed of its own are those of imagen-jax generate with that seed; the
    others have noise by their place in the data set.
    """

    rows: tuple[Row, ...]
    num_images: int
    seed: int
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.rows) * self.num_images

    def __getitem__(self, number: int) -> Example:
        row, place = self.rows[number // self.num_images], number % self.num_images
        if row.seed is None:
            return Example(number, row, self.seed, number)
        return Example(number, row, row.seed, place)

    @property
    def fingerprint(self) -> str:
        """Changes with any row, or with their order."""
        rows = [[row.prompt, row.seed, row.negative] for row in self.rows]
        return fingerprints.of_bytes(json.dumps(rows, ensure_ascii=False).encode())

    def batches(self, numbers: range, batch_size: int) -> Iterator[list[Example]]:
        """The images of some numbers, as many at once as can be: of one seed and negative prompt,
        with indices that follow each other.
        """
        batch: list[Example] = []
        for example in map(self.__getitem__, numbers):
            if batch and (len(batch) == batch_size or not follows(batch[-1], example)):
                yield batch
                batch = []
            batch.append(example)
        yield batch


def follows(one: Example, other: Example) -> bool:
    """Whether a call that makes one image can make the other next."""
    same = (one.seed, one.row.negative) == (other.seed, other.row.negative)
    return same and other.index == one.index + 1


def read_examples(
    source: str, num: int | None, num_images: int, seed: int, negative: str | None
) -> Examples:
    """The images of the first `num` prompts of a list that `read_prompts` reads. Files with columns
    may have `seed` and `negative_prompt`, empty where the run's hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a seed is none.
    """
    prompts = read_prompts(source).first(num)
    seeds = prompts.columns.get("seed", (None,) * len(prompts))
    negatives = prompts.columns.get("negative_prompt", (None,) * len(prompts))
    rows = [
        Row(text, _seed(text, own), _text(other) or negative)
        for text, own, other in zip(prompts.texts, seeds, negatives, strict=True)
    ]
    first: dict[tuple, Row] = {}
    for row in rows:
        key = row.prompt, row.negative, seed if row.seed is None else row.seed
        first.setdefault(key, row)
    kept = tuple(first.values())
    return Examples(kept, num_images, seed, len(rows) - len(kept))


def _seed(prompt: str, value: object) -> int | None:
    text = _text(value)
    if text is None:
        return None
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise ValueError(
            f"the seed of {prompt[:50]!r} is {text[:50]!r}: it must be a whole number up to "
            f"{LARGEST_SEED}"
        )
    return int(text)


def _text(value: object) -> str | None:
    """The text of a cell; None for an empty one."""
    text = "" if value is None else str(value).strip()
    return text or None


def shards(count: int, shard_size: int) -> Sequence[range]:
    """The numbers of the images in each shard."""
    return [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """Where a shard lies: 00012.tar."""
    return folder / f"{number:05d}{suffix}"
