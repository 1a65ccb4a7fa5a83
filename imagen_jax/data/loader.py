"""Examples to batches. Batch N is a pure function of (seed, N), so a resumed run repeats itself.

The order comes from Grain's index shuffle (`order`), the threads that prepare batches ahead of the
device from Grain's prefetch. Threads are enough: Pillow decodes and resizes without Python's lock.
"""

import bisect
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.data.captions import Captions
from imagen_jax.data.counts import Damage, Enlarged, TooManyBroken
from imagen_jax.data.embeddings import EmbeddedSource, Embedding
from imagen_jax.data.order import (
    BucketOrder,
    Size,
    WeightedOrder,
    epochs,
    mixed,
    nearest_bucket,
    uniform,
)
from imagen_jax.data.shard_sources import ShardSource
from imagen_jax.data.sources import (
    CONDITIONINGS,
    ArraySource,
    BrokenExample,
    MixtureSource,
    Source,
    check_choice,
)
from imagen_jax.images import pixels
from imagen_jax.storage.codec import require

if TYPE_CHECKING:
    import grain

CROPS = ("centre", "random")
Caption = str | Embedding
Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
FOREVER = 2**62


def captions_of(
    source: Source, rows: Sequence[int], max_broken_share: float
) -> list[tuple[str, Captions]]:
    """(key, captions) of these examples; no captions where one cannot be read.

    Raises:
        TooManyBroken: that is so for a larger share of them than training would skip.
    """
    damage = Damage(len(source), max_broken_share)
    damage.count(len(rows))
    examples = []
    for row in rows:
        try:
            example = source[row]
            examples.append((example["key"], example["captions"]))
        except BrokenExample as error:
            damage.report(error)
            examples.append((error.key, []))
    return examples


