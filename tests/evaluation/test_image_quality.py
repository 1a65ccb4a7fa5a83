"""PSNR and SSIM against their formulas, written out slowly, and against scikit-image."""

import numpy as np
import pytest

from imagen_jax.evaluation.image_quality import psnr, ssim


def pair(rng, height=24, width=19, strength=30):
    """Smooth images and noisy copies."""
    y, x = np.mgrid[:height, :width]
    smooth = 127 + 80 * np.sin(x / 4)[..., None] * np.cos(y / 5)[..., None] * np.array([1, 0.5, -1])
    truth = np.stack([smooth, 255 - smooth])
    noisy = truth + rng.normal(0, strength, truth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), truth.astype(np.uint8)


def test_psnr_of_a_known_error(rng):
    truth = np.full((2, 4, 6, 3), 100, np.uint8)
    off = truth + np.array([5, 1], np.uint8)[:, None, None, None]
    # 20 log10(255 / 5) and 20 log10(255 / 1)
    np.testing.assert_allclose(psnr(off, truth), [34.1514, 48.1308], atol=1e-4)
    assert np.isinf(psnr(truth, truth)).all()
    np.testing.assert_array_equal(psnr(off, truth), psnr(truth, off))  # no wrap-around of uint8


def test_ssim_is_one_for_equal_images_and_less_for_others(rng):
    noisy, truth = pair(rng)
    np.testing.assert_allclose(ssim(truth, truth), 1.0, atol=1e-12)
    assert (ssim(noisy, truth) < 0.95).all()
    np.testing.assert_allclose(ssim(noisy, truth), ssim(truth, noisy), rtol=1e-12)
    assert ssim(255 - truth, truth)[0] < 0  # contrast turned round


def test_ssim_of_one_window_is_the_formula(rng):
    """An 11x11 image has one window: equation 13, with weighted moments, by loops."""
    a, b = rng.integers(0, 256, (2, 11, 11), np.uint8)
    weights = {}
    for i in range(11):
        for j in range(11):
            weights[i, j] = np.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2))
    total = sum(weights.values())

    def mean(values):
        return sum(w * values(*at) for at, w in weights.items()) / total

    mean_a, mean_b = mean(lambda i, j: float(a[i, j])), mean(lambda i, j: float(b[i, j]))
    variance_a = mean(lambda i, j: (a[i, j] - mean_a) ** 2)
    variance_b = mean(lambda i, j: (b[i, j] - mean_b) ** 2)
    covariance = mean(lambda i, j: (a[i, j] - mean_a) * (b[i, j] - mean_b))
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    np.testing.assert_allclose(ssim(a[None, ..., None], b[None, ..., None]), expected, rtol=1e-10)


def test_both_equal_scikit_image(rng):
    metrics = pytest.importorskip("skimage.metrics")
    for noisy, truth in (pair(rng), pair(rng, 33, 40, 5)):
        for row, (a, b) in enumerate(zip(noisy, truth, strict=True)):
            expected = metrics.peak_signal_noise_ratio(b, a, data_range=255)
            np.testing.assert_allclose(psnr(noisy, truth)[row], expected, rtol=1e-12)
            expected = metrics.structural_similarity(
                a,
                b,
                data_range=255,
                channel_axis=-1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            np.testing.assert_allclose(ssim(noisy, truth)[row], expected, rtol=1e-9)


def test_images_smaller_than_the_window_are_refused():
    small = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(small, small)
