"""Weights of an ONNX model in few bytes: all in float16, or of these the large kernels in int8.

They are stored so, and converted where the file is loaded: ONNX Runtime folds the conversions into
constants, so that the model computes in float32, as fast as before. Kernels of fewer numbers than
LEAST are those next to the image, where rounding shows most, and they weigh little: in the shipped
super-resolution stage they are a tenth of all weights, and an output at t = 0.95 that is off by 8 %
(relative L2) with all kernels in int8 is off by 1 % with these in float16.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEAST = 65_536  # numbers of a kernel that is stored in int8
LEAST_HALF = 1_024  # and of an array that is stored in float16
LARGEST_HALF = 65_504.0


def with_small_weights(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """A copy of a model of float32 with its weights in "float16", or in "int8" and float16. Small
    arrays, and those with numbers that float16 does not hold, stay float32.

    In int8, an output channel, the first axis of convolutions or the last of matrices, has a scale
    of its own; stacked matrices, of three axes, have one for each. Weights that came from int8 so
    scaled become the same numbers again.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for graph in reversed(graphs(made.graph)):  # a graph is copied with those within it
        stored, conversions = [], []
        for tensor in graph.initializer:
            arrays, nodes = _stored(tensor, dtype)
            stored += arrays
            conversions += nodes
        nodes = [*conversions, *graph.node]
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend(stored)
        graph.node.extend(nodes)
    return made


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and those within its loops and branches."""
    inner = [
        a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH
    ]
    return [graph, *(found for each in inner for found in graphs(each))]


def _stored(tensor: TensorProto, dtype: str) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    """What is stored of a weight, and the nodes that make it of that under the weight's name."""
    name, values = tensor.name, numpy_helper.to_array(tensor)
    largest = np.max(np.abs(values), initial=0.0) if values.dtype == np.float32 else np.inf
    if values.size < LEAST_HALF or not largest <= LARGEST_HALF:
        return [tensor], []
    if dtype == "float16" or values.ndim < 2 or values.size < LEAST:
        half = numpy_helper.from_array(values.astype(np.float16), f"{name}_float16")
        return [half], [helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT)]
    numbers, scales = quantized(values)
    arrays = {f"{name}_int8": numbers, f"{name}_scales": scales}
    return [numpy_helper.from_array(array, key) for key, array in arrays.items()], [
        helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_scales"], [name]),
    ]


def quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 numbers, float32 scales) whose product is nearest to an array, of the choices there
    are: which axis has the scales, and whether 127 or -128 stands for the largest number.
    """
    channels = [(0, 2)] if values.ndim == 3 else [(0,), (values.ndim - 1,)]
    found = [_quantized(values, kept) for kept in channels]
    return min(found, key=lambda pair: np.sum(np.square(pair[0] * pair[1] - values)))


def _quantized(values: np.ndarray, kept: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The same with a scale for each place along the axes in `kept`."""
    summed = tuple(axis for axis in range(values.ndim) if axis not in kept)
    largest = np.max(np.abs(values), axis=summed, keepdims=True)
    choices = []
    for limit in (127.0, 128.0):
        scales = np.where(largest > 0.0, largest / limit, 1.0).astype(np.float32)
        numbers = np.clip(np.rint(values / scales), -128, 127).astype(np.int8)
        error = np.sum(np.square(numbers * scales - values), axis=summed, keepdims=True)
        choices.append((numbers, scales, error))
    (first, scales, error), (second, other, other_error) = choices
    better = other_error < error
    return np.where(better, second, first), np.where(better, other, scales)
