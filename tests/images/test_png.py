"""The settings in a PNG."""

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax.images.png import SETTINGS_KEY, read_settings


def test_settings_of_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.png"):
        read_settings(tmp_path / "none.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="holds no imagen_jax settings"):
        read_settings(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("a text")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    for name in ("text.png", "photo.jpg"):
        with pytest.raises(ValueError, match=f"{name} is not a PNG image"):
            read_settings(tmp_path / name)


@pytest.mark.parametrize("settings", ["{", "[" * 100_000, "\0", '{"a": 1' + "0" * 5000 + "}"])
def test_settings_that_are_no_json_are_refused_by_name(tmp_path, settings):
    text = PngInfo()
    text.add_itxt(SETTINGS_KEY, settings)
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=text)
    with pytest.raises(ValueError, match=r"The settings in \S+odd.png cannot be read"):
        read_settings(tmp_path / "odd.png")
    whole = (tmp_path / "odd.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.png"):
        read_settings(tmp_path / "cut.png")
