"""The weights of FID's Inception to the parameters of `imagen_jax.models.inception`.

From the state dict that pytorch-fid and torch-fidelity distribute, or from TensorFlow's graph file
of 2015-12-05 (classify_image_graph_def.pb). Batch normalization is folded into the convolutions.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from imagen_jax.convert.frozen_graph import read_constants
from imagen_jax.models import inception
from imagen_jax.storage.layout import CONVOLUTION, LINEAR, Layout, Tensors, affine
from imagen_jax.storage.layout_files import read_layout
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.typing import Params

# Ours -> PyTorch's, TensorFlow's.
NORM = {
    "gamma": ("weight", "gamma"),
    "beta": ("bias", "beta"),
    "mean": ("running_mean", "moving_mean"),
    "variance": ("running_var", "moving_variance"),
}
COUNTER = ".num_batches_tracked"  # of PyTorch's batch normalization; of no use here

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
# The blocks of each kind ("7bc": Mixed_7b and Mixed_7c): their convolutions by PyTorch's name, and
# the end of TensorFlow's.
KINDS = {
    "5bcd": {
        "branch1x1": "conv",
        "branch5x5_1": "tower/conv",
        "branch5x5_2": "tower/conv_1",
        "branch3x3dbl_1": "tower_1/conv",
        "branch3x3dbl_2": "tower_1/conv_1",
        "branch3x3dbl_3": "tower_1/conv_2",
        "branch_pool": "tower_2/conv",
    },
    "6a": {
        "branch3x3": "conv",
        "branch3x3dbl_1": "tower/conv",
        "branch3x3dbl_2": "tower/conv_1",
        "branch3x3dbl_3": "tower/conv_2",
    },
    "6bcde": {
        "branch1x1": "conv",
        "branch7x7_1": "tower/conv",
        "branch7x7_2": "tower/conv_1",
        "branch7x7_3": "tower/conv_2",
        "branch7x7dbl_1": "tower_1/conv",
        "branch7x7dbl_2": "tower_1/conv_1",
        "branch7x7dbl_3": "tower_1/conv_2",
        "branch7x7dbl_4": "tower_1/conv_3",
        "branch7x7dbl_5": "tower_1/conv_4",
        "branch_pool": "tower_2/conv",
    },
    "7a": {
        "branch3x3_1": "tower/conv",
        "branch3x3_2": "tower/conv_1",
        "branch7x7x3_1": "tower_1/conv",
        "branch7x7x3_2": "tower_1/conv_1",
        "branch7x7x3_3": "tower_1/conv_2",
        "branch7x7x3_4": "tower_1/conv_3",
    },
    "7bc": {
        "branch1x1": "conv",
        "branch3x3_1": "tower/conv",
        "branch3x3_2a": "tower/mixed/conv",
        "branch3x3_2b": "tower/mixed/conv_1",
        "branch3x3dbl_1": "tower_1/conv",
        "branch3x3dbl_2": "tower_1/conv_1",
        "branch3x3dbl_3a": "tower_1/mixed/conv",
        "branch3x3dbl_3b": "tower_1/mixed/conv_1",
        "branch_pool": "tower_2/conv",
    },
}
BLOCKS = {f"Mixed_{kind[0]}{letter}": names for kind, names in KINDS.items() for letter in kind[1:]}


def convolutions() -> Iterator[tuple[str, str]]:
    """Each convolution's name here (PyTorch's, dots as slashes) and TensorFlow's, which numbers
    them: conv, conv_1, ..., mixed, mixed_1, ...
    """
    for number, name in enumerate(STEM):
        yield name, f"conv_{number}".removesuffix("_0")
    for number, (block, names) in enumerate(BLOCKS.items()):
        for ours, theirs in names.items():
            yield f"{block}/{ours}", f"{f'mixed_{number}'.removesuffix('_0')}/{theirs}"


def pytorch_layout() -> Layout:
    """Where each parameter, before folding, is in a state dict."""
    layout = affine("fc", ["fc"], LINEAR)
    for ours, _ in convolutions():
        theirs = ours.replace("/", ".")
        layout[f"{ours}/kernel"] = Tensors((f"{theirs}.conv.weight",), CONVOLUTION)
        layout |= {
            f"{ours}/{name}": Tensors((f"{theirs}.bn.{at[0]}",)) for name, at in NORM.items()
        }
    return layout


def graph_layout() -> Layout:
    """Where each parameter, before folding, is among the graph's constants."""
    layout = {"fc/kernel": Tensors(("softmax/weights",)), "fc/bias": Tensors(("softmax/biases",))}
    for ours, theirs in convolutions():
        layout[f"{ours}/kernel"] = Tensors((f"{theirs}/conv2d_params",))
        norm = f"{theirs}/batchnorm"
        layout |= {f"{ours}/{name}": Tensors((f"{norm}/{at[1]}",)) for name, at in NORM.items()}
    return layout


@functools.cache
def inception_shapes() -> Params:
    """The tree of the network's parameters, as shapes."""
    return jax.eval_shape(inception.init, jax.random.key(0))


def unfolded_shapes() -> Params:
    """The same before folding, with the four vectors of each batch normalization."""
    shapes = flatten(inception_shapes())
    for ours, _ in convolutions():
        bias = shapes.pop(f"{ours}/bias")
        shapes |= {f"{ours}/{name}": bias for name in NORM}
    return unflatten(shapes)


def _fold(params: Params) -> Params:
    """Batch normalization into kernels and biases, in float64."""
    flat = flatten(params)
    for ours, _ in convolutions():
        gamma, beta, mean, variance = (flat.pop(f"{ours}/{name}").astype(float) for name in NORM)
        if not (variance >= 0).all():
            raise ValueError(f"{ours} has a negative variance: these are not trained weights.")
        scale = gamma / np.sqrt(variance + inception.NORM_EPS)
        flat[f"{ours}/kernel"] = (flat[f"{ours}/kernel"].astype(float) * scale).astype(np.float32)
        flat[f"{ours}/bias"] = (beta - mean * scale).astype(np.float32)
    return unflatten(flat)


def params_from_pytorch(state: Mapping[str, Any], where: str = "The state dict") -> Params:
    """float32 parameters from the arrays of a state dict.

    Raises:
        ValueError: tensors are missing, unused or misshapen; the message lists them.
    """
    arrays = {name: array for name, array in state.items() if not name.endswith(COUNTER)}
    return _fold(read_layout(pytorch_layout(), arrays, unfolded_shapes(), where=where))


def params_from_graph(path: str | os.PathLike) -> Params:
    """float32 parameters from TensorFlow's graph file.

    Raises:
        ValueError: it is damaged, or constants are missing, unused or misshapen.
    """
    # Numbers by themselves are the graph's own, such as the 128 that images are divided by.
    constants = {name: array for name, array in read_constants(path).items() if array.ndim}
    return _fold(read_layout(graph_layout(), constants, unfolded_shapes(), where=os.fspath(path)))
