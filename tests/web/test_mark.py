"""What the page saves says that a model made it, as the images of the package do."""

import io

import numpy as np
from PIL import Image

from imagen_jax.images.provenance import TRAINED
from imagen_jax.images.verification import inspect
from tests.web.node import needs_node, run_node

pytestmark = needs_node


def test_a_png_is_marked(tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (9, 7, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found = run_node(
        "mark.js",
        "marked",
        list(buffer.getvalue()),
        "return [...marked(Uint8Array.from(given))];",
    )
    (tmp_path / "x.png").write_bytes(bytes(found))
    told = inspect(tmp_path / "x.png")
    assert (told.xmp, told.faults) == ({"source": TRAINED, "tool": "imagen_jax"}, ())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)
