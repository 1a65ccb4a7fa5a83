"""The images that a model is measured on, and the prompts that stand for them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagen_jax.data.sources import ArraySource, read_npz
from imagen_jax.evaluation.retrieval import Gallery, make_gallery

LANGUAGES = ("en", "zh")
NEEDED = ("label", "split", "name_en", "name_zh", "variant")
DRAW_SEED = 0  # which images are drawn never depends on the seed of the noise
TRAIN_IMAGES = 200


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images of a split with their names, and the gallery of all distinct ones."""

    source: ArraySource
    gallery: Gallery
    split: str
    path: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> np.ndarray:
        return self.source.labels

    @property
    def variant(self) -> np.ndarray:
        return self.source.extra["variant"].astype(bool)

    def names(self, language: str) -> list[str]:
        """The full name of each image, empty where the language has none."""
        return [str(name) for name in self.source.extra[f"name_{language}"]]


@dataclass(frozen=True, eq=False)
class Prompts:
    """One row a sample: what to paint, in which language, and which image of the set it names."""

    text: list[str]
    language: np.ndarray  # str [samples]
    image: np.ndarray  # int [samples], rows of the ImageSet

    def __len__(self) -> int:
        return len(self.text)


def read_image_set(path: str | Path, split: str, num: int | None = None) -> ImageSet:
    """`num` images of a split of an npz file that scripts/prepare_emoji.py wrote.

    They are drawn with a seed of their own: more images are the same ones and others. With `num`
    None, 200 of "train" and all of "heldout".

    Raises:
        FileNotFoundError: there is no such file; the message tells how to make it.
        ValueError: it lacks something, or num is not positive.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; make it with: python scripts/prepare_emoji.py --out "
            f"{path.parent}"
        )
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1: {num}.")
    everything = read_npz(path, "all", "label")
    with np.load(path) as archive:
        missing = [name for name in NEEDED if name not in archive.files]
        if missing:
            raise ValueError(
                f"{path} has no {', '.join(missing)}; scripts/prepare_emoji.py writes them all."
            )
        rows = np.flatnonzero(archive["split"] == split)
    if not len(rows):
        raise ValueError(f"{path} has no image in its split {split!r}.")
    if num is None:
        num = TRAIN_IMAGES if split == "train" else len(rows)
    rows = np.random.default_rng(DRAW_SEED).permutation(rows)[:num]
    return ImageSet(
        everything.select(rows),
        make_gallery(everything.images, everything.labels),
        split,
        str(path),
        hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )


def make_prompts(images: ImageSet, languages: Sequence[str] = LANGUAGES) -> Prompts:
    """The full names of all images, in each language that has one; an image's follow each other.

    A prompt's place in this list is its global index, which its noise is drawn from: it does not
    change when more images are asked for.
    """
    names = {language: images.names(language) for language in languages}
    rows = [
        (names[language][row], language, row)
        for row in range(len(images))
        for language in languages
        if names[language][row]
    ]
    text, language, image = zip(*rows, strict=True)
    return Prompts(list(text), np.asarray(language), np.asarray(image))


def select(prompts: Prompts, rows: Sequence[int] | np.ndarray) -> Prompts:
    """The prompts of these rows."""
    rows = np.asarray(rows, int)
    text = [prompts.text[row] for row in rows]
    return Prompts(text, prompts.language[rows], prompts.image[rows])
