"""What a pipeline returns: PIL images that know how they were made, and are shown as a grid."""

from collections.abc import Iterable

from PIL import Image

from imagen_jax.images.grid import image_grid


class ImageList(list):
    """A list of PIL images; notebooks show it as one captioned grid.

    Each image's `info["imagen_jax"]` holds the settings that make it again.
    """

    def __init__(self, images: Iterable[Image.Image], captions: Iterable[str] | None = None):
        super().__init__(images)
        self.captions = None if captions is None else list(captions)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one, captions below."""
        shown = self.captions is not None and len(self.captions) == len(self) and any(self.captions)
        return image_grid(self, self.captions if shown else None, columns=columns)

    def _repr_png_(self) -> bytes | None:
        return self.grid()._repr_png_() if self else None
