"""Whole residual blocks of an Efficient U-Net left out: fewer weights, and less to compute.

A block on the way down goes with the block on the way up that reads its skip, so that what is left
is an Efficient U-Net of fewer blocks at that level, which nothing else need know of. A pair's score
is how much the network's output changes without it.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from imagen_jax.models import EfficientUNetConfig, NetworkConfig
from imagen_jax.storage.quantized import refuse_quantized
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.typing import Params

Pair = tuple[int, int]  # a level, and the number of the block on the way down


def pairs(config: EfficientUNetConfig) -> list[Pair]:
    """Those that can be left out: each level keeps one, and one of attention that which it follows,
    as its skip would be another.
    """
    return [
        (i, j)
        for i, level in enumerate(config.levels)
        for j in range(level.num_res_blocks - (level.attention is not None))
        if level.num_res_blocks > 1
    ]


def _names(config: EfficientUNetConfig, pair: Pair) -> tuple[str, str]:
    level, number = pair
    last = config.levels[level].num_res_blocks - 1
    return f"down{level}_block{number}", f"up{level}_block{last - number}"


def bridged(config: EfficientUNetConfig, params: Params, pair: Pair) -> Params:
    """The parameters with which both blocks of a pair give what they are given, as if left out: the
    residual branches are zero, and the shortcut on the way up does not read the skip.
    """
    down, up = _names(config, pair)
    flat = flatten(params)
    for name in (down, up):
        for part in ("kernel", "bias"):
            flat[f"{name}/conv2/{part}"] = jnp.zeros_like(flat[f"{name}/conv2/{part}"])
    kernel = flat[f"{up}/shortcut/kernel"]
    flat[f"{up}/shortcut/kernel"] = jnp.eye(*kernel.shape, dtype=kernel.dtype)
    flat[f"{up}/shortcut/bias"] = jnp.zeros_like(flat[f"{up}/shortcut/bias"])
    return unflatten(flat)


def without(
    config: EfficientUNetConfig, params: Params, pair: Pair
) -> tuple[EfficientUNetConfig, Params]:
    """The network without a pair of blocks, the later ones of its level numbered anew."""
    level, flat = pair[0], {}
    removed = dict(zip(("down", "up"), _names(config, pair), strict=True))
    for path, leaf in flatten(params).items():
        match = re.match(rf"(down|up){level}_block(\d+)/", path)
        if match is None:
            flat[path] = leaf
            continue
        way, number = match[1], int(match[2])
        gone = int(removed[way].rpartition("block")[2])
        if number != gone:
            name = f"{way}{level}_block{number - (number > gone)}"
            flat[f"{name}/{path[match.end() :]}"] = leaf
    levels = list(config.levels)
    levels[level] = replace(levels[level], num_res_blocks=levels[level].num_res_blocks - 1)
    return replace(config, levels=tuple(levels)), unflatten(flat)


def check_blocks(config: NetworkConfig, count: int) -> None:
    """ValueError where a network cannot go without so many pairs of blocks."""
    if not isinstance(config, EfficientUNetConfig):
        kind = type(config).__name__
        raise ValueError(f"blocks are left out of an efficient_unet, not of a {kind}")
    spare = sum(level.num_res_blocks - 1 for level in config.levels)
    if not 1 <= count <= spare:
        raise ValueError(f"blocks must be from 1 to {spare}, not {count}: each level keeps a pair")


def drop_blocks(
    config: EfficientUNetConfig,
    params: Params,
    count: int,
    output: Callable[[Params], Array],
) -> tuple[EfficientUNetConfig, Params, dict[str, float]]:
    """The network without `count` pairs of blocks, one after another that of the least score.

    Args:
        output: the network's, of its parameters: of noisy images at several times.

    Returns:
        Its config, its parameters, and the names of the pairs with the relative L2 distance of the
        output then from that of the whole network.

    Raises:
        ValueError: another kind of network, or too many blocks; kernels are quantized.
    """
    check_blocks(config, count)
    refuse_quantized(params, "Pruning")
    whole, bridges, left = np.asarray(output(params)), params, {p: p for p in pairs(config)}
    dropped, small = {}, (config, params)
    for _ in range(count):
        # `left`: the pairs by their numbers in the whole network, and in what is left of it.
        levels = small[0].levels
        candidates = [pair for pair in left if levels[pair[0]].num_res_blocks > 1]
        scores = {
            pair: float(np.linalg.norm(np.asarray(output(bridged(config, bridges, pair))) - whole))
            for pair in candidates
        }
        best = min(scores, key=scores.get)
        dropped["+".join(_names(config, best))] = scores[best] / float(np.linalg.norm(whole))
        bridges, small = bridged(config, bridges, best), without(*small, left.pop(best))
        left = {
            pair: (now[0], now[1] - (pair[0] == best[0] and pair[1] > best[1]))
            for pair, now in left.items()
        }
    return *small, dropped
