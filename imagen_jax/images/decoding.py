"""Image files of any mode as RGB arrays; what they hold is not trusted.

Whatever a decoder raises leaves this file as ValueError, which says what is wrong but not with
which file: the caller names it, once.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagen_jax.images import colors, metadata
from imagen_jax.storage.wrong_files import START, what_it_is

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
Made = TypeVar("Made")


def decode(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 sRGB [height, width, 3] of an image file, upright, on white where it is transparent.

    Of an animation, the first frame. Raises OSError where the file cannot be opened, ValueError
    where the image is broken or has more than `max_pixels`.
    """
    return np.asarray(read(file, max_pixels))


def read(
    file: Path | bytes,
    max_pixels: int = MAX_PIXELS,
    cover: int | None = None,
    convert: Callable[[Image.Image], Image.Image] = colors.on_white,
) -> Image.Image:
    """As `decode`, a Pillow image in RGB.

    cover: the side of the square that the image will be resized to cover. A JPEG is then decoded at
    a half, a quarter or an eighth of its size, which averages pixels and saves time, where that is
    the whole reduction or leaves more than a factor of two.
    convert: what is made of the stored pixels, which do not stand upright yet.
    """

    def upright(image: Image.Image) -> Image.Image:
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"{image.width}x{image.height} pixels are more than the {max_pixels} allowed"
            )
        if cover is not None:
            scale = _decoder_scale(min(image.size) / cover)
            image.draft(None, (image.width // scale, image.height // scale))
        if image.format == "TIFF":
            metadata.leave_orientation(image)
        return _upright(image, convert)

    return _opened(file, upright)


def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as it is, with all its metadata, not yet decoded.

    Raises ValueError where it is no image, or has more than `max_pixels`.
    """
    try:
        with _value_errors():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except ValueError as error:
        known = not isinstance(error.__cause__, UnidentifiedImageError)
        raise ValueError(f"not an image{f': {error}' * known}") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width}x{image.height} pixels are too many")
    return image


def to_rgb(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image] = colors.on_white
) -> np.ndarray:
    """uint8 sRGB [height, width, 3] of a Pillow image of any mode, upright, on white.

    convert: as of `read`. Raises ValueError where it cannot be decoded, and for grey of more than 8
    bits whose black and white are not known.
    """
    with _value_errors():
        return np.asarray(_upright(image, convert))


def size(file: Path | bytes) -> tuple[int, int]:
    """(width, height) of an image file when it is upright, mostly by its header; 0, 0 if broken."""

    def upright_size(image: Image.Image) -> tuple[int, int]:
        if image.format == "PNG":
            image.load()
        return metadata.upright_size(image)

    try:
        return _opened(file, upright_size)
    except (OSError, ValueError):
        return 0, 0


def changes(file: Path | bytes) -> list[str]:
    """How an image differs from upright 8-bit sRGB of one frame: what decoding has to change."""

    def found(image: Image.Image) -> list[str]:
        kinds = {"RGB": [], "1": ["grey"], "L": ["grey"], "P": ["palette"]}
        names = kinds.get(image.mode, [f"mode_{image.mode}"])
        if colors.is_deep(image):
            names = ["grey_of_16_bits_or_more"]
        elif image.has_transparency_data:
            names = ["transparent_on_white"]
        if metadata.orientation(image) != 1:
            names.append("turned_upright")
        if colors.srgb_transform(image.info.get("icc_profile"), image.mode) is not None:
            names.append("converted_to_srgb")
        try:
            several = getattr(image, "n_frames", 1) > 1
        except Exception:  # a later frame is damaged
            several = True
        return [*names, "first_of_several_frames"] if several else names

    return _opened(file, found)


def _opened(file: Path | bytes, make: Callable[[Image.Image], Made]) -> Made:
    """What `make` makes of the opened image; where metadata are in the way, without them.

    Raises OSError where the file cannot be opened, and ValueError for all else.
    """
    # Opened here: by a name Pillow maps raw TIFFs into memory, with wrong sides if they are turned.
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as source:
        try:
            with _value_errors(), Image.open(source, formats=FORMATS) as image:
                return make(image)
        except ValueError as error:
            source.seek(0)
            data = source.read()
            bare = metadata.without_metadata(data)
            if bare != data:
                with (
                    contextlib.suppress(ValueError),
                    _value_errors(),
                    Image.open(io.BytesIO(bare), formats=FORMATS) as image,
                ):
                    return make(image)
            if isinstance(error.__cause__, UnidentifiedImageError):
                what = what_it_is(data[:START], len(data), ("image",))
                what = what or "of a damaged beginning, or a kind that Pillow does not read"
                formats = ", ".join(FORMATS)
                raise ValueError(f"no image of a known format ({formats}): it is {what}") from error
            raise


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Pillow's readers raise as many kinds of errors as there are: all become ValueError."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    except Exception as error:
        raise ValueError(f"its decoder failed: {type(error).__name__} {error}".strip()) from error


def _upright(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    image.load()
    return metadata.turned(convert(image), metadata.orientation(image))


def _decoder_scale(factor: float) -> int:
    """How much of a reduction by `factor` a JPEG decoder may do: it averages pixels, as we do."""
    whole = (k for k in (8, 4, 2) if factor >= 2 * k or (factor >= k and factor % k == 0))
    return next(whole, 1)
