"""Masks of every kind are read alike; what a transparent one means is never guessed."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images.masks import read_mask
from tests.images import odd_files
from tests.images.odd_files import encode

CASES = Path(__file__).parents[1] / "fixtures" / "cases" / "masks"
WANTED = np.zeros((6, 8), bool)
WANTED[1:4, 2:7] = True
BYTES = np.where(WANTED, np.uint8(255), np.uint8(0))


def painted(color, rest, *, edge=None):
    """RGBA: the wanted part opaque in a color, the rest as given; an edge of one column."""
    pixels = np.where(WANTED[..., None], np.uint8([*color, 255]), np.uint8(rest))
    if edge is not None:
        pixels[1:4, 1] = edge
    return pixels.astype(np.uint8)


def check(mask, alpha=None):
    found = read_mask(mask, alpha)
    assert found.mode == "L"
    np.testing.assert_array_equal(np.asarray(found) >= 128, WANTED)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize(
    ("dtype", "white"),
    [
        (dtype, white)
        for dtype in (bool, "u1", "i4", "i8", "u2", "f2", "f4", "f8")
        for white in (1, 255, 65535)
        if white <= {bool: 1, "u1": 255, "f2": 255}.get(dtype, 65535)
    ],
)
def test_arrays_of_every_type_and_range(dtype, white, shape):
    values = np.where(WANTED, white, 0).astype(dtype)
    check(values if not shape else np.repeat(values[..., None], shape[0], -1))


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.float32, 1), (np.int64, 1)])
def test_the_opacity_of_an_array_is_its_last_channel(dtype, white):
    values = (np.where(WANTED[..., None], white, 0) * np.ones(4)).astype(dtype)
    check(values)
    check(values[..., 2:])  # grey and opacity
    check(values, "opaque")
    check(white - values, "transparent")


def test_colors_count_by_their_brightness():
    for color, rest in (((255, 255, 0), (0, 0, 255)), ((0, 255, 0), (255, 0, 0))):
        check(np.where(WANTED[..., None], np.uint8(color), np.uint8(rest)))
    palette = Image.fromarray(WANTED.astype(np.uint8), "P")
    palette.putpalette([0, 0, 90, 200, 255, 200])
    check(palette)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_pillow_images_of_every_mode(mode):
    check(Image.fromarray(BYTES).convert("RGB").convert(mode))
    if mode in ("L", "RGB"):
        check(Image.fromarray(BYTES // 255).convert(mode))


@pytest.mark.parametrize(("mode", "dtype"), [("I", "i4"), ("F", "f4"), ("I;16", "u2")])
@pytest.mark.parametrize("white", [1, 255, 65535])
def test_pillow_images_of_many_bits(mode, dtype, white):
    image = Image.fromarray(np.where(WANTED, white, 0).astype(dtype))
    assert image.mode == mode
    check(image)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG2000", "BMP", "GIF", "PPM"])
def test_files_of_every_format(kind, tmp_path):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    for values in (BYTES, BYTES // 255):
        path = tmp_path / "mask"
        path.write_bytes(encode(Image.fromarray(values), kind, **options))
        check(path)
        check(str(path))
    if kind in ("PNG", "TIFF", "PPM", "JPEG2000"):
        for white in (1, 255, 65535):
            path.write_bytes(encode(Image.fromarray(np.where(WANTED, white, 0).astype("u2")), kind))
            check(path)


def test_grey_of_16_bits_with_a_transparent_level(tmp_path):
    image = Image.fromarray(np.where(WANTED, 65535, 9).astype("u2"))
    (tmp_path / "mask.png").write_bytes(encode(image, "PNG", transparency=9))
    check(tmp_path / "mask.png")
    (tmp_path / "mask.png").write_bytes(encode(image, "PNG", transparency=65535))
    check(tmp_path / "mask.png", "transparent")


def test_a_turned_mask_is_read_upright(tmp_path):
    tags = Image.Exif()
    tags[odd_files.ORIENTATION] = 6
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(BYTES)))
    for kind in ("PNG", "TIFF", "WEBP"):
        (tmp_path / "mask").write_bytes(encode(lying, kind, exif=tags))
        check(tmp_path / "mask")
        check(Image.open(io.BytesIO((tmp_path / "mask").read_bytes())))


@pytest.mark.parametrize(
    "pixels",
    [
        painted((255, 255, 255), (0, 0, 0, 0)),  # white paint
        painted((255, 255, 255), (255, 255, 255, 0)),  # on transparent white
        painted((255, 255, 255), (0, 0, 0, 255), edge=(9, 200, 9, 0)),  # on black, a hole
        painted((255, 255, 255), (0, 0, 0, 0), edge=(255, 255, 255, 100)),  # a soft brush
        painted((255, 255, 255), (0, 0, 0, 0), edge=(100, 100, 100, 255)),  # a grey edge
        painted((235, 240, 245), (12, 9, 3, 255), edge=(0, 0, 0, 0)),  # nearly so
    ],
)
def test_transparent_is_kept_and_opaque_counts_by_brightness(pixels):
    check(pixels)
    check(Image.fromarray(pixels))


def test_what_alpha_means_can_be_said():
    hole = painted((200, 30, 30), (0, 0, 0, 0))
    check(hole, "opaque")
    hole[..., 3] = 255 - hole[..., 3]
    check(hole, "transparent")
    check(Image.fromarray(hole).quantize(4), "transparent")
    for alpha in ("transparent", "opaque"):
        with pytest.raises(
            ValueError, match=f"mask_alpha is '{alpha}', but nothing .* transparent"
        ):
            read_mask(BYTES, alpha)
    with pytest.raises(ValueError, match="mask_alpha is 'white'; it must be"):
        read_mask(BYTES, "white")


@pytest.mark.parametrize("color", [(200, 200, 200), (255, 0, 0), (128, 128, 128)])
def test_what_is_not_clear_is_refused_and_names_the_option(color):
    with pytest.raises(ValueError, match=r"100% of the rest .*not clear; mask_alpha='transparent'"):
        read_mask(painted(color, (0, 0, 0, 0)))


def test_the_cases():
    with Image.open(CASES / "white_on_transparent.png") as image:
        drawn = np.asarray(image)
    white = (drawn[..., 3] == 255) & (drawn[..., 0] == 255)
    found = np.asarray(read_mask(CASES / "white_on_transparent.png"))
    np.testing.assert_array_equal(found == 255, white)
    assert 0 < white.mean() < 0.5
    with pytest.raises(ValueError, match="not clear; mask_alpha="):
        read_mask(CASES / "hole.png")
    with Image.open(CASES / "hole.png") as image:
        hole = np.asarray(image)[..., 3] == 0
    np.testing.assert_array_equal(
        np.asarray(read_mask(CASES / "hole.png", "transparent")) == 255, hole
    )
    np.testing.assert_array_equal(np.asarray(read_mask(CASES / "hole.png", "opaque")) == 255, ~hole)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 4), bool), r"nothing in it is white, .*the most is 0%"),
        (np.full((4, 4), 100, np.uint8), "the most is 39%"),
        (painted((255, 255, 255), (0, 0, 0, 0)) * np.uint8([1, 1, 1, 0]), "opaque and white"),
        (painted((0, 0, 0), (0, 0, 0, 0)), "opaque and white.*mask_alpha='transparent'"),
        (np.array([[0, 1.5]]), r"from 0 to 1.5; they must be bool, floats in 0...1, or whole"),
        (np.array([[0, -1]]), "from -1 to 0"),
        (np.array([[0, 70_000]]), "from 0 to 70000"),
        (np.array([[0, np.nan]]), "from nan to nan"),
        (np.zeros((2, 2, 5)), r"its shape is \[2, 2, 5\]; it must be \[height, width\]"),
        (np.zeros(3), r"its shape is \[3\]"),
        (np.zeros((0, 3)), r"its shape is \[0, 3"),
        (np.array([["a"]]), "it holds <U1"),
        ([[0, 1]], "PIL, a path or an array, not list"),
    ],
)
def test_other_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        read_mask(mask)


def test_white_everywhere_is_a_mask():
    for ones in (np.ones((2, 2), np.uint8), np.ones((2, 2)), np.full((2, 2), 255)):
        assert (np.asarray(read_mask(ones)) == 255).all()
