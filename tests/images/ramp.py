"""An image whose pixels say where they are."""

import numpy as np


def ramp(width: int, height: int) -> np.ndarray:
    """Red says the column, green the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image
