"""The one writer of images: PNG files with the settings that make an image again."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

SETTINGS_KEY = "imagen_jax"  # the PNG text chunk, and the key in `image.info`
# The text chunk of what is not one image; matplotlib takes it as `metadata`, too.
SHEET = {"imagen_jax_sheet": "a grid, page or plot: no image of a set"}
START = 512  # bytes, among which the chunks of text lie that we write


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write `image` with its settings as PNG text."""
    text = PngInfo()
    if SETTINGS_KEY in image.info:
        text.add_itxt(SETTINGS_KEY, json.dumps(image.info[SETTINGS_KEY], ensure_ascii=False))
    image.save(path, "PNG", pnginfo=text)


def save_sheet(image: Image.Image, path: str | Path) -> None:
    """Write a grid or a page of images, marked so that no image set takes it for one of its own."""
    text = PngInfo()
    for key, value in SHEET.items():
        text.add_text(key, value)
    image.save(path, "PNG", pnginfo=text)


def is_sheet(path: str | Path) -> bool:
    """Whether a file says in its first bytes that it is a sheet of ours; False if unreadable."""
    return any(key.encode() in _start(path) for key in SHEET)


def has_settings(path: str | Path) -> bool:
    """Whether a file begins as those that `save_png` writes; False if it cannot be read."""
    return b"iTXt" + SETTINGS_KEY.encode() + b"\0" in _start(path)


def _start(path: str | Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(START)
    except OSError:
        return b""


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a PNG that `save_png` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or holds no settings.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()  # text may come after the pixels
            settings = json.loads(image.info.get(SETTINGS_KEY, "null"))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a PNG image; only those hold settings.") from None
    except Exception as error:  # Pillow's readers raise as many kinds as there are
        reason = str(error) or type(error).__name__
        raise ValueError(f"The settings in {path} cannot be read: {reason}.") from None
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} holds no imagen_jax settings; give a PNG that scripts/generate.py wrote "
            "(copies that were edited or converted lose them)."
        )
    return settings
