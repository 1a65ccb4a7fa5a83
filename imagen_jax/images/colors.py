"""Pillow images of any mode as RGB: grey of many bits, color profiles, transparency."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# The modes of colors that profiles are made for; others become L or RGB first.
PROFILED = ("L", "RGB", "CMYK", "LAB")
TIFF_BITS, TIFF_KIND = 258, 262  # BitsPerSample; PhotometricInterpretation, 0 where white is 0


def on_white(image: Image.Image) -> Image.Image:
    """The image in sRGB, on white where it is transparent; where it is that already, itself.

    Raises ValueError for grey of more than 8 bits whose black and white are not known.
    """
    colors, alpha = split(image)
    if alpha is None:
        return colors
    colors = colors.copy()
    colors.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colors).convert("RGB")


def split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(the colors in sRGB, the opacity in mode L): None where nothing can be transparent."""
    image = image.convert("LA") if image.mode == "La" else image  # has no other conversion
    profile, alpha = image.info.get("icc_profile"), alpha_of(image)
    if is_deep(image):
        image = _eight_bits(image)
    elif image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode not in PROFILED:
        image = image.convert("RGB")
    if (transform := srgb_transform(profile, image.mode)) is not None:
        return ImageCms.applyTransform(image, transform), alpha
    return image if image.mode == "RGB" else image.convert("RGB"), alpha


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The opacity in mode L of an image of any mode but La; None where nothing is transparent."""
    if not image.has_transparency_data:
        return None
    if is_deep(image):  # one level of its grey is transparent
        clear = np.asarray(image) == image.info["transparency"]
        return Image.fromarray(np.where(clear, np.uint8(0), np.uint8(255)))
    return image.convert("RGBA").getchannel("A")


@functools.lru_cache(maxsize=32)
def srgb_transform(profile: Any, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an ICC profile to sRGB; None where that changes nothing, or no sound one is there."""
    if mode != "LAB" and not isinstance(profile, bytes):
        return None
    try:
        own = ImageCms.createProfile("LAB") if mode == "LAB" else io.BytesIO(profile)
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(own),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode not in ("L", "RGB"):
            return transform
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        sample = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
        before = Image.fromarray(sample).convert(mode)
        after = np.asarray(ImageCms.applyTransform(before, transform), int)
    except Exception:  # what is broken in a profile raises several kinds
        return None
    changed = np.abs(after - np.asarray(before.convert("RGB"), int)).max() > 1
    return transform if changed else None


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits: of mode I, I;16 or F."""
    return image.mode[0] in "IF"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, which Pillow would clip, in mode L."""
    white, grey = _white_level(image), np.asarray(image, np.float64)
    if getattr(image, "tag_v2", {}).get(TIFF_KIND) == 0:
        grey = white - grey  # Pillow does so with 8 bits only
    grey = np.floor(grey / white * 255 + 0.5)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def _white_level(image: Image.Image) -> float:
    """What is white in a grey image of more than 8 bits."""
    # PNG and PPM have 16 bits at most
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,))
        return 2.0 ** bits[0] - 1
    if image.mode == "I":
        raise ValueError(
            "its grey is signed or has 32 bits, and what is white is not known; save it with 8 bits"
        )
    low, high = image.getextrema()
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"its floating-point grey goes from {low:g} to {high:g}; it must lie in 0...1, or be "
            "saved with 8 bits"
        )
    return 1.0
