"""Images at a feature network's size, each way as its reference does it; figures of different
ways do not compare.
"""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from imagen_jax.images.pixels import clip_crop

# uint8 [height, width, 3] and a side -> [side, side, 3] in 0...255, float32 or uint8.
Resize = Callable[[np.ndarray, int], np.ndarray]


def legacy_tensorflow(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's bilinear, the corners neither aligned nor the pixels centred: the original
    FID's and torch-fidelity's. No antialiasing.
    """
    return _bilinear(image, side, centred=False)


def pytorch_fid(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear between the centres of pixels, no antialiasing: pytorch-fid's."""
    return _bilinear(image, side, centred=True)


def clean(image: np.ndarray, side: int) -> np.ndarray:
    """Antialiased bicubic in floating point, clipped: clean-fid's (arXiv 2104.11222)."""
    return np.clip(edm2(image, side), 0, 255)


def dgm_eval(image: np.ndarray, side: int) -> np.ndarray:
    """Antialiased bicubic in 8 bits, the sides apart: FD-DINOv2's (arXiv 2306.04675)."""
    resized = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(resized.resize((side, side), Image.Resampling.BICUBIC))


def edm2(image: np.ndarray, side: int) -> np.ndarray:
    """The same in floating point, neither rounded nor clipped: EDM2's (arXiv 2312.02696)."""
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel], np.float32)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


RESIZES: dict[str, Resize] = {
    "legacy_tensorflow": legacy_tensorflow,
    "pytorch_fid": pytorch_fid,
    "clean": clean,
    "clip": clip_crop,
    "dgm_eval": dgm_eval,
    "edm2": edm2,
}


def _bilinear(image: np.ndarray, side: int, centred: bool) -> np.ndarray:
    """Two matrix products, which on a CPU take less time than gathering the four neighbours."""
    height, width = image.shape[:2]
    rows, columns = _weights(height, side, centred), _weights(width, side, centred)
    # [side, height] x [height, width * 3], then [side, width] x [side, width, 3].
    resized = rows @ image.reshape(height, -1).astype(np.float32)
    return columns @ resized.reshape(side, width, image.shape[2])


@functools.lru_cache(maxsize=64)
def _weights(size: int, side: int, centred: bool) -> np.ndarray:
    """float32 [side, size]: how much each old pixel counts in each new one."""
    scale = np.float64(np.float32(size / side))
    place = np.arange(side, dtype=np.float64)
    # Rounded to float32 once, as PyTorch's fused multiply-add does it, and TensorFlow's product.
    place = np.maximum((place + 0.5) * scale - 0.5, 0) if centred else place * scale
    place = place.astype(np.float32)
    low = np.minimum(place.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = place - low.astype(np.float32)
    weights = np.zeros((side, size), np.float32)
    np.add.at(weights, (np.arange(side), low), 1 - share)
    np.add.at(weights, (np.arange(side), high), share)
    return weights
