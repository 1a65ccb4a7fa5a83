"""The paper's first super-resolution model for one host of 8 chips: imagen_sr256 with narrower
lower levels, 0.4B parameters.

    python scripts/plan.py --config configs/imagen_sr256_small.py --topology v5e:2x4

Batch and text encoder are those of imagen_base64_small, for the same reasons. Not run here.
"""

from ml_collections import ConfigDict

from configs import imagen_sr256
from configs.imagen_base64_small import smaller


def get_config() -> ConfigDict:
    return smaller(imagen_sr256.get_config(), [128, 256, 384, 832])
