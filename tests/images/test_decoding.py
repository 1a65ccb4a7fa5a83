"""Image files of every mode become upright RGB on white."""

import io

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images import decoding


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    value = {"I;16": 65535, "1": 1}.get(mode)
    image = Image.new("RGB", (3, 3), "white").convert(mode) if value is None else None
    image = image or Image.new(mode, (3, 3), value)
    image.save(path)
    image = decoding.decode(path)
    assert image.dtype == np.uint8
    assert (image.reshape(-1, 3) >= 254).all()


def test_grey_of_many_bits_is_scaled_or_refused(tmp_path):
    values = np.asarray([[0, 128 * 257, 65535]])
    grey = np.repeat(np.uint8([[0, 128, 255]])[..., None], 3, -1)
    for name in ("a.png", "b.pgm"):  # Pillow opens the second one as mode "I"
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / name)
        np.testing.assert_array_equal(decoding.decode(tmp_path / name), grey)
    Image.fromarray(np.float32(values / 65535)).save(tmp_path / "c.tif")
    np.testing.assert_array_equal(decoding.decode(tmp_path / "c.tif"), grey)


def test_transparency_is_shown_on_white_and_rotation_is_applied(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decoding.decode(tmp_path / "clear.png") == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert decoding.decode(tmp_path / "turned.jpg").shape == (4, 2, 3)


@pytest.mark.parametrize("factor", [1, 1.5, 2, 3, 4, 7.3, 8, 16])
def test_a_jpeg_is_reduced_by_its_decoder_as_by_averaging(factor, rng):
    """Within rounding where the whole factor is, and never below twice the size elsewhere."""
    side = round(32 * factor)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((side, side), 3)
    smooth.save(file := io.BytesIO(), "JPEG", quality=95, subsampling=0)
    data = file.getvalue()
    reduced = decoding.read(data, cover=32)
    whole = decoding.read(data)
    scale = whole.width / reduced.width
    assert scale in (1, factor) or reduced.width >= 64
    if scale.is_integer():
        averaged = np.asarray(whole.reduce(int(scale)), int)
        assert np.abs(averaged - np.asarray(reduced, int)).max() <= 3
