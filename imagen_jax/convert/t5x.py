"""T5X checkpoints of T5 v1.1, mT5, ByT5 and umT5 to the parameters of `imagen_jax.models.t5`.

Two layouts: a subtree for each layer ("encoder/layers_3/..."), or the layers scanned, each array
with the layers on axis 1 ("encoder/encoder/..."). In the first all layers share one relative bias
or, in umT5's manner, each has its own; in the second each has its own.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.convert.fields import Fields
from imagen_jax.convert.t5 import BIAS, checked_sizes, encoder_shapes, layer_tensors
from imagen_jax.convert.t5x_checkpoint import CHECKPOINT, read_checkpoint
from imagen_jax.models import t5
from imagen_jax.storage.layout import Layout, Tensors
from imagen_jax.storage.layout_files import ShardingOf, Tensor, read_layout
from imagen_jax.storage.tensor_file import Index
from imagen_jax.typing import Params

EMBEDDING = "token_embedder/embedding"
SCANNED = "encoder/encoder/"
LAYER = re.compile(r"encoder/layers_(0|[1-9]\d*)/")
SHARED_BIAS = f"encoder/{BIAS[1]}"
# Of scanned layers, by kind: [in, layers, out] to [layers, in, out]; biases are [heads, layers,
# buckets].
SCANNED_AXES = {"kernel": (1, 0, 2), "scale": (1, 0), "embedding": (1, 2, 0)}


@dataclass(frozen=True)
class MergedHeads:
    """An attention kernel with separate axes for heads and head_dim, as a matrix.

    Its axes are [width, heads, head_dim], of "out" [heads, head_dim, width]; where the layers are
    scanned, with these on axis 1.
    """

    kernel: Tensor
    axis: int  # of the heads, and of the two merged
    inner: int  # of head_dim

    @property
    def dtype(self) -> np.dtype:
        """That of the stored kernel."""
        return self.kernel.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape with heads and their width in one axis."""
        shape = list(self.kernel.shape)
        shape[self.axis] *= shape.pop(self.inner)
        return tuple(shape)

    def __getitem__(self, index: Index) -> np.ndarray:
        """The part that `index` selects, a slice with bounds for each axis of the matrix."""
        theirs, wanted, head_dim = list(index), index[self.axis], self.kernel.shape[self.inner]
        first, last = wanted.start // head_dim, -(-wanted.stop // head_dim)
        theirs[self.axis] = slice(first, last)
        theirs.insert(self.inner, slice(0, head_dim))
        value = np.moveaxis(self.kernel[tuple(theirs)], self.inner, self.axis + 1)
        shape = list(value.shape)
        shape[self.axis : self.axis + 2] = [-1]
        trim = slice(wanted.start - first * head_dim, wanted.stop - first * head_dim)
        return value.reshape(shape)[(slice(None),) * self.axis + (trim,)]


def merge_heads(files: Mapping[str, Tensor], scanned: bool) -> dict[str, Tensor]:
    """A checkpoint's tensors, attention kernels always as matrices."""
    merged = dict(files)
    for name, tensor in files.items():
        axes = len(tensor.shape)
        if "/attention/" in name and axes == 3 + scanned:
            axis, inner = (0, axes - 2) if name.endswith("/out/kernel") else (axes - 2, axes - 1)
            merged[name] = MergedHeads(tensor, axis, inner)
    return merged


def checkpoint_layout(config: t5.T5Config, scanned: bool) -> Layout:
    """Where each parameter of the encoder is in a T5X checkpoint; matrices are [in, out] there."""
    layout = {
        "token_embedding": Tensors((EMBEDDING,)),
        "final_norm/scale": Tensors(("encoder/encoder_norm/scale",)),
    }
    for ours, (_, theirs) in layer_tensors(config).items():
        if scanned:
            axes = SCANNED_AXES[ours.rpartition("/")[2]]
            layout[f"layers/{ours}"] = Tensors((SCANNED + theirs,), axes)
        else:
            names = tuple(f"encoder/layers_{i}/{theirs}" for i in range(config.num_layers))
            turned = (1, 0) if theirs == BIAS[1] else None
            layout[f"layers/{ours}"] = Tensors(names, turned, "stack")
    if not config.bias_in_every_layer:
        layout["relative_bias/embedding"] = Tensors((SHARED_BIAS,), (1, 0))
    return layout


