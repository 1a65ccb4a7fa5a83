"""Explanations of images: maps of words, as arrays, over the image, and as files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from imagen_jax.images.file_names import file_name
from imagen_jax.images.grid import image_grid
from imagen_jax.images.heat import OPACITY, overlay, resize_map
from imagen_jax.images.image_file import SETTINGS_KEY, GeneratedImage, save_image
from imagen_jax.images.provenance import common_source, source_of
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.codec import nearest
from imagen_jax.storage.folders import user_path

PAGE_FILE, ARRAYS_FILE = "page.png", "maps.npz"
WIDEST = 8  # images beside each other on a page
SMALLEST, LARGEST = 128, 256  # pixels of an image on a page: words fit below


@dataclass(frozen=True, eq=False)
class Explanation:
    """An image, and the share of attention, in [0, 1], that its pixels give to each word.

    steps: the mean over heads and layers at each step, as fine as the finest layer. layers: the
    mean over steps of each layer, at its own resolution. times: t of the steps. stage: whose
    network it is.

    What a map lacks of 1 is attention to other words, to the end of the text and, in networks in
    which pixels attend to each other as well, to pixels.
    """

    image: GeneratedImage
    words: tuple[str, ...]
    steps: Float[np.ndarray, "steps words rows columns"]
    times: Float[np.ndarray, " steps"]
    layers: Mapping[str, Float[np.ndarray, "words _ _"]]
    stage: str

    @property
    def prompt(self) -> str:
        """What the image was made from."""
        return self.image.info[SETTINGS_KEY]["prompt"]

    @property
    def maps(self) -> Float[np.ndarray, "words height width"]:
        """The map of each word: the mean over steps, layers and heads, at the image's size."""
        return np.stack([resize_map(values, self.image.size) for values in self.steps.mean(0)])

    def place(self, word: str) -> int:
        """Which of `words` this is, in upper or lower case.

        Raises:
            ValueError: none of them.
        """
        known = [each.lower() for each in self.words]
        if word.lower() not in known:
            raise ValueError(f"There is no map of {word!r}{nearest(word, self.words)}")
        return known.index(word.lower())

    def map(self, word: str) -> Float[np.ndarray, "height width"]:
        """The map of a word. ValueError: there is none."""
        return resize_map(self.steps[:, self.place(word)].mean(0), self.image.size)

    def overlay(
        self, word: str, step: int | None = None, opacity: float = OPACITY
    ) -> GeneratedImage:
        """The map of a word over the image: blue where it is lowest, red where it is highest.

        Args:
            step: one step's map, and not the mean of all.
            opacity: in [0, 1], of the colors.
        """
        steps = self.steps[:, self.place(word)]
        return overlay(self.image, steps.mean(0) if step is None else steps[step], opacity)

    def page(self) -> GeneratedImage:
        """The image and the overlay of each word side by side, captioned."""
        return make_page([self])

    def save(self, directory: str | os.PathLike) -> list[Path]:
        """Writes page.png, an overlay for each word (0000_red.png, 0001_heart.png) and maps.npz
        (words, maps, steps, times, and a layer's maps as "layers/NAME"); returns the paths.
        """
        directory = user_path(directory)
        files = [directory / PAGE_FILE]
        save_image(self.page(), files[0])
        for place, word in enumerate(self.words):
            files.append(directory / file_name(place, word))
            save_image(self.overlay(word), files[-1])
        files.append(directory / ARRAYS_FILE)
        arrays = {name: getattr(self, name) for name in ("maps", "steps", "times")}
        arrays |= {f"layers/{name}": values for name, values in self.layers.items()}
        with written_whole(files[-1]) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, words=np.asarray(self.words), **arrays)
        return files


def folder_name(explanation: Explanation) -> str:
    """0007_red_heart_explain: the folder beside the image 0007_red_heart.png."""
    settings = explanation.image.info[SETTINGS_KEY]
    image = Path(file_name(settings["index"], settings["prompt"]))
    return f"{image.stem}_explain"


def make_page(explanations: Sequence[Explanation]) -> GeneratedImage:
    """Images, each followed in its row by the overlays of its words, captioned."""
    columns = min(1 + max(len(each.words) for each in explanations), WIDEST)
    images: list[Image.Image] = []
    captions: list[str] = []
    for each in explanations:
        small = each.image.copy()
        small.thumbnail((LARGEST, LARGEST))
        shown = [small, *(overlay(small, values) for values in each.steps.mean(0))]
        empty = -len(shown) % columns
        images += shown + [Image.new("RGB", small.size, "white")] * empty
        captions += [each.prompt, *each.words, *[""] * empty]
    source = common_source([source_of(each.image) for each in explanations])
    return image_grid(images, captions, columns=columns, min_cell=SMALLEST, source=source)
