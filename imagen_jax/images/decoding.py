"""Image files of any mode as RGB arrays; what they hold is not trusted."""

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from imagen_jax.storage.wrong_files import START, look_at, what_it_is

# A file of a few kilobytes can unpack to gigabytes; 89 million pixels is Pillow's own warning.
MAX_PIXELS = 89_478_485
# Pillow knows more, some of which start other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
# The endings of their files; whoever looks for images in a folder or a tar looks for these.
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".mpo"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
)
# What its readers raise besides OSError and ValueError.
PILLOW_ERRORS = (SyntaxError, EOFError, Image.DecompressionBombError)


def decode(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 RGB [height, width, 3] of an image file, upright, on white where it is transparent.

    Raises OSError or ValueError where the image is broken or has more than `max_pixels`.
    """
    return np.asarray(read(file, max_pixels))


def read(file: Path | bytes, max_pixels: int = MAX_PIXELS, cover: int | None = None) -> Image.Image:
    """As `decode`, a Pillow image in RGB.

    cover: the side of the square that the image will be resized to cover. A JPEG is then decoded at
    a half, a quarter or an eighth of its size, which averages pixels and saves time, where that is
    the whole reduction or leaves more than a factor of two.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"{image.width}x{image.height} pixels are more than the {max_pixels} allowed"
                )
            if cover is not None:
                scale = _decoder_scale(min(image.size) / cover)
                image.draft(None, (image.width // scale, image.height // scale))
            image.load()
            return _as_rgb(image)
    except UnidentifiedImageError as error:
        name = "" if isinstance(file, bytes) else f"{file}: "
        raise ValueError(f"{name}no image of a known format{_seen(file)}") from error
    except PILLOW_ERRORS as error:
        raise ValueError(str(error)) from error


def _seen(file: Path | bytes) -> str:
    if isinstance(file, bytes):
        found = what_it_is(file[:START], len(file), ("image",))
    else:
        found = look_at(file, ("image",))
    return f": it is {found}" if found else ""


def size(data: bytes) -> tuple[int, int]:
    """(width, height) of an image file when it is upright, from its header; 0, 0 if unknown."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError, *PILLOW_ERRORS):
        return 0, 0


def _decoder_scale(factor: float) -> int:
    """How much of a reduction by `factor` a JPEG decoder may do: it averages pixels, as we do."""
    whole = (k for k in (8, 4, 2) if factor >= 2 * k or (factor >= k and factor % k == 0))
    return next(whole, 1)


def to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a Pillow image of any mode, upright, on white.

    Raises ValueError for grey of more than 8 bits whose black and white are not known.
    """
    return np.asarray(_as_rgb(image.copy()))


def _as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, upright, on white; where it is RGB already, itself and no copy."""
    white = _white_level(image)
    ImageOps.exif_transpose(image, in_place=True)
    if white is not None:
        grey = np.floor(np.asarray(image, np.float64) / white * 255 + 0.5)
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _white_level(image: Image.Image) -> float | None:
    """What is white in a grey image of more than 8 bits, which Pillow would clip; else None."""
    # PNG and PPM have 16 bits at most
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 65535.0
    if image.mode == "I":
        raise ValueError("it has 32 bits of grey, and what is white is not known; save it with 8")
    if image.mode != "F":
        return None
    low, high = image.getextrema()
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"its floating-point grey goes from {low:g} to {high:g}; it must lie in 0...1, or be "
            "saved with 8 bits"
        )
    return 1.0
