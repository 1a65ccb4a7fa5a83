"""Parameters into files of another layout: the inverse of `reading`."""

import os
from pathlib import Path

import numpy as np

from imagen_jax.storage.layout import Layout, Tensors, joined_shape, part_shape
from imagen_jax.storage.safetensors import save_params
from imagen_jax.storage.trees import flatten, name_some
from imagen_jax.typing import Params

# Near what the Hugging Face libraries split at; a shard is held in memory while it is written.
SHARD_BYTES = 5 * 10**9


def _parts(path: str, tensors: Tensors, value: np.ndarray) -> list[np.ndarray]:
    part = part_shape(tensors, value.shape)
    if joined_shape(tensors, part) != value.shape:
        raise ValueError(f"{path} of shape {value.shape} does not make {len(tensors.names)} parts.")
    if tensors.axes is not None and len(part) > len(tensors.axes):
        raise ValueError(
            f"{path} of shape {value.shape} has more axes than {tensors.axes} permute."
        )
    if tensors.join == "concat":
        return np.split(value, len(tensors.names), axis=-1)
    return list(value) if tensors.join == "stack" else [value]


def _in_their_order(tensors: Tensors, part: np.ndarray) -> np.ndarray:
    if tensors.axes is None:
        return part
    # Axes that they have and we lack come first in our order: a 1x1 convolution's height and width.
    lacking = len(tensors.axes) - part.ndim
    part = part.reshape((1,) * lacking + part.shape)
    return part.transpose(np.argsort(tensors.axes))


def write_layout(layout: Layout, params: Params) -> dict[str, np.ndarray]:
    """Our parameters as the tensors of another layout, by name.

    The tensors are views of the parameters where those are numpy arrays or lie on the CPU.

    Raises:
        ValueError: the parameters are not those of the layout.
    """
    flat = flatten(params)
    if set(flat) != set(layout):
        odd = name_some(sorted(set(flat) ^ set(layout)))
        raise ValueError(f"The layout and the parameters disagree about {odd}.")
    written: dict[str, np.ndarray] = {}
    for path, tensors in layout.items():
        parts = _parts(path, tensors, np.asarray(flat[path]))
        for name, part in zip(tensors.names, parts, strict=True):
            written[name] = _in_their_order(tensors, part)
    return written


def save_layout(
    directory: str | os.PathLike,
    name: str,
    layout: Layout,
    params: Params,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    variant: str | None = None,
) -> list[Path]:
    """Saves parameters as Hugging Face's libraries do, and returns the files' paths.

    Args:
        name: of the files: "diffusion_pytorch_model" for diffusers, "model" for transformers.
        dtype: of the floating-point tensors on disk; None leaves them as they are.
        max_shard_bytes: a larger set of tensors becomes shards and an index.
        variant: such as "fp16", for NAME.fp16.safetensors.
    """
    tensors = write_layout(layout, params)
    return save_params(directory, name, tensors, dtype, max_shard_bytes, "pt", variant)
