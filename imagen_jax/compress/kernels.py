"""Which parameters are made smaller: the kernels, but for those that cost too much."""

import re

from imagen_jax.devices.sharding import STACKED

# The kernels that stay in floating point, by regex. Whatever is no kernel does too: embeddings,
# norms, biases. Beside each what it costs to quantize it alone to int8 (and int4): relative L2 of
# the output of the shipped base network, where all other kernels together, 17.3 million of its 17.4
# million parameters, cost 0.007 (0.11).
KEPT = (
    r"^(conv_out|patch_out)/",  # 0.023 (0.67): the image itself
    r"^(conv_in|patch_in|bottleneck)/",  # 0.0027 (0.038), of 10,000 parameters
    r"^skip_gains/",  # 0.0032 (0.063), of 500
    r"(^|/)(time|size|aug_level|target\w*)_in/",  # 0.0014 (0.023): sines of the time
    r"^draft/",  # it is run by itself, too
)


def takes(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a kernel that is quantized and pruned."""
    axes = len(shape) - bool(STACKED.search(path))
    kept = any(re.search(pattern, path) for pattern in KEPT)
    return path.endswith("/kernel") and axes >= 2 and not kept
