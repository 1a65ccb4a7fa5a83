"""The benchmark's super-resolution, with upsampled images that are known."""

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import CASCADE, tiny_pipeline

from imagen_jax.evaluation import icon_super_resolution
from imagen_jax.evaluation.captioned_set import read_captioned
from imagen_jax.evaluation.icon_super_resolution import CROP, busiest, measure_super_resolution
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.super_resolution import bicubic


@pytest.fixture
def measure(captioned, tmp_path, monkeypatch):
    """Measures a stage that makes bicubic images without noise, and the true ones at its own level
    of noise; gives the levels whose images were made, too.
    """
    model = EvaluatedModel(
        tiny_pipeline(), CASCADE.sampling, {"name": "tiny", "fingerprint": "0", "dtype": "float32"}
    )
    true = read_captioned(captioned, "all", 5)
    levels = []

    def make_upsample(model, position, low_res, seed, batch_size):
        level = model.sampling[position].aug_level
        images = true.at(8) if level else bicubic(low_res, 8)

        def upsample(prompts, first):
            levels.append(level)
            assert list(prompts) == list(true.captions[first : first + len(prompts)])
            return list(images[first : first + len(prompts)])

        return upsample

    monkeypatch.setattr(icon_super_resolution, "make_upsample", make_upsample)
    return lambda: (measure_super_resolution(model, true, 0, 2, tmp_path), levels)


def test_bicubic_gains_nothing_and_true_images_are_exact(measure):
    report, levels = measure()
    found = report.values["super_resolution"]
    assert (found["stage"], found["from"], found["resolution"]) == ("sr", 4, 8)
    assert list(found["psnr"]) == ["0", "0.2"]
    assert found["psnr"]["0"]["gain"] == 0
    assert found["psnr"]["0"]["n"] == found["psnr"]["0.2"]["left_out_as_exact"] == 5
    assert levels == [0.0] * 3 + [0.2] * 3
    assert set(report.sheets) == {"crops_aug_level_0.png", "crops_aug_level_0.2.png"}


def test_images_that_are_there_are_kept(measure, tmp_path):
    first, levels = measure()
    (tmp_path / "aug_level_0" / "000003.png").unlink()
    levels.clear()
    again, levels = measure()
    assert again.values == first.values
    assert levels == [0.0]


def test_a_crop_is_where_the_image_varies(rng):
    image = np.full((256, 256, 3), 255, np.uint8)
    image[100:130, 170:200] = rng.integers(0, 256, (30, 30, 3))
    y, x = busiest(image)
    assert y <= 100
    assert y + CROP >= 130
    assert x <= 170
    assert x + CROP >= 200


def test_crops_are_enlarged_pixel_for_pixel(rng):
    images = rng.integers(0, 256, (1, CROP, CROP, 3), np.uint8)
    sheet = np.asarray(icon_super_resolution.crop_sheet(images, images, images))
    large = np.asarray(Image.fromarray(images[0]).resize((4 * CROP, 4 * CROP), 0))
    assert any(
        np.array_equal(sheet[y : y + 4 * CROP, x : x + 4 * CROP], large)
        for y in range(8)
        for x in range(8)
    )
