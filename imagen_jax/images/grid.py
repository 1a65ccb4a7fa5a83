"""Images side by side, with a caption under each. Needs only NumPy and Pillow."""

import re
from collections.abc import Sequence
from functools import cache
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from imagen_jax.images.image_file import SHEET, GeneratedImage
from imagen_jax.images.pixels import to_pil
from imagen_jax.images.provenance import common_source, marked, source_of

FONT = Path(__file__).parent / "fonts" / "caption_sans.otf"  # Latin and Chinese
CAPTION = 300  # characters, of which two lines show no more
# Lines break at spaces and beside any Chinese character, but not before punctuation.
UNBROKEN = re.compile(r"\s?(?:[^\s⺀-￯]+|[⺀-￯])[、。，．：；！？）」』】》”’]*")


def image_grid(
    images: Sequence[np.ndarray | Image.Image],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    gap: int = 4,
    min_cell: int = 96,
    source: str | None = None,
) -> GeneratedImage:
    """One image out of many, row by row, on white; files of it say that it is one.

    Args:
        images: PIL images, uint8 arrays, or floats in [-1, 1].
        captions: one for each image, written below it in English, Chinese or both, on at most two
            lines; a longer one is cut and ends in "…".
        columns: images in a row; None makes the grid about square.
        gap: pixels of white around each image.
        min_cell: captioned images narrower than this are magnified by a whole factor, pixel for
            pixel, so that words fit below them.
        source: IPTC's name for how the images came to be (`provenance`); None where the images
            tell it themselves, as those of a pipeline do, or are no model's.
    """
    if source is None:
        source = common_source([source_of(x) for x in images if isinstance(x, Image.Image)])
    images = [to_pil(image).convert("RGB") for image in images]
    if not images:
        raise ValueError("A grid needs at least one image, got none.")
    if captions is not None:
        if len(captions) != len(images):
            raise ValueError(f"{len(captions)} captions for {len(images)} images.")
        images = [magnify(image, min_cell) for image in images]
    columns = min(columns or ceil(sqrt(len(images))), len(images))
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    font = caption_font(12 if width < 200 else 15)
    line_height = font.size + 3
    texts = [caption_lines(caption, font, width) for caption in captions or [""] * len(images)]
    cell_width = width + 2 * gap
    cell_height = height + line_height * max(map(len, texts)) + 2 * gap
    grid_size = columns * cell_width, ceil(len(images) / columns) * cell_height
    grid = Image.new("RGB", grid_size, "white")
    draw = ImageDraw.Draw(grid)
    for number, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left = number % columns * cell_width + gap
        top = number // columns * cell_height + gap
        grid.paste(image, (left + (width - image.width) // 2, top))
        for row, line in enumerate(lines):
            baseline = top + height + 2 + row * line_height + font.size
            draw.text((left + width // 2, baseline), line, fill="black", font=font, anchor="ms")
    grid.info |= SHEET
    return GeneratedImage.of(grid if source is None else marked(grid, source))


def magnify(image: Image.Image, width: int) -> Image.Image:
    """`image` times the smallest whole factor that makes it at least `width` pixels wide."""
    return ImageOps.scale(image, ceil(width / image.width), Image.Resampling.NEAREST)


@cache
def caption_font(size: int) -> ImageFont.FreeTypeFont:
    """The package's own font: what is installed differs from machine to machine."""
    return ImageFont.truetype(FONT, size)


def caption_lines(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The beginning of a caption on at most two lines of `width` pixels."""
    parts = UNBROKEN.findall(" ".join(caption[:CAPTION].split()))
    fits = [font.getlength("".join(parts[: n + 1])) <= width for n in range(len(parts))]
    first = max(sum(fits), 1)
    lines = ["".join(parts[:first]), "".join(parts[first:]).strip()]
    return [shortened(line, font, width) for line in lines if line]


def shortened(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`line`, cut where it is wider than `width` pixels."""
    for end in range(len(line), -1, -1):
        cut = line[:end].rstrip() + "…" * (end < len(line))
        if font.getlength(cut) <= width:
            break
    return cut
