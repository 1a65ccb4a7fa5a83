"""What the fields of the page say, checked, as what a pipeline's methods take.

Nothing here trusts a value: whoever reaches the server can send any JSON in place of a field's.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from imagen_jax.app.limits import Limits, check_most, check_sampling, check_text
from imagen_jax.app.models import Traits
from imagen_jax.data.icon_captions import STYLE_WORDS, styled
from imagen_jax.images import colors, decoding
from imagen_jax.pipeline.settings import OF_OTHER_IMAGES
from imagen_jax.storage.json_file import parse

AGAIN_BATCH = 16  # images at a time, at most, of settings from outside
LAYERS = ("up", "mid", "down", "all")  # that can be asked for; the first three of U-Nets
Fields = Mapping[str, Any]


def common_options(fields: Fields, traits: Traits, limits: Limits) -> dict[str, Any]:
    """Options of all methods; ValueError, in a visitor's words, for what cannot be."""
    if traits.only_upscales:
        raise ValueError(f"{traits.name} only upscales: use the tab Upscale.")
    negative = check_text("negative prompt", fields.get("negative_prompt"), limits)
    if negative and traits.distilled:
        raise ValueError(f"{traits.name} is distilled: it takes no negative prompt.")
    steps = check_most("steps", fields.get("steps"), most_steps(traits, limits))
    return {
        **_subject(fields, traits, limits),
        "negative_prompt": negative or None,
        "steps": None if steps is None else [steps],  # of the first stage
        "guidance": check_most("guidance", fields.get("guidance"), 1000),
        **_numbers(fields, limits),
    }


def most_steps(traits: Traits, limits: Limits) -> int:
    """Of a stage: a model may always have its own."""
    return max(limits.steps, traits.most_steps)


def upscale_options(fields: Fields, traits: Traits, limits: Limits) -> dict[str, Any]:
    """As `common_options`, of super-resolution alone: steps are for the base stage."""
    if not traits.upsamples:
        raise ValueError(f"{traits.name} has no super-resolution stage.")
    return _subject(fields, traits, limits) | _numbers(fields, limits)


def explain_options(fields: Fields, traits: Traits, limits: Limits) -> dict[str, Any]:
    """As `common_options`, of a model that reads text, and the layers to look into."""
    if traits.reads != "text":
        raise ValueError(f"{traits.name} reads no text: there is no word to explain.")
    layers = fields.get("layers")
    if layers not in (None, "", *LAYERS):
        raise ValueError(f"Layers are one of {', '.join(LAYERS)}.")
    return common_options(fields, traits, limits) | {"layers": layers or None}


def _numbers(fields: Fields, limits: Limits) -> dict[str, Any]:
    seed = _typed(fields.get("seed"))
    if isinstance(seed, str):
        raise ValueError(
            f"seed is {seed[:20]!r}: give a whole number from 0 to 4294967295, or leave it empty."
        )
    return {
        "seed": check_most("seed", seed, 2**64),
        "size": check_most("size", _typed(fields.get("size")), 2**20),
        "num_images": check_most("num_images", fields.get("num_images"), limits.images) or 1,
    }


def _typed(value: Any) -> Any:
    """A number that was typed; None where nothing was."""
    text = value.strip() if isinstance(value, str) else None
    if text is None:
        return value
    return int(text) if text.isdecimal() and len(text) < 20 else (text or None)


def _subject(fields: Fields, traits: Traits, limits: Limits) -> dict[str, Any]:
    """The prompt in its style, or the class, or neither: as the model reads."""
    text = check_text("prompt", fields.get("prompt"), limits)
    if (style := fields.get("style")) not in (None, ""):
        keys = {word["en"]: key for key, word in STYLE_WORDS.items()} if traits.styles else {}
        if not isinstance(style, str) or style not in keys:
            raise ValueError(f"{traits.name} knows no style of that name.")
        text = text and styled(text, keys[style], "zh" if _is_chinese(text) else "en")
    if traits.reads == "label":
        if not text:
            raise ValueError("Name a class, or its number.")
        return {"label": text}
    if traits.reads == "text" and not text and not traits.promptless:
        raise ValueError("Write a prompt first.")
    if text and traits.reads is None:
        raise ValueError(f"{traits.name} reads no prompt: leave it empty.")
    return {"prompt": text} if traits.reads else {}


