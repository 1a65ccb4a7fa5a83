"""Icons drawn by resvg on white. Needs the extra `icons`."""

import concurrent.futures
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from imagen_jax.data.icons import Icon
from imagen_jax.images import decoding

DRAWN = 256  # pixels at which images of up to that size are drawn, before they are averaged
AHEAD = 16  # icons of each thread that are drawn before the first of them is asked for
FRAME = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'
)


def draw(icon: Icon, side: int) -> Image.Image:
    """RGB, `side` x `side`; an icon that is not square is centred on white.

    Raises:
        ValueError: resvg cannot draw it.
    """
    import resvg_py

    body = icon.body.svg.replace("currentColor", "#000")
    svg = FRAME.format(width=icon.body.width, height=icon.body.height, body=body)
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, background="#ffffff", width=side, skip_system_fonts=True
        )
    except ValueError as error:
        raise ValueError(f"{icon.key} cannot be drawn: {error}") from None
    image = Image.fromarray(decoding.decode(bytes(png)))
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (max(image.size),) * 2, "white")
    left, top = ((square.width - length) // 2 for length in image.size)
    square.paste(image, (left, top))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def draw_sizes(icon: Icon, sizes: Sequence[int]) -> dict[int, Image.Image]:
    """The icon at each size: up to 256 pixels averaged from the drawing at 256 by a box filter."""
    drawn = {side: draw(icon, side) for side in {max(side, DRAWN) for side in sizes}}
    return {
        side: drawn[side] if side >= DRAWN else drawn[DRAWN].resize((side,) * 2, Image.BOX)
        for side in sizes
    }


def draw_all(
    icons: Sequence[Icon], arrays: Sequence[int], files: Sequence[int], threads: int
) -> Iterator[tuple[dict[int, np.ndarray], dict[int, bytes]]]:
    """For each icon in order: its images uint8 [S, S, 3] at the sizes `arrays`, and the bytes of
    its PNGs at the sizes `files`.

    Threads are enough: resvg and Pillow work without Python's lock.
    """

    def one(icon: Icon) -> tuple[dict[int, np.ndarray], dict[int, bytes]]:
        images = draw_sizes(icon, [*arrays, *files])
        pixels = {side: np.asarray(images[side]) for side in arrays}
        return pixels, {side: _png(images[side]) for side in files}

    step = AHEAD * threads  # not all at once: what is stopped waits for those that are handed out
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(icons), step):
            yield from pool.map(one, icons[start : start + step])


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()
