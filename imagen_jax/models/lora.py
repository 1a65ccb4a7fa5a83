"""LoRA (arXiv 2106.09685): a matrix W is used as W + scale * down @ up, and only the two narrow
factors are trained.

Networks know nothing of it: they are given the merged parameters. An adapter is a tree like the
network's, with {"down": [in, rank], "up": [rank, out]} in the place of a kernel [in, out]. Where
layers are stacked on a first axis, so are their factors.
"""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.devices.sharding import STACKED
from imagen_jax.storage.codec import require
from imagen_jax.storage.quantized import refuse_quantized
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.typing import Keys, Params

DOWN, UP = "down", "up"
# The projections of every attention layer, to the text's keys and values too; not the pooling of
# the text. `key_value` is both in one matrix, and PRX has the image's query there, too.
DEFAULT_TARGETS = (
    r"(_|layers/)attention\d*/(query|((text|query)_)?(key|value|key_value)|out)/kernel$",
)


@dataclass(frozen=True)
class LoraConfig:
    """Which kernels get an adapter, and how wide it is.

    alpha: scale * rank, so that the learning rate need not change with the rank (section 4.1);
    None: the rank, a scale of 1. targets: regexes, searched in the paths of the network's
    parameters ("down1_attention0/query/kernel"); each must find some.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = DEFAULT_TARGETS

    def __post_init__(self):
        require(
            (self.rank >= 1, f"lora.rank must be 1 or more, not {self.rank}"),
            (
                self.alpha is None or self.alpha > 0,
                f"lora.alpha must be positive or None, not {self.alpha}",
            ),
            (self.targets, "lora.targets is empty; give at least one regex"),
        )
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"lora.targets: {pattern!r} is not a regex: {error}") from None

    @property
    def scale(self) -> float:
        """What down @ up is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def target_kernels(params: Params, config: LoraConfig) -> dict[str, Any]:
    """The kernels (or their shapes) that the targets find, by path.

    Raises:
        ValueError: a target finds nothing, or something that is not a matrix.
    """
    leaves, found = flatten(params), {}
    for pattern in config.targets:
        matching = {path: leaf for path, leaf in leaves.items() if re.search(pattern, path)}
        if not matching:
            matrices = [path for path, leaf in leaves.items() if _axes(path, leaf) == 2]
            raise ValueError(
                f"lora.targets: {pattern!r} finds no parameter of the network; its matrices are "
                f"{name_some(matrices)}"
            )
        found |= matching
    others = [
        f"{path} {tuple(leaf.shape)}"
        for path, leaf in found.items()
        if _axes(path, leaf) != 2 or not path.endswith("/kernel")
    ]
    if others:
        raise ValueError(f"lora.targets find what is not a kernel of two axes: {name_some(others)}")
    return found


def _axes(path: str, leaf: Any) -> int:
    """Without that along which layers are stacked."""
    return len(leaf.shape) - bool(STACKED.search(path))


def init_lora(params: Params, config: LoraConfig, key: Keys) -> Params:
    """A float32 adapter that changes nothing yet: `down` is Gaussian, `up` zero (section 4.1).

    Args:
        params: the network's, or their shapes.
    """
    factors = {}
    for number, (path, kernel) in enumerate(sorted(target_kernels(params, config).items())):
        *layers, size_in, size_out = kernel.shape
        noise = jax.random.normal(jax.random.fold_in(key, number), (*layers, size_in, config.rank))
        matrix = path.removesuffix("/kernel")
        factors[f"{matrix}/{DOWN}"] = noise * size_in**-0.5
        factors[f"{matrix}/{UP}"] = jnp.zeros((*layers, config.rank, size_out), jnp.float32)
    return unflatten(factors)


def merge_lora(
    params: Params, lora: Params, scale: float | jax.Array = 1.0, dtype: str | None = None
) -> Params:
    """The parameters with W + scale * down @ up for every adapter; what has none is not copied.

    The sum is taken in float32. Works inside jit, with parameters that are sharded.

    Args:
        dtype: of the sum; None for the kernel's.

    Raises:
        ValueError: there is an adapter where the network has no such kernel, or has it quantized.
    """

    refuse_quantized(params, "An adapter")
    merged, factors = flatten(params), flatten(lora)
    for path in sorted({name.rpartition("/")[0] for name in factors}):
        kernel = merged.get(f"{path}/kernel")
        if kernel is None:
            raise ValueError(f"the adapter has {path}, which the network has not")
        down, up = (jnp.asarray(factors[f"{path}/{part}"], jnp.float32) for part in (DOWN, UP))
        shape = (*down.shape[:-1], up.shape[-1])
        if tuple(kernel.shape) != shape or down.shape[:-2] != up.shape[:-2]:
            raise ValueError(
                f"the adapter of {path} is for {shape}, the kernel is {tuple(kernel.shape)}"
            )
        total = kernel.astype(jnp.float32) + scale * jnp.matmul(down, up, precision="highest")
        merged[f"{path}/kernel"] = total.astype(dtype or kernel.dtype)
    return unflatten(merged)