def _is_chinese(text: str) -> bool:
    return any("CJK UNIFIED" in unicodedata.name(character, "") for character in text)


def read_settings(text: Any, traits: Traits, limits: Limits) -> dict[str, Any]:
    """The settings of an image to make again, of JSON.

    Raises:
        ValueError: they are no settings, ask for too much, or do not make the image by themselves.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("There are no settings: choose an image, or read them from a PNG.")
    try:
        settings = parse(text)
    except ValueError as error:
        raise ValueError(f"The settings are not JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise ValueError("The settings must be an object, as in an image of imagen_jax.")
    if any(kind in settings for kind in OF_OTHER_IMAGES):
        raise ValueError("It was made from another image, which is not in its settings.")
    if settings.get("guide"):
        raise ValueError("It was guided by a second model, which this page does not load.")
    check_sampling(settings.get("sampling"), most_steps(traits, limits))
    for name in ("prompt", "negative_prompt", "model"):
        check_text(name.replace("_", " "), settings.get(name), limits)
    if not isinstance(settings.get("label"), int | str | None):
        raise ValueError("The settings' label must be the name or the number of a class.")
    for name, most in (("size", 2**20), ("seed", 2**64), ("index", 2**64)):
        check_most(name, settings.get(name), most)
    check_most("batch_size", settings.get("batch_size"), max(AGAIN_BATCH, limits.images))
    return settings


# -------------------------------------------------------------------------------- images


def uploaded(value: Any, folder: Path) -> Path:
    """The file of a field, which is one of those that were uploaded to `folder`.

    Raises:
        ValueError: there is none, or it lies elsewhere.
    """
    path = value.get("path") if isinstance(value, Mapping) else None
    if not isinstance(path, str) or not path:
        raise ValueError("Choose an image first.")
    if not is_inside(path, folder):
        raise ValueError("The image was not uploaded here.")
    return Path(path)


def is_inside(path: str, folder: Path) -> bool:
    """Whether a path, whatever links it goes through, is of a file in a folder."""
    try:
        real = Path(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return False
    return real.is_file() and real.is_relative_to(folder.resolve())


def read_image(value: Any, folder: Path, limits: Limits) -> Image.Image:
    """An uploaded image as upright RGB, white where it is transparent."""
    return _read(uploaded(value, folder), limits, colors.on_white)


def read_drawing(value: Any, folder: Path, limits: Limits) -> tuple[Image.Image, Image.Image]:
    """(the image, its mask in mode L: white where somebody painted) of an image editor's field.

    A layer is painted where it is opaque; one that is opaque everywhere, where it is white.
    """
    parts = value if isinstance(value, Mapping) else {}
    image = read_image(parts.get("background"), folder, limits)
    layers = parts.get("layers")
    mask = Image.new("L", image.size)
    for layer in layers if isinstance(layers, list) else []:
        if layer is not None:
            painted = _read(uploaded(layer, folder), limits, _painted)
            mask = ImageChops.lighter(mask, painted.resize(image.size, Image.Resampling.BILINEAR))
    mask = mask.point(lambda level: 255 * (level >= 128))
    if mask.getbbox() is None:
        raise ValueError("Paint over the part to replace.")
    return image, mask


def _painted(layer: Image.Image) -> Image.Image:
    shown, opacity = colors.split(layer)
    return shown.convert("L") if opacity is None else opacity


def _read(path: Path, limits: Limits, convert: Any) -> Image.Image:
    try:
        return decoding.read(path, limits.pixels, convert=convert)
    except OSError:
        raise ValueError("The image is no longer here: choose it again.") from None
    except ValueError as error:
        raise ValueError(f"The image cannot be used: {error}.") from None
