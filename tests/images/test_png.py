"""The settings in a PNG."""

import pytest
from PIL import Image

from imagen_jax.images.png import read_settings


def test_settings_of_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.png"):
        read_settings(tmp_path / "none.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="holds no imagen_jax settings"):
        read_settings(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="not an image"):
        read_settings(tmp_path / "text.png")
