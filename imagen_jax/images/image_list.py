"""What a pipeline hands back: PIL images that know how they were made, and show as a grid."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax.images.grid import image_grid

SETTINGS_KEY = "imagen_jax"  # the PNG text chunk, and the key in `image.info`


class ImageList(list):
    """A list of PIL images; notebooks show it as one captioned grid.

    Each image's `info["imagen_jax"]` holds the settings that make it again.
    """

    def __init__(self, images: Iterable[Image.Image], captions: Iterable[str] | None = None):
        super().__init__(images)
        self.captions = None if captions is None else list(captions)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one, captions below."""
        captions = self.captions
        if captions is not None and (len(captions) != len(self) or not any(captions)):
            captions = None
        return image_grid(self, captions, columns=columns)

    def _repr_png_(self) -> bytes | None:
        if not self:
            return None
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write `image` with its settings as PNG text."""
    text = PngInfo()
    if SETTINGS_KEY in image.info:
        settings = json.dumps(image.info[SETTINGS_KEY], ensure_ascii=False)
        text.add_itxt(SETTINGS_KEY, settings)
    image.save(path, "PNG", pnginfo=text)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a PNG that `save_png` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or holds no settings.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(SETTINGS_KEY)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from None
    try:
        settings = json.loads(text) if isinstance(text, str) else None
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} holds no imagen_jax settings; give a PNG that scripts/generate.py wrote "
            "(copies that were edited or converted lose them)."
        )
    return settings
