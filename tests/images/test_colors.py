"""Color profiles, inks, grey of many bits and transparency become sRGB on white."""

import io

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

from imagen_jax.images import colors, decoding
from tests.images import odd_files
from tests.images.odd_files import encode

LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
CYAN = (60, -30, -40)  # Lab


@pytest.fixture
def pixels(rng):
    return rng.integers(60, 200, (5, 7, 3), np.uint8)


@pytest.mark.parametrize("primaries", [odd_files.DISPLAY_P3, odd_files.ADOBE_RGB])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_wide_gamuts_become_srgb(pixels, primaries, kind):
    profile = odd_files.rgb_profile(primaries, 2.2)
    data = encode(Image.fromarray(pixels), kind, icc_profile=profile, **LOSSLESS[kind])
    expected = odd_files.srgb_of((pixels / 255) ** (563 / 256) @ primaries.T)
    assert np.abs(decoding.decode(data) - expected).max() <= 1
    assert np.abs(pixels - expected).max() > 20
    assert "converted_to_srgb" in decoding.changes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "PA"])
def test_a_profile_counts_in_every_mode_of_its_colors(mode):
    color, primaries = (200, 90, 90), odd_files.DISPLAY_P3
    image = Image.new("RGB", (4, 4), color)
    image = (image.quantize(4) if mode[0] == "P" else image).convert(mode)
    image.info["icc_profile"] = odd_files.rgb_profile(primaries, 2.2)
    expected = odd_files.srgb_of((np.array(color) / 255) ** (563 / 256) @ primaries.T)
    assert np.abs(decoding.to_rgb(image) - expected).max() <= 1


def test_grey_profiles_count_with_8_bits_and_16_and_with_transparency(pixels):
    grey, profile = pixels[..., 0], odd_files.grey_profile(1.8)
    expected = odd_files.srgb_of((grey / 255)[..., None] ** (461 / 256) * np.array(odd_files.D50))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    clear = Image.merge("LA", (Image.fromarray(grey), Image.new("L", grey.shape[::-1], 255)))
    for image in (Image.fromarray(grey), deep, clear):
        found = decoding.decode(encode(image, "PNG", icc_profile=profile))
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_count_by_their_profile_and_without_one_as_complements(kind):
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    lab = odd_files.srgb_of(odd_files.xyz_of_lab(CYAN))
    profile = odd_files.cmyk_profile(CYAN)
    found = decoding.decode(encode(ink, kind, icc_profile=profile))
    assert np.abs(found - lab).max() <= 2
    np.testing.assert_array_equal(decoding.decode(encode(ink, kind))[0, 0], [0, 255, 255])
    for amount, level in ((0, 255), (255, 0)):
        paper = Image.new("CMYK", (16, 16), (0, 0, 0, amount))
        for options in ({}, {"icc_profile": profile}):
            assert np.abs(decoding.decode(encode(paper, kind, **options)) - level).max() <= 1


def test_srgb_itself_costs_nothing_and_changes_nothing(pixels):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert colors.srgb_transform(srgb, "RGB") is None
    data = encode(Image.fromarray(pixels), "PNG", icc_profile=srgb)
    np.testing.assert_array_equal(decoding.decode(data), pixels)
    assert decoding.changes(data) == []


def test_an_unsound_profile_is_left_out(pixels):
    image, wide = Image.fromarray(pixels), odd_files.rgb_profile(odd_files.DISPLAY_P3, 2.2)
    unsound = [b"x", wide[:200], wide[:128] + bytes(len(wide) - 128), bytes(500)]
    unsound += [odd_files.grey_profile(1.8), odd_files.cmyk_profile(CYAN)]  # of other colors
    for profile in unsound:
        data = encode(image, "PNG", icc_profile=profile)
        np.testing.assert_array_equal(decoding.decode(data), pixels)
    grey = encode(image.convert("L"), "PNG", icc_profile=wide)
    np.testing.assert_array_equal(decoding.decode(grey)[..., 0], np.asarray(image.convert("L")))


