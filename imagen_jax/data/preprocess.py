"""From a decoded picture of any size and mode to the square RGB picture of a stage."""

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
            return to_rgb(ImageOps.exif_transpose(picture))
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error  # what Pillow's readers raise besides OSError


def to_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a Pillow image of any mode."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        grey = np.clip(np.asarray(picture, np.int64) // 257, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))


def resize(image: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 [resolution, resolution, 3]: the largest centred square, resized with antialiasing.

    A whole factor is an average of whole pixels; other factors use Lanczos, enlarging bicubic.
    """
    height, width = image.shape[:2]
    if (height, width) == (resolution, resolution):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    if side % resolution == 0:
        return np.asarray(picture.reduce(side // resolution))
    kernel = Image.Resampling.LANCZOS if side > resolution else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((resolution, resolution), kernel))
