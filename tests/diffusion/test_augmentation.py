"""Resizing and noising the low-resolution input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.augmentation import (
    UPSAMPLINGS,
    augment,
    downsample,
    sample_levels,
    upsample,
)


def test_level_zero_leaves_the_image_and_level_one_leaves_noise(key):
    low_res = jax.random.uniform(key, (2, 8, 8, 3), minval=-1.0, maxval=1.0)
    eps = jax.random.normal(jax.random.key(1), low_res.shape)
    np.testing.assert_allclose(augment(low_res, 0.0, eps), low_res, atol=4e-3)
    np.testing.assert_allclose(augment(low_res, 1.0, eps), eps, atol=4e-3)


def test_variance_is_preserved_at_every_level(key):
    low_res = jax.random.normal(key, (4, 64, 64, 1))
    eps = jax.random.normal(jax.random.key(1), low_res.shape)
    noised = augment(low_res, jnp.array([0.1, 0.3, 0.6, 0.9]), eps)
    np.testing.assert_allclose(jnp.var(noised, axis=(1, 2, 3)), np.ones(4), rtol=0.06)


def test_each_example_has_its_own_level(key):
    low_res = jnp.ones((3, 4, 4, 3))
    eps = jax.random.normal(key, low_res.shape)
    levels = jnp.array([0.1, 0.4, 0.8])
    together = augment(low_res, levels, eps)
    for i, level in enumerate(levels):
        np.testing.assert_allclose(
            together[i : i + 1], augment(low_res[:1], level, eps[i : i + 1]), atol=1e-6
        )


def test_levels_are_uniform(key):
    levels = np.sort(sample_levels(key, 4000))
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels, (np.arange(4000) + 0.5) / 4000, atol=0.03)
    bounded = sample_levels(key, 100, 0.2, 0.5)
    assert bounded.min() >= 0.2
    assert bounded.max() < 0.5


def test_upsampling_interpolates_linearly():
    # The centres of the small pixels lie at (2 i + 0.5) of the large ones.
    ramp = jnp.broadcast_to((2.0 * jnp.arange(8.0) + 0.5)[None, :, None, None], (1, 8, 8, 1))
    expected = jnp.broadcast_to(jnp.arange(16.0)[None, :, None, None], (1, 16, 16, 1))
    np.testing.assert_allclose(upsample(ramp, 16)[:, 1:-1], expected[:, 1:-1], atol=1e-5)


@pytest.mark.parametrize("resolution", [8, 9])
def test_downsampling_is_antialiased(resolution):
    checks = 2.0 * ((jnp.arange(32)[:, None] + jnp.arange(32)) % 2)[None, :, :, None] - 1.0
    assert np.abs(downsample(checks, resolution)).max() < 0.1


def test_whole_factors_average_pixels(key):
    images = jax.random.uniform(key, (2, 12, 12, 3), minval=-1.0, maxval=1.0)
    small = downsample(images, 4)
    np.testing.assert_allclose(small[1, 2, 3], images[1, 6:9, 9:12].mean((0, 1)), atol=1e-6)
    np.testing.assert_array_equal(downsample(images, 12), images)


@pytest.mark.parametrize("resize", [upsample, downsample])
def test_resizing_keeps_constants_and_range(key, resize):
    np.testing.assert_allclose(resize(jnp.full((1, 12, 12, 3), 0.7), 16), 0.7, atol=1e-6)
    images = jax.random.uniform(key, (2, 12, 12, 3), minval=-1.0, maxval=1.0)
    assert np.abs(resize(images, 20)).max() <= 1.0 + 1e-6
    assert resize(images.astype(jnp.bfloat16), 6).dtype == jnp.float32


@pytest.mark.parametrize("sizes", [(4, 4, 16), (7, 5, 16), (3, 8, 1), (1, 6, 5), (64, 64, 256)])
def test_aligned_corners_are_torchs(key, sizes):
    torch = pytest.importorskip("torch", reason="the reference interpolation")
    height, width, resolution = sizes
    images = jax.random.normal(key, (2, height, width, 3))
    expected = torch.nn.functional.interpolate(
        torch.tensor(np.moveaxis(images, -1, 1)), (resolution,) * 2, mode="bilinear",
        align_corners=True,
    )  # fmt: skip
    ours = upsample(images, resolution, "bilinear_align_corners")
    np.testing.assert_allclose(ours, np.moveaxis(expected.numpy(), 1, -1), atol=2e-6)


def test_upsamplings_are_not_the_same(key):
    images = jax.random.normal(key, (1, 4, 4, 1))
    one, two = (upsample(images, 8, method) for method in UPSAMPLINGS)
    assert np.abs(one - two).max() > 0.1


@pytest.mark.parametrize("resize", [upsample, downsample])
def test_a_size_of_nothing_is_refused(resize):
    with pytest.raises(ValueError, match="cannot be resized to 0"):
        resize(jnp.zeros((1, 4, 4, 3)), 0)
