"""From an RGB picture of any size to the square picture of a stage."""

import numpy as np
from PIL import Image


def resize(image: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 [resolution, resolution, 3]: the largest centred square, resized with antialiasing.

    A whole factor is an average of whole pixels; other factors use Lanczos, enlarging bicubic.
    """
    height, width = image.shape[:2]
    if (height, width) == (resolution, resolution):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    if side % resolution == 0:
        return np.asarray(picture.reduce(side // resolution))
    kernel = Image.Resampling.LANCZOS if side > resolution else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((resolution, resolution), kernel))
