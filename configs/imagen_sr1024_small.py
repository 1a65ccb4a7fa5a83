"""The paper's second super-resolution model for one host of 8 chips: imagen_sr1024 at the widths of
imagen_sr256_small, 0.4B parameters.

    imagen-jax plan --config imagen_sr1024_small --topology v5e:2x4

Batch and text encoder are those of imagen_base64_small, for the same reasons. Not run here.
"""

from ml_collections import ConfigDict

from . import imagen_sr1024
from .imagen_base64_small import smaller


def get_config() -> ConfigDict:
    return smaller(imagen_sr1024.get_config(), [128, 256, 384, 832])
