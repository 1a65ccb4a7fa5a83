"""Images side by side with captions."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from imagen_jax.images import grid
from imagen_jax.images.grid import image_grid


def test_a_grid_holds_every_image_and_caption():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    plain = np.asarray(image_grid([red, blue, red], columns=2, gap=1))
    assert plain.shape == (20, 20, 3)
    assert (plain[1:9, 1:9] == [255, 0, 0]).all()
    assert (plain[1:9, 11:19] == [0, 0, 255]).all()
    assert (plain[11:19, 11:19] == 255).all()
    captioned = np.asarray(image_grid([red, blue], ["a cat", "红苹果"]))
    below = captioned[4 + 96 + 2 :]
    assert (below[:, : below.shape[1] // 2] < 128).any()
    assert (below[:, below.shape[1] // 2 :] < 128).any()
    with pytest.raises(ValueError, match="2 captions for 1"):
        image_grid([red], ["a", "b"])


def test_a_font_is_found_below_the_fonts_of_the_system(tmp_path, monkeypatch):
    """Even where XDG_DATA_DIRS leaves /usr/share out, as in some packaged programs."""
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(grid, "FONT_FOLDER", tmp_path)
    place = tmp_path / "fonts" / "cjk" / "MyWideFont.ttc"
    place.parent.mkdir(parents=True)
    place.write_bytes(ImageFont.load_default(12).path.getvalue())
    assert grid.open_font("MyWideFont.ttc", 12).getbbox("a")
    assert grid.open_font("NoSuchFont.ttc", 12) is None
