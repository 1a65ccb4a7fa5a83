"""T5X checkpoints of T5 v1.1, mT5, ByT5 and umT5 to the parameters of `imagen_jax.models.t5`.

Two layouts: a subtree for each layer ("encoder/layers_3/..."), or the layers scanned, each array
with the layers on axis 1 ("encoder/encoder/..."). In the first all layers share one relative bias
or, in umT5's manner, each has its own; in the second each has its own.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.convert.t5 import MAX_LAYERS, MAX_SIZE, encoder_shapes
from imagen_jax.convert.t5x_checkpoint import CHECKPOINT, T5XTensors
from imagen_jax.models import t5
from imagen_jax.storage.layout import Layout, Tensors
from imagen_jax.storage.reading import ShardingOf, TensorSource, read_layout
from imagen_jax.storage.tensor_file import Index
from imagen_jax.typing import Params

EMBEDDING = "token_embedder/embedding"
SCANNED = "encoder/encoder/"
LAYER = re.compile(r"encoder/layers_(0|[1-9]\d*)/")
SHARED_BIAS = "encoder/relpos_bias/rel_embedding"
BIAS = "relpos_bias/rel_embedding"
# Ours -> T5X's, in a layer; matrices are [in, out] in both.
LAYER_TENSORS = {
    "attention/query/kernel": "attention/query/kernel",
    "attention/key/kernel": "attention/key/kernel",
    "attention/value/kernel": "attention/value/kernel",
    "attention/out/kernel": "attention/out/kernel",
    "attention_norm/scale": "pre_attention_layer_norm/scale",
    "feed_forward/wo/kernel": "mlp/wo/kernel",
    "feed_forward_norm/scale": "pre_mlp_layer_norm/scale",
}
GATED = {
    "feed_forward/wi_0/kernel": "mlp/wi_0/kernel",
    "feed_forward/wi_1/kernel": "mlp/wi_1/kernel",
}
UNGATED = {"feed_forward/wi_0/kernel": "mlp/wi/kernel"}


@dataclass(frozen=True)
class _Heads:
    """Where an attention kernel with axes of its own for heads and head_dim has them."""

    axis: int  # of the heads, and of the two merged
    inner: int  # of head_dim
    head_dim: int


class MergedHeads:
    """A checkpoint's tensors, attention kernels always as matrices.

    Some are kept as [width, heads, head_dim], out's as [heads, head_dim, width]; where the layers
    are scanned, with these on axis 1.
    """

    def __init__(self, files: TensorSource, scanned: bool):
        self._files = files
        self._scanned = scanned

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def dtype(self, tensor: str) -> np.dtype:
        return self._files.dtype(tensor)

    def heads(self, tensor: str) -> _Heads | None:
        shape = self._files.shape(tensor)
        axes = len(shape)
        if "/attention/" not in tensor or axes != 3 + self._scanned:
            return None
        if tensor.endswith("/out/kernel"):
            return _Heads(0, axes - 2, shape[axes - 2])
        return _Heads(axes - 2, axes - 1, shape[axes - 1])

    def shape(self, tensor: str) -> tuple[int, ...]:
        shape, heads = list(self._files.shape(tensor)), self.heads(tensor)
        if heads is not None:
            shape[heads.axis] *= heads.head_dim
            del shape[heads.inner]
        return tuple(shape)

    def read(self, tensor: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` (a slice with bounds for each axis) selects."""
        heads = self.heads(tensor)
        if heads is None:
            return self._files.read(tensor, index)
        theirs = list(index or (slice(0, size) for size in self.shape(tensor)))
        wanted = theirs[heads.axis]
        first, last = wanted.start // heads.head_dim, -(-wanted.stop // heads.head_dim)
        theirs[heads.axis] = slice(first, last)
        theirs.insert(heads.inner, slice(0, heads.head_dim))
        value = np.moveaxis(self._files.read(tensor, tuple(theirs)), heads.inner, heads.axis + 1)
        shape = list(value.shape)
        shape[heads.axis : heads.axis + 2] = [-1]
        start = wanted.start - first * heads.head_dim
        trim = slice(start, start + wanted.stop - wanted.start)
        return value.reshape(shape)[(slice(None),) * heads.axis + (trim,)]


