"""Weights set to zero by magnitude (arXiv 1506.02626), to be trained further with
`optimizer.keep_zeros`, under which they stay zero.
"""

import numpy as np

from imagen_jax.compress.kernels import takes
from imagen_jax.devices.sharding import STACKED
from imagen_jax.storage.codec import nearest, require
from imagen_jax.storage.quantized import refuse_quantized
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.typing import Params

SCOPES = ("global", "layer")


def check_pruning(share: float, scope: str) -> None:
    """ValueError where `prune` cannot be given these."""
    require(
        (0 <= share < 1, f"sparsity must be in [0, 1), not {share}"),
        (scope in SCOPES, f"scope is {scope!r}{nearest(scope, SCOPES)}"),
    )


def prune(params: Params, share: float, scope: str = "global") -> Params:
    """A tree with this share of its kernels' weights set to zero, those of the least magnitude.

    Args:
        share: of the weights of all kernels that `takes` names; in [0, 1).
        scope: of SCOPES. "global": the least of all kernels together; "layer": of each, and of each
            layer of those that are stacked, the same share.

    Raises:
        ValueError: a share or a scope that cannot be; kernels are quantized, or there are none.
    """
    check_pruning(share, scope)
    refuse_quantized(params, "Pruning")
    flat = flatten(params)
    kernels = {path: np.array(leaf) for path, leaf in flat.items() if takes(path, leaf.shape)}
    require((kernels, f"There is no kernel to prune among {name_some(sorted(flat))}."))
    parts = [
        part
        for path, kernel in kernels.items()
        for part in (kernel if STACKED.search(path) else [kernel])
    ]
    everywhere = _threshold(np.concatenate([np.abs(part).ravel() for part in parts]), share)
    for part in parts:
        limit = everywhere if scope == "global" else _threshold(np.abs(part).ravel(), share)
        part[np.abs(part) < limit] = 0
    return unflatten(flat | kernels)


def _threshold(sizes: np.ndarray, share: float) -> float:
    """What this share of the sizes is less than."""
    count = round(share * sizes.size)
    return float(np.partition(sizes, count)[count]) if count < sizes.size else np.inf


def sparsity(params: Params) -> float:
    """The share of zeros among the weights that `prune` prunes."""
    kernels = [leaf for path, leaf in flatten(params).items() if takes(path, leaf.shape)]
    zeros = sum(int((np.asarray(kernel) == 0).sum()) for kernel in kernels)
    return zeros / sum(kernel.size for kernel in kernels)
