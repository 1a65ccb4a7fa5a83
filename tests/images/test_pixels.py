"""Resizing without aliasing, crops, and the ranges of pixels."""

import numpy as np
from PIL import Image

from imagen_jax.images import pixels
from imagen_jax.images.pixels import to_uint8
from tests.images.ramp import ramp


def test_resize_averages_whole_blocks_of_the_centred_square(rng):
    image = rng.integers(0, 256, (8, 12, 3), np.uint8)
    expected = image[:, 2:10].reshape(2, 4, 2, 4, 3).mean((1, 3))
    assert np.abs(pixels.resize(image, 2) - expected).max() <= 0.5
    assert pixels.resize(image, 16).shape == (16, 16, 3)
    assert pixels.resize(image[:, :8], 8) is not None


def test_resize_does_not_alias():
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pixels.resize(stripes, 30).astype(int) - 127).max() < 25


def test_a_crop_is_a_piece_of_the_resized_image(rng):
    image = np.asarray(
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize((90, 70), 3)
    )
    # By a whole factor: exactly; the resized image is 45 x 35, and the crop 16 of it.
    whole = np.asarray(Image.fromarray(image).reduce(2))
    piece = pixels.resize_and_crop(image, (35, 35), (16, 16), (0.999, 0.0))
    np.testing.assert_array_equal(piece, whole[:16, -16:])
    # By another one: within rounding.
    whole = np.asarray(Image.fromarray(image).resize((36, 28), Image.Resampling.LANCZOS), int)
    piece = pixels.resize_and_crop(image, (28, 28), (28, 14), (0.0, 0.999))
    assert np.abs(piece - whole[14:, :28]).max() <= 2


def test_crops_of_an_image_of_the_right_size_copy_its_pixels():
    image = ramp(100, 64)
    for at in (None, (0.0, 0.0), (0.5, 0.999), (0.999, 0.3)):
        piece = pixels.resize_and_crop(image, (64, 64), (16, 16), at)
        left, top = piece[0, 0, :2]
        np.testing.assert_array_equal(piece, image[top : top + 16, left : left + 16])
    assert pixels.resize_and_crop(image, (64, 64), (16, 16))[0, 0, :2].tolist() == [42, 24]


def test_pixels_are_rounded_and_clipped():
    every = np.arange(256)
    assert (to_uint8(every / 127.5 - 1) == every).all()
    floats = np.array([-2, -1, -1 + 1.5 / 255, 0, 1, 2], np.float32)
    assert to_uint8(floats).tolist() == [0, 0, 1, 128, 255, 255]


def test_small_images_are_upsampled_before_the_crop():
    piece = pixels.resize_and_crop(ramp(5, 4), (16, 16), (8, 8), (0.0, 0.0))
    assert piece.shape == (8, 8, 3)
    assert piece[..., 0].max() <= 3