def test_16_bits_are_8_bits_within_one_level(rng):
    deep = rng.integers(0, 65536, (6, 5, 3), np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    for order in "<>":
        found = decoding.decode(odd_files.tiff(deep, [], order))
        assert np.abs(found - deep / 257).max() <= 1
        assert found[0, 0].max() == 0
        assert found[0, 1].min() == 255
        # White is 1, or 0, which Pillow reads in one order of bytes only.
        for kind, grey in ((1, deep), (0, 65535 - deep))[: 2 if order == "<" else 1]:
            found = decoding.decode(odd_files.tiff(deep[..., :1], [], order, kind))
            assert np.abs(found - grey[..., :1] / 257).max() <= 0.51
    for channels, kind in ((1, 0), (3, 2), (2, 4), (4, 6)):
        values = rng.integers(0, 65536, (6, 5, channels), np.uint16)
        if channels in (2, 4):
            values[..., -1] = 65535
        found = decoding.decode(odd_files.png_of_16_bits(values, kind))
        assert np.abs(found - values[..., : 3 if channels > 2 else 1] / 257).max() <= 1.01


def test_lab_and_ycbcr_become_rgb():
    lab = np.array([[[153, -30 % 256, -40 % 256], [255, 0, 0], [0, 0, 0]]], np.uint8)
    found = decoding.decode(odd_files.tiff(lab, [], kind=8))
    expected = odd_files.srgb_of(np.array([odd_files.xyz_of_lab(c) for c in (CYAN, (100, 0, 0))]))
    assert np.abs(found[0, :2] - expected).max() <= 2
    assert found[0, 2].max() <= 1
    if int(PIL.__version__.partition(".")[0]) >= 13:  # those before cannot read what they write
        image = Image.new("RGB", (8, 8), (200, 30, 90))
        found = decoding.decode(encode(image.convert("YCbCr"), "TIFF"))
        assert np.abs(found - np.array([200, 30, 90])).max() <= 2


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "RGBa", "La"]
)
def test_pillow_images_of_every_mode_are_read(mode):
    for value, color in ((255, "white"), (0, "black")):
        image = Image.new("RGB", (3, 2), color)
        if mode in ("La", "RGBa", "PA"):
            image = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode])
        found = decoding.to_rgb(image.convert(mode))
        assert found.shape == (2, 3, 3)
        assert np.abs(found.astype(int) - value).max() <= 1


def test_transparency_of_every_kind_is_white(pixels):
    alpha = np.full((5, 7), 255, np.uint8)
    alpha[:2] = 0
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    palette = rgba.quantize(16)
    key = Image.fromarray(np.where(alpha > 0, pixels[..., 0], 7).astype(np.uint8))
    deep = Image.fromarray(np.where(alpha > 0, 40_000, 7).astype(np.uint16))
    one = Image.fromarray(np.where(alpha > 0, 255, 0).astype(np.uint8)).convert("1")
    for data in (
        encode(rgba, "PNG"),
        encode(rgba, "WEBP", lossless=True),
        encode(rgba, "TIFF"),
        encode(rgba.convert("LA"), "PNG"),
        encode(palette, "PNG"),
        encode(rgba, "GIF"),
        encode(key, "PNG", transparency=7),
        encode(deep, "PNG", transparency=7),
        encode(one, "PNG", transparency=0),
    ):
        found = decoding.decode(data)
        assert (found[:2] == 255).all()
        assert decoding.changes(data)


def test_half_transparent_pixels_are_mixed_with_white():
    half = Image.new("RGBA", (2, 2), (0, 100, 200, 128))
    found = decoding.decode(encode(half, "PNG"))
    assert np.abs(found - (255 - np.array([255, 155, 55]) * 128 / 255)).max() <= 1


def test_a_moving_image_is_its_first_frame(pixels):
    first, later = Image.fromarray(pixels), Image.new("RGB", (7, 5), "red")
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encode(first, kind, save_all=True, append_images=[later], **options)
        assert np.abs(decoding.decode(data).astype(int) - pixels).max() <= 8 * (kind == "GIF")
        assert "first_of_several_frames" in decoding.changes(data)


def test_grey_of_12_bits_is_white_at_4095():
    values = np.array([0, 2048, 4095], np.uint16)
    packed = bytes([values[0] >> 4, (values[0] & 15) << 4 | values[1] >> 8, values[1] & 255])
    packed += bytes([values[2] >> 4, (values[2] & 15) << 4])
    data = odd_files.tiff(np.zeros((1, 3, 1), np.uint8), [], kind=1)
    data = data.replace(b"\x02\x01\x03\0\x01\0\0\0\x08\0", b"\x02\x01\x03\0\x01\0\0\0\x0c\0")
    data = data[:-3] + packed
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
    assert np.abs(decoding.decode(data)[0, :, 0] - values / 4095 * 255).max() <= 0.51
