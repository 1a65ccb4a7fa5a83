"""What a pipeline returns: PIL images that know how they were made, and are shown as a grid."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

from PIL import Image

from imagen_jax.images.file_names import GRID_FILE, check_folder_name, file_name
from imagen_jax.images.grid import image_grid
from imagen_jax.images.image_file import SETTINGS_KEY, GeneratedImage, save_image
from imagen_jax.storage.folders import user_path

MOST_COLUMNS = 8  # of a grid with a row for each prompt


class ImageList(list):
    """A list of PIL images; notebooks show it as one captioned grid.

    Each image's `info["imagen_jax"]` holds the settings that make it again. A slice is such a list,
    and so is the sum of two. `ImageList(sorted(images, key=...))` makes one of any other list.
    """

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        found = super().__getitem__(index)
        return ImageList(found) if isinstance(index, slice) else found

    def __add__(self, other: list) -> "ImageList":
        return ImageList([*self, *other])

    def copy(self) -> "ImageList":
        """A list of the same images."""
        return self[:]

    @property
    def captions(self) -> list[str] | None:
        """The prompt of each image, or else its class; None for images of neither."""
        made = map(_settings, self)
        captions = [
            entry.get("prompt") or entry.get("class_name", entry.get("label")) for entry in made
        ]
        known = any(caption is not None for caption in captions)
        return ["" if each is None else str(each) for each in captions] if known else None

    def grid(self, columns: int | None = None) -> GeneratedImage:
        """All images in one, captions below. columns: in a row; None for a row of each prompt's
        images, where all have as many, up to 8.
        """
        return image_grid(self, self.captions, columns=columns or self._columns())

    def save(self, directory: str | os.PathLike, *, grid: bool = True) -> list[Path]:
        """Writes one PNG an image, named as imagen-jax generate does (0007_red_heart.png), and of
        several, with `grid`, grid.png; returns the paths. Files of the same names are replaced.

        Raises:
            ValueError: the directory is named like an image: `images[0].save(...)` writes one.
            OSError: a file cannot be written; those before it are whole.
        """
        directory = user_path(directory)
        check_folder_name(directory, "save:")
        made = list(map(_settings, self))
        numbers = [entry.get("index", place) for place, entry in enumerate(made)]
        if len(set(numbers)) < len(numbers):  # of several calls
            numbers = range(len(made))
        paths = []
        for image, number, entry in zip(self, numbers, made, strict=True):
            paths.append(directory / file_name(number, entry.get("prompt")))
            save_image(image, paths[-1])
        if grid and len(self) > 1:
            paths.append(directory / GRID_FILE)
            save_image(self.grid(), paths[-1])
        return paths

    def _columns(self) -> int | None:
        captions = self.captions or []
        count = captions.count(captions[0]) if captions else 0
        equal = all(captions.count(caption) == count for caption in captions)
        return count if equal and 1 < count <= MOST_COLUMNS else None

    def _repr_png_(self) -> bytes | None:
        return self.grid()._repr_png_() if self else None


def _settings(image: Image.Image) -> Mapping[str, Any]:
    """Of an image that a pipeline made; nothing for others."""
    settings = image.info.get(SETTINGS_KEY)
    return settings if isinstance(settings, dict) else {}