def config_from_tensors(
    files: Mapping[str, Tensor], scanned: bool, **overrides: Any
) -> t5.T5Config:
    """The sizes of an encoder from the shapes in its checkpoint.

    Shapes do not tell the relative distance from which on all share a bucket (T5: 128), the norms'
    epsilon (1e-6), and the activation (gelu where it is gated, as in T5 v1.1 and its kin, else
    relu, as in T5 1.0); `overrides` are fields of T5Config for where these are others.
    """
    first, axes = (SCANNED, 3) if scanned else ("encoder/layers_0/", 2)

    def shape(name: str, axes: int = axes) -> tuple[int, ...]:
        if name not in files:
            raise ValueError(f"it has no {name}, from which the encoder's sizes are read")
        if len(files[name].shape) != axes:
            raise ValueError(f"{name} has the shape {files[name].shape}, not {axes} axes")
        return files[name].shape

    vocab_size, d_model = shape(EMBEDDING, 2)
    query = shape(f"{first}attention/query/kernel")
    gated, shared = f"{first}mlp/wi_0/kernel" in files, SHARED_BIAS in files
    wi = shape(f"{first}mlp/wi_0/kernel" if gated else f"{first}mlp/wi/kernel")
    heads, *_, buckets = shape(SHARED_BIAS, 2) if shared else shape(first + BIAS[1])
    if heads < 1 or query[-1] % heads:
        raise ValueError(
            f"the relative bias is for {heads} heads, which do not divide the attention's width "
            f"{query[-1]}"
        )
    layers = {int(match[1]) for name in files if (match := LAYER.match(name))}
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_heads": heads,
        "head_dim": query[-1] // heads,
        "num_layers": query[1] if scanned else max(layers) + 1,
        "d_ff": wi[-1],
        "num_buckets": buckets,
    }
    checked_sizes(Fields("by its shapes, the encoder", sizes), {name: name for name in sizes})
    found = {
        **sizes,
        "activation": "gelu" if gated else "relu",
        "gated": gated,
        "bias_in_every_layer": not shared,
    }
    return t5.T5Config(**(found | overrides))


def _open(
    directory: str | os.PathLike, **overrides: Any
) -> tuple[t5.T5Config, Mapping[str, Tensor], bool]:
    """An encoder's config, the checkpoint's tensors, and whether its layers are scanned."""
    path = Path(directory)
    if not (path / CHECKPOINT).is_file():
        steps = sorted(step.name for step in path.glob("checkpoint_*") if step.is_dir())
        hint = f"; give one of its steps, such as {path / steps[-1]}" if steps else ""
        raise FileNotFoundError(f"{path} has no file {CHECKPOINT!r} of T5X{hint}.")
    files = read_checkpoint(path)
    scanned = any(name.startswith(SCANNED) for name in files)
    files = merge_heads(files, scanned)
    try:
        return config_from_tensors(files, scanned, **overrides), files, scanned
    except ValueError as error:
        reason = str(error).removesuffix(".")
        raise ValueError(f"{path} is not a checkpoint of a T5 encoder: {reason}.") from None


def read_t5x_config(directory: str | os.PathLike, **overrides: Any) -> t5.T5Config:
    """Only the encoder's sizes; arguments and errors as of `load_t5x`."""
    return _open(directory, **overrides)[0]


def load_t5x(
    directory: str | os.PathLike,
    dtype: str | None = "float32",
    *,
    sharding: ShardingOf | None = None,
    **overrides: Any,
) -> tuple[t5.T5Config, Params]:
    """The encoder of a T5X checkpoint: its config, read from the shapes, and its parameters.

    Args:
        directory: the folder of one step, which holds the file `checkpoint`.
        dtype: of the parameters; None keeps the checkpoint's own.
        sharding: where each parameter is to lie; None gives numpy arrays.
        overrides: fields of T5Config that shapes do not tell (see `config_from_tensors`), or
            `dtype` and `remat`.

    Raises:
        FileNotFoundError: the folder has no checkpoint, or lacks an array.
        ValueError: it is damaged, asks for files elsewhere, or is not an encoder of this kind.
    """
    config, files, scanned = _open(directory, **overrides)
    params = read_layout(
        checkpoint_layout(config, scanned),
        files,
        encoder_shapes(config),
        dtype=dtype,
        sharding=sharding,
        where=os.fspath(directory),
    )
    return config, params
