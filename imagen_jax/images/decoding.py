"""Picture files of any mode as RGB arrays; what they hold is not trusted."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# A file of a few kilobytes can unpack to gigabytes; 89 million pixels is Pillow's own warning.
MAX_PIXELS = 89_478_485
# Pillow knows more, some of which start other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")


def decode(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a picture file, upright, on white where it is transparent.

    Raises OSError or ValueError where the picture is broken or has more than `max_pixels`.
    """
    return np.asarray(read(file, max_pixels))


def read(file: Path | bytes, max_pixels: int = MAX_PIXELS, cover: int | None = None) -> Image.Image:
    """As `decode`, a Pillow image in RGB.

    cover: the side of the square that the picture will be made to cover. A JPEG then comes smaller
    by a factor that its decoder averages pixels by, which saves time, where no more than averaging
    is left to do or the rest is still more than halved.
    """
    try:
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width}x{picture.height}"
                raise ValueError(f"{size} pixels are more than the {max_pixels} allowed")
            if cover is not None:
                scale = _decoder_scale(min(picture.size) / cover)
                picture.draft(None, (picture.width // scale, picture.height // scale))
            picture.load()
            return _as_rgb(picture)
    except UnidentifiedImageError as error:
        name = "" if isinstance(file, bytes) else f"{file}: "
        raise ValueError(f"{name}no picture of a known format") from error
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error  # what Pillow's readers raise besides OSError


def size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture file when it is upright, by its header alone."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return picture.size[::-1] if turned else picture.size
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _decoder_scale(factor: float) -> int:
    """What of a picture's reduction by `factor` a JPEG decoder may do: it averages, as we do."""
    scales = (8, 4, 2)
    return next((k for k in scales if factor >= 2 * k or (factor >= k and factor % k == 0)), 1)


def to_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a Pillow image of any mode, upright, on white.

    Raises ValueError for grey of more than 8 bits whose black and white are not known.
    """
    return np.asarray(_as_rgb(picture.copy()))


def _as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, upright, on white; where it is RGB already, itself and no copy."""
    grey_range = _grey_range(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    if grey_range is not None:
        scaled = np.asarray(picture, np.float64) / grey_range * 255
        grey = np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
