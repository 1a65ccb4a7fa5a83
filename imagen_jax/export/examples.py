"""Random arrays to try a part with."""

from typing import Any

import numpy as np

from imagen_jax.export.parts import Part


def example_inputs(part: Part, batch: int, steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays that a part takes; all of a loop of so many steps."""
    rng = np.random.default_rng(seed)

    def size(dim: Any) -> int:
        if isinstance(dim, int):
            return dim
        return {"batch": batch, "times": steps + 1, "steps": steps}[str(dim).split("_")[0]]

    def value(name: str, sizes: list[int], dtype: Any) -> Any:
        if name.startswith("times"):
            return np.linspace(1, 0, steps + 1)
        if name.endswith("mask"):
            return np.arange(sizes[1]) < rng.integers(1, sizes[1], (batch, 1))
        if dtype == np.int32:
            return {"start": 0, "stop": steps}.get(name, rng.integers(0, 5, sizes))
        if name.startswith(("guidance", "logsnr")):
            return 2.5 if name.startswith("guidance") else np.inf
        if name in ("t", "s", "aug_level"):
            return rng.uniform(0.1, 0.9, sizes)
        if name.startswith("x0") or name == "average":
            return np.zeros(sizes)
        return rng.standard_normal(sizes)

    return {
        name: np.asarray(value(name, list(map(size, shape.shape)), shape.dtype), shape.dtype)
        for name, shape in part.inputs.items()
    }