def checkpoint_layout(config: t5.T5Config, scanned: bool) -> Layout:
    """Where each parameter of the encoder is in a T5X checkpoint."""
    layer = LAYER_TENSORS | (GATED if config.gated else UNGATED)
    if config.bias_in_every_layer:
        layer["relative_bias/embedding"] = BIAS
    # [in, layers, out] to [layers, in, out]; the bias is [heads, layers, buckets].
    axes = {"kernel": (1, 0, 2), "scale": (1, 0), "embedding": (1, 2, 0)}
    layout = {}
    for ours, theirs in layer.items():
        if scanned:
            kind = ours.rpartition("/")[2]
            layout[f"layers/{ours}"] = Tensors((SCANNED + theirs,), axes[kind])
        else:
            names = tuple(f"encoder/layers_{i}/{theirs}" for i in range(config.num_layers))
            turned = (1, 0) if ours.startswith("relative_bias") else None
            layout[f"layers/{ours}"] = Tensors(names, turned, "stack")
    if not config.bias_in_every_layer:
        layout["relative_bias/embedding"] = Tensors((SHARED_BIAS,), (1, 0))
    layout["token_embedding"] = Tensors((EMBEDDING,))
    layout["final_norm/scale"] = Tensors(("encoder/encoder_norm/scale",))
    return layout


def _shape(files: TensorSource, names: set[str], name: str, axes: int) -> tuple[int, ...]:
    if name not in names:
        raise ValueError(f"it has no {name}, from which the encoder's sizes are read")
    shape = files.shape(name)
    if len(shape) != axes:
        raise ValueError(f"{name} has the shape {shape}, not {axes} axes")
    return shape


def config_from_tensors(files: TensorSource, scanned: bool, **overrides: Any) -> t5.T5Config:
    """The sizes of an encoder from the shapes in its checkpoint.

    Shapes do not tell the relative distance from which on all share a bucket (T5: 128), the norms'
    epsilon (1e-6), and the activation (gelu where it is gated, as in T5 v1.1 and its kin, else
    relu, as in T5 1.0); `overrides` are fields of T5Config for where these are others.
    """
    merged, names = MergedHeads(files, scanned), set(files)
    numbers = {int(match[1]) for name in names if (match := LAYER.match(name))}
    first = SCANNED if scanned else "encoder/layers_0/"
    axes = 3 if scanned else 2
    vocab_size, d_model = _shape(files, names, EMBEDDING, 2)
    query = _shape(merged, names, first + "attention/query/kernel", axes)
    gated = first + "mlp/wi_0/kernel" in names
    wi = _shape(files, names, first + ("mlp/wi_0/kernel" if gated else "mlp/wi/kernel"), axes)
    shared = SHARED_BIAS in names
    bias = _shape(files, names, SHARED_BIAS if shared else first + BIAS, 2 if shared else axes)
    heads, buckets = bias[0], bias[-1]
    if heads < 1 or query[-1] % heads:
        raise ValueError(
            f"the relative bias is for {heads} heads, which do not divide the attention's width "
            f"{query[-1]}"
        )
    num_layers = query[1] if scanned else max(numbers) + 1
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_heads": heads,
        "head_dim": query[-1] // heads,
        "num_layers": num_layers,
        "d_ff": wi[-1],
        "num_buckets": buckets,
    }
    for name, size in sizes.items():
        limit = MAX_LAYERS if name == "num_layers" else MAX_SIZE
        if not 1 <= size <= limit:
            raise ValueError(f"its shapes make {name} {size}; 1 to {limit} are allowed")
    fields = {
        "activation": "gelu" if gated else "relu",
        "gated": gated,
        "bias_in_every_layer": not shared,
    }
    return t5.T5Config(**(sizes | fields | overrides))


def _open(path: Path) -> tuple[T5XTensors, bool]:
    """A checkpoint's tensors, and whether its layers are scanned."""
    if not (path / CHECKPOINT).is_file():
        steps = sorted(step.name for step in path.glob("checkpoint_*") if step.is_dir())
        hint = f"; give one of its steps, such as {path / steps[-1]}" if steps else ""
        raise FileNotFoundError(f"{path} has no file {CHECKPOINT!r} of T5X{hint}.")
    files = T5XTensors(path)
    return files, any(name.startswith(SCANNED) for name in files)


def _config(path: Path, files: TensorSource, scanned: bool, **overrides: Any) -> t5.T5Config:
    try:
        return config_from_tensors(files, scanned, **overrides)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of a T5 encoder: {error}.") from None


def read_t5x_config(directory: str | os.PathLike, **overrides: Any) -> t5.T5Config:
    """The encoder's sizes alone; arguments and errors as of `load_t5x`."""
    return _config(Path(directory), *_open(Path(directory)), **overrides)


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
        sharding: where each parameter shall lie; None gives numpy arrays.
        overrides: fields of T5Config that shapes do not tell (see `config_from_tensors`), or
            `dtype` and `remat`.

    Raises:
        FileNotFoundError: the folder has no checkpoint, or lacks an array.
        ValueError: it is damaged, asks for files elsewhere, or is no encoder of this kind.
    """
    path = Path(directory)
    files, scanned = _open(path)
    config = _config(path, files, scanned, **overrides)
    params = read_layout(
        checkpoint_layout(config, scanned),
        MergedHeads(files, scanned),
        encoder_shapes(config),
        dtype=dtype,
        sharding=sharding,
        where=str(path),
    )
    return config, params
