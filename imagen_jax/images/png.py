"""The one writer of images: PNG files with the settings that make an image again."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax.storage.json_file import parse

SETTINGS_KEY = "imagen_jax"  # the PNG text chunk, and the key in `image.info`


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write `image` with its settings as PNG text."""
    text = PngInfo()
    if SETTINGS_KEY in image.info:
        text.add_itxt(SETTINGS_KEY, json.dumps(image.info[SETTINGS_KEY], ensure_ascii=False))
    image.save(path, "PNG", pnginfo=text)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a PNG that `save_png` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or holds no settings.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with Image.open(path) as image:
            image.load()  # text may come after the pixels
            settings = parse(image.info.get(SETTINGS_KEY, "null"), lenient=True)
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an image whose settings can be read: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} holds no imagen_jax settings; give a PNG that scripts/generate.py wrote "
            "(copies that were edited or converted lose them)."
        )
    return settings
