"""Picture files of any mode as RGB arrays; what they hold is not trusted."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# A file of a few kilobytes can unpack to gigabytes; 89 million pixels is Pillow's own warning.
MAX_PIXELS = 89_478_485


def decode(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a picture file, upright, on white where it is transparent.

    Raises OSError or ValueError where the picture is broken or has more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width}x{picture.height}"
                raise ValueError(f"{size} pixels are more than the {max_pixels} allowed")
            return to_rgb(picture)
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error  # what Pillow's readers raise besides OSError


def to_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a Pillow image of any mode, upright, on white.

    Raises ValueError for grey of more than 8 bits whose black and white are not known.
    """
    grey_range = _grey_range(picture)
    picture = ImageOps.exif_transpose(picture)
    if grey_range is not None:
        scaled = np.asarray(picture, np.float64) / grey_range * 255
        grey = np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))


def _grey_range(picture: Image.Image) -> float | None:
    """What is white in a grey picture of more than 8 bits, which Pillow would clip; else None."""
    if picture.mode.startswith("I;16"):
        return 65535.0
    if picture.mode == "I":
        if picture.format in ("PNG", "PPM"):  # which have 16 bits at most
            return 65535.0
        raise ValueError("it has 32 bits of grey, and no one knows what is white; save it with 8")
    if picture.mode == "F":
        low, high = picture.getextrema()
        if 0 <= low <= high <= 1:
            return 1.0
        raise ValueError(
            f"its floating-point grey goes from {low:g} to {high:g}; it must lie in 0...1, or be "
            "saved with 8 bits"
        )
    return None