def choose_caption(captions: Sequence[tuple[Caption, float]], number: float) -> Caption:
    """The caption at a number in [0, 1) of the captions' summed weights."""
    ends = list(itertools.accumulate(weight for _, weight in captions))
    place = bisect.bisect_right(ends, number * ends[-1])
    return captions[min(place, len(captions) - 1)][0]


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Batches of a source: `batch(step)` for one, `batches(start)` for all, prepared in threads.

    The captions of an `EmbeddedSource` are embedded already: they are chosen as texts are, and need
    no `tokenize`.

    Args:
      batch_size: examples of the whole batch, on all processes together.
      tokenize: list of texts -> (ids int32 [B, L], mask bool [B, L]); needed for text.
      conditioning: "text", "label" or None: what the batch holds beside the images.
      prompt: the caption of every image, instead of its own.
      shuffle: False gives the source's own order, over and over.
      flip: mirror half of the images (for sets without text or handedness).
      crop: "centre" or "random": what is kept of an image whose shorter side is `resolution`.
      crop_size: the side of the square that is kept; None is `resolution`.
      buckets: (width, height) of images of other shapes, instead of squares: all of a batch have
        one of them, the nearest by aspect ratio. The source must have `sizes`.
      weights: draw images in proportion to their field `weight`; the source must have `weights`.
      on_device: batches hold numbers instead of images, "row" int32 [B] of `images` and "flip" bool
        [B], for a set that lies on the devices; the source must be in memory.
      rows: which rows of the whole batch this process gets; None: all.
      max_broken_share: stop when more of the examples than this cannot be read, or with buckets
        or weights when the sizes or weights of more than this are not known; the others are left
        out.
    """

    source: Source
    batch_size: int
    resolution: int
    seed: int = 0
    tokenize: Tokenize | None = None
    conditioning: str | None = "text"
    prompt: str | None = None
    shuffle: bool = True
    flip: bool = False
    crop: str = "centre"
    crop_size: int | None = None
    buckets: tuple[Size, ...] = ()
    weights: bool = False
    on_device: bool = False
    rows: Sequence[int] | None = None
    max_broken_share: float = 0.01
    num_threads: int = 4
    prefetch: int = 8

    def __post_init__(self):
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        check_choice("crop", self.crop, CROPS)
        check_rows(self.rows, self.batch_size)
        text, side = self.conditioning == "text", self.resolution
        embedded = isinstance(self.source, EmbeddedSource)
        require(
            (len(self.source), "the source holds no example"),
            (
                not text or embedded or self.tokenize is not None,
                "conditioning 'text' needs a tokenize function",
            ),
            (
                text or self.prompt is None,
                f"conditioning {self.conditioning!r} reads no prompt: {self.prompt!r}",
            ),
            (
                self.crop_size is None or 0 < self.crop_size <= side,
                f"crop_size is {self.crop_size}; it must be in 1...{side}",
            ),
            (0 <= self.seed < 2**32, f"seed is {self.seed}; it must be in [0, 2**32)"),
        )
        if self.weights:
            self._check_weights()
        if self.buckets:
            self._check_buckets()
            self.order.log_counts(self.buckets)
        largest = max([side for size in self.buckets for side in size], default=self.resolution)
        source = _reduced(self.source, largest, self.crop == "random" or bool(self.buckets))
        object.__setattr__(self, "source", source)
        require(
            (
                not self.on_device or self.images is not None,
                "on_device is for one set in memory (source 'npz') whose images are taken whole, "
                "without embeddings, crops or buckets",
            )
        )

    def _check_buckets(self) -> None:
        sizes = getattr(self.source, "sizes", None)
        require(
            (
                self.crop_size is None and not isinstance(self.source, MixtureSource),
                "buckets do not go with crop_size, nor with a mixture of sets",
            ),
            (
                all(len(size) == 2 and min(size) > 0 for size in self.buckets),
                f"buckets are (width, height) each, not {self.buckets}",
            ),
            (
                sizes is not None,
                "buckets need the sizes of images, which this source does not know",
            ),
        )
        unknown, count = len(sizes) - len(_measured(sizes)), len(sizes)
        if unknown > self.max_broken_share * count or unknown == count:
            raise ValueError(
                f"buckets need the width and height of images, and those of {unknown} of {count} "
                f"are not known, more than the {self.max_broken_share:.1%} allowed: "
                "data.measure=True reads them, once, where an image is not broken; else remove "
                "these, or raise data.max_broken_share"
            )
        if unknown:
            logging.warning("%d of %d images of unknown size are left out", unknown, count)

    def _check_weights(self) -> None:
        weights = getattr(self.source, "weights", None)
        require(
            (
                not self.buckets and not isinstance(self.source, MixtureSource),
                "weights do not go with buckets, nor with a mixture of sets",
            ),
            (
                weights is not None,
                "weights need the field 'weight', which this source lacks: data.weights=False "
                "draws all images alike",
            ),
        )
        known, count = weights[np.isfinite(weights)], len(weights)
        if np.any(known < 0) or not np.any(known > 0):
            raise ValueError("weights must not be negative, nor all 0")
        if len(known) < count * (1 - self.max_broken_share):
            raise ValueError(f"{count - len(known)} of {count} images have no weight")
        if len(known) < count:
            logging.warning(
                "%d of %d images without weight are left out", count - len(known), count
            )

    @functools.cached_property
    def damage(self) -> Damage:
        """The broken examples so far."""
        return Damage(len(self.source), self.max_broken_share)

    @functools.cached_property
    def enlarged(self) -> Enlarged:
        """The images so far that were smaller than what is trained on."""
        return Enlarged(len(self.source))

    @functools.cached_property
    def images(self) -> np.ndarray | None:
        """uint8 [N, resolution, resolution, 3], all images as batches hold them, where the source
        has them in memory and takes them whole; else None.
        """
        cut = self.crop == "random" or self.crop_size is not None or self.buckets
        return None if cut or not isinstance(self.source, ArraySource) else self.source.images

    @functools.cached_property
    def order(self) -> "BucketOrder | WeightedOrder | grain.MapDataset":
        """Global example number (step * batch_size + row), without end -> index into the source."""
        if self.buckets:
            known = _measured(self.source.sizes)
            bucket = nearest_bucket(self.source.sizes[known], self.buckets)
            rows = tuple(known[bucket == i] for i in range(len(self.buckets)))
            return BucketOrder(rows, self.batch_size, self.seed, self.shuffle)
        if isinstance(self.source, MixtureSource):
            sizes = [len(source) for source in self.source.sources]
            return mixed(sizes, self.source.rates, self.seed, self.shuffle)
        if self.weights:
            weights = self.source.weights
            known = np.where(np.isfinite(weights), weights, 0.0)
            return WeightedOrder(known, self.seed, self.shuffle)
        return epochs(len(self.source), self.seed, self.shuffle)

    def sizes(self, number: int) -> tuple[Size, Size]:
        """(width, height) that the image at a global number is resized to cover, and of what is
        then cut out of it.
        """
        size = self.resolution, self.resolution
        if self.buckets:
            size = self.buckets[self.order.place(number // self.batch_size)[0]]
        return size, size if self.crop_size is None else (self.crop_size, self.crop_size)

    def example(self, number: int) -> dict[str, Any]:
        """The example at a global number (step * batch_size + row), the next good one if broken."""
        index = int(self.order[number])
        for offset in range(len(self.source)):
            try:
                example = self.source[(index + offset) % len(self.source)]
                break
            except BrokenExample as error:
                self.damage.report(error)
        else:
            raise self.damage.error()
        draw = functools.partial(uniform, self.seed, number)
        at = (draw("crop x"), draw("crop y")) if self.crop == "random" else None
        self.enlarged.count(pixels.size_of(example["image"]), self.sizes(number)[0])
        image = pixels.resize_and_crop(example["image"], *self.sizes(number), at)
        image = image[:, ::-1] if self._flips(number) else image
        return {"image": image, **self._condition(example, number)}

    def _flips(self, number: int) -> bool:
        return self.flip and uniform(self.seed, number, "flip") < 0.5

    def _condition(self, example: dict[str, Any], number: int) -> dict[str, Any]:
        """What an example says beside its image: one of its captions, or its label."""
        if self.conditioning != "text":
            return {"label": example.get("label")}
        captions = example["captions"] if self.prompt is None else [(self.prompt, 1.0)]
        return {"caption": choose_caption(captions, uniform(self.seed, number, "caption"))}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of batch `step`: image, and ids or text with mask, or label; with
        `on_device` row and flip in place of image.
        """
        rows = range(self.batch_size) if self.rows is None else self.rows
        return self.examples([step * self.batch_size + int(row) for row in rows])

    def examples(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The examples of these global numbers as a batch."""
        self.damage.count(len(numbers))
        batch, examples = self._read(numbers) if self.images is None else self._take(numbers)
        if self.conditioning == "text" and isinstance(self.source, EmbeddedSource):
            texts = zip(*(item["caption"].padded() for item in examples), strict=True)
            batch["text"], batch["mask"] = map(np.stack, texts)
        elif self.conditioning == "text":
            batch["ids"], batch["mask"] = self.tokenize([item["caption"] for item in examples])
        elif self.conditioning == "label":
            batch["label"] = np.asarray([item["label"] for item in examples], np.int32)
        return batch

    def _read(self, numbers: Sequence[int]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """The images of examples, and what else there is of each, one after the other."""
        _, (width, height) = self.sizes(numbers[0])
        images = np.empty((len(numbers), height, width, 3), np.uint8)
        examples = []
        for row, number in enumerate(numbers):
            example = self.example(number)
            images[row] = example.pop("image")  # not kept and stacked: that takes the memory twice
            examples.append(example)
        return {"image": images}, examples

    def _take(self, numbers: Sequence[int]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """The same out of `images`, all at once; only their rows with `on_device`."""
        rows = np.asarray([int(self.order[number]) for number in numbers], np.int32)
        flips = np.asarray([self._flips(number) for number in numbers], bool)
        pairs = zip(rows.tolist(), numbers, strict=True)
        examples = [self._condition(self.source[row], number) for row, number in pairs]
        if self.on_device:
            return {"row": rows, "flip": flips}, examples
        images = self.images[rows]
        images[flips] = _mirrored(images[flips])
        return {"image": images}, examples

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches start, start + 1, ... without end; starting late costs nothing."""
        return prepared(self.batch, self, start)


def _mirrored(images: np.ndarray) -> np.ndarray:
    """Images the other way round: a channel at a time, as NumPy is slow where the last axis of a
    reversed one is as short as 3.
    """
    mirrored = np.empty_like(images)
    for channel in range(images.shape[-1]):
        mirrored[..., channel] = images[:, :, ::-1, channel]
    return mirrored


def _measured(sizes: np.ndarray) -> np.ndarray:
    """The rows whose (width, height) are known: they are 0 where the source could not tell."""
    return np.flatnonzero(np.all(sizes > 0, axis=-1))


def check_rows(rows: Sequence[int] | None, batch_size: int) -> None:
    """ValueError unless these are rows of a batch, at least one, or None for all of them."""
    if rows is not None and (len(rows) == 0 or min(rows) < 0 or max(rows) >= batch_size):
        raise ValueError(f"rows are {list(rows)[:5]}...; they must be in 0...{batch_size - 1}")


def _reduced(source: Source, side: int, whole: bool) -> Source:
    """The source, where it can with images that are not much larger than this square; `whole`
    when more than their largest centred square is needed.
    """
    if isinstance(source, MixtureSource):
        return dataclasses.replace(
            source, sources=[_reduced(part, side, whole) for part in source.sources]
        )
    if isinstance(source, EmbeddedSource):
        return dataclasses.replace(source, source=_reduced(source.source, side, whole))
    if isinstance(source, ArraySource) and not whole and source.images.shape[1:3] != (side, side):
        counted = Enlarged(len(source))
        for image in source.images[: counted.first]:
            counted.count(pixels.size_of(image), (side, side))
        images = np.stack([pixels.resize(image, side) for image in source.images])
        return dataclasses.replace(source, images=images)
    if isinstance(source, ShardSource):
        return dataclasses.replace(source, cover=side)
    return source


def prepared(
    batch: Callable[[int], dict[str, np.ndarray]], loader: Loader, start: int
) -> Iterator[dict[str, np.ndarray]]:
    """batch(start), batch(start + 1), ... made ahead in as many threads as the loader wants."""
    import grain

    options = grain.ReadOptions(loader.num_threads, loader.prefetch)
    batches = iter(grain.MapDataset.range(start, FOREVER).map(batch).to_iter_dataset(options))
    try:
        yield from batches
    except TooManyBroken as error:  # raised again, without Grain's note on its tracebacks
        raise TooManyBroken(*error.args) from None
    finally:
        batches.close()


@dataclasses.dataclass(frozen=True, eq=False)
class PriorLoader:
    """Batches whose first rows are `instance`'s and whose last rows are `prior`'s: what a model is
    to learn, and what it must not forget meanwhile.

    DreamBooth's prior preservation (arXiv 2208.12242, section 3.3): a few images of a subject, and
    images of its class that the model itself has made.

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
        first = self.instance.batch_size  # of the prior's
        own = {
            self.instance: [row for row in rows if row < first],
            self.prior: [row - first for row in rows if row >= first],
        }
        parts = [
            loader.examples([step * loader.batch_size + row for row in numbers])
            for loader, numbers in own.items()
            if numbers
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches start, start + 1, ... without end."""
        return prepared(self.batch, self.instance, start)
