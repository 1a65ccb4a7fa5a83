"""The emoji that a model is measured on, and the prompts that stand for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.data.sources import ArraySource, read_npz
from imagen_jax.images.pixels import resize
from imagen_jax.storage import fingerprints
from imagen_jax.storage.folders import user_path

EMOJI = Path("data/emoji/emoji.npz")
SIZE = 32  # pixels, at which images are compared
LANGUAGES = ("en", "zh")
NEEDED = ("split", "name_en", "name_zh", "variant")
DRAW_SEED = 0  # which images are drawn never depends on the seed of the noise
TRAIN_IMAGES = 200


class Gallery(NamedTuple):
    """The distinct images of a set at 32x32, and the class of each."""

    images: np.ndarray  # uint8 [classes, 32, 32, 3]
    classes: np.ndarray  # int [classes]


def make_gallery(images: np.ndarray, classes: np.ndarray) -> Gallery:
    """The first image of each class, so that pixel-identical images count as one."""
    known, first = np.unique(classes, return_index=True)
    return Gallery(shrink(images[first]), known)


def shrink(images: np.ndarray) -> np.ndarray:
    """uint8 images [N, H, W, 3] at 32x32, resized as a base model's training images are."""
    return np.stack([resize(image, SIZE) for image in images])


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

    def names(self, language: str) -> list[str]:
        """The full name of each image, empty where the language has none."""
        return [str(name) for name in self.source.extra[f"name_{language}"]]

    def describe(self) -> dict[str, Any]:
        """For a report."""
        return {
            "path": self.path,
            "fingerprint": self.fingerprint,
            "split": self.split,
            "pictures": len(self),
            "distinct_in_all_splits": len(self.gallery.classes),
        }


class ImagePrompt(NamedTuple):
    """What one image is generated from: a name, and the row of the image in the set that has it."""

    text: str
    language: str
    image: int


def read_image_set(path: str | Path, split: str, num: int | None = None) -> ImageSet:
    """`num` images of a split of an npz file that scripts/prepare_emoji.py wrote.

    They are drawn with a seed of their own: more images are the same ones and others. With `num`
    None, 200 of "train" and all of "heldout".

    Raises:
        FileNotFoundError: there is no such file; the message tells how to make it.
        ValueError: it lacks something, or num is not positive.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; make it with: python scripts/prepare_emoji.py --out "
            f"{path.parent}"
        )
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1: {num}.")
    everything = read_npz(path, "all", "label")
    with np.load(path) as archive:
        if missing := [name for name in NEEDED if name not in archive.files]:
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
        fingerprints.of_bytes(path.read_bytes()),
    )


def make_prompts(images: ImageSet, language: str | None = None) -> list[ImagePrompt]:
    """The full names of all images, in each language that has one; an image's follow each other.

    A prompt's place in this list is its global index, which its noise is made from: it does not
    change when more images are asked for.

    Args:
        language: one of LANGUAGES; None is all.
    """
    languages = LANGUAGES if language is None else (language,)
    names = {name: images.names(name) for name in languages}
    return [
        ImagePrompt(names[language][row], language, row)
        for row in range(len(images))
        for language in languages
        if names[language][row]
    ]
