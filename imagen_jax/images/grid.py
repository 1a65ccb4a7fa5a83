"""Images side by side, with a caption under each. Needs only NumPy and Pillow."""

import contextlib
import itertools
from collections.abc import Sequence
from functools import cache
from math import ceil, sqrt
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from imagen_jax.images.image_file import SHEET, GeneratedImage
from imagen_jax.images.pixels import to_pil

WIDE_FONTS = (  # fonts that hold Chinese, as the common systems name them
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "msyh.ttc",
    "simsun.ttc",
    "uming.ttc",
)
UNKNOWN = "\U0010ffff"  # a code point that no font has: what a missing glyph looks like
CAPTION = 300  # characters, of which two lines show no more
FONT_FOLDER = Path("/usr/share/fonts")  # which Pillow leaves out where XDG_DATA_DIRS does


def image_grid(
    images: Sequence[np.ndarray | Image.Image],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    gap: int = 4,
    min_cell: int = 96,
) -> GeneratedImage:
    """One image out of many, row by row, on white; files of it say that it is one.

    Args:
        images: PIL images, uint8 arrays, or floats in [-1, 1].
        captions: one for each image, written below it. A caption that no installed font has the
            characters of (Chinese on a bare machine) becomes the image's number, counted from 1.
        columns: images in a row; None makes the grid about square.
        gap: pixels of white around each image.
        min_cell: captioned images narrower than this are magnified by a whole factor, pixel for
            pixel, so that words fit below them.
    """
    images = [to_pil(image).convert("RGB") for image in images]
    if not images:
        raise ValueError("A grid needs at least one image, got none.")
    if captions is not None:
        if len(captions) != len(images):
            raise ValueError(f"{len(captions)} captions for {len(images)} images.")
        images = [magnify(image, min_cell) for image in images]
    columns = min(columns or ceil(sqrt(len(images))), len(images))
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    size = 12 if width < 200 else 15
    texts = [
        caption_lines(caption, number, size, width)
        for number, caption in enumerate(captions or [""] * len(images), start=1)
    ]
    cell_width = width + 2 * gap
    cell_height = height + (size + 3) * max(map(len, texts)) + 2 * gap
    grid_size = columns * cell_width, ceil(len(images) / columns) * cell_height
    grid = Image.new("RGB", grid_size, "white")
    draw = ImageDraw.Draw(grid)
    for number, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left = number % columns * cell_width + gap
        top = number // columns * cell_height + gap
        grid.paste(image, (left + (width - image.width) // 2, top))
        for row, line in enumerate(lines):
            place = left + width // 2, top + height + 2 + row * (size + 3)
            draw.text(place, line, fill="black", font=font_for(line, size), anchor="ma")
    grid.info |= SHEET
    return GeneratedImage.of(grid)


def magnify(image: Image.Image, width: int) -> Image.Image:
    """`image` times the smallest whole factor that makes it at least `width` pixels wide."""
    return ImageOps.scale(image, ceil(width / image.width), Image.Resampling.NEAREST)


def one_line(caption: str) -> str:
    """The beginning of a caption, which may be of any length and of several lines."""
    return " ".join(caption[:CAPTION].split())


def caption_lines(caption: str, number: int, size: int, width: int) -> list[str]:
    """`caption` on at most two lines of `width` pixels; its number where no font has it."""
    caption = one_line(caption)
    font = font_for(caption, size)
    if font is None:
        return [str(number)]
    per_character = max(font.getlength(caption) / max(len(caption), 1), 1)
    return wrap(caption, max(int(width / per_character), 4), max_lines=2, placeholder=" …")


@cache
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """A font that has every character of `text`, or None."""
    fonts = itertools.chain(
        [ImageFont.load_default(size)], (open_font(name, size) for name in WIDE_FONTS)
    )
    return next((font for font in fonts if font is not None and covers(font, text)), None)


@cache
def open_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The installed font file `name` (Pillow searches the system's folders), or None."""
    for place in itertools.chain([name], FONT_FOLDER.rglob(name)):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(place, size)
    return None


def covers(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    """Whether `font` has a glyph for every character: none looks like the missing glyph."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow's bitmap font, when FreeType is absent
        return text.isascii()
    missing = bytes(font.getmask(UNKNOWN))
    visible = set("".join(text.split())) - {"…"}
    return missing not in (bytes(font.getmask(character)) for character in visible)
