"""Distances between an image and the true one: PSNR and SSIM, in float64 on uint8 images."""

import numpy as np
from scipy.ndimage import gaussian_filter

Images = np.ndarray  # uint8 [batch, height, width, channels]

PEAK = 255.0
# The constants and the window of Wang et al., "Image quality assessment: from error
# visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004, section
# III-C: K1, K2, and an 11x11 Gaussian window of standard deviation 1.5.
K1, K2 = 0.01, 0.03
WINDOW, WINDOW_STD = 11, 1.5


def psnr(images: Images, truth: Images) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(255^2 / MSE) over all channels.

    Infinite where the two are equal. Huynh-Thu and Ghanbari, Electronics Letters 44(13), 2008.
    """
    error = np.square(images.astype(np.float64) - truth).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(PEAK**2 / error)


def ssim(images: Images, truth: Images) -> np.ndarray:
    """Structural similarity of each image, 1 where equal: the mean over positions and channels.

    Wang et al. 2004, eq. 13 to 17, without their downsampling of large images, at the positions
    where the whole window lies inside.
    """
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, not {images.shape[1:3]}"
        )
    return np.asarray([_ssim_of_one(a, b) for a, b in zip(images, truth, strict=True)])


def _ssim_of_one(image: np.ndarray, truth: np.ndarray) -> float:
    x, y = image.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x**2
    variance_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(similarity.mean())


def blur(image: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean around each pixel of [height, width, channels], borders left out."""
    border = WINDOW // 2
    blurred = gaussian_filter(image, WINDOW_STD, radius=border, axes=(0, 1))
    return blurred[border:-border, border:-border]


QUALITY = {"psnr": psnr, "ssim": ssim}
