"""The one writer of images: PNG files with the settings that make an image again."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

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
