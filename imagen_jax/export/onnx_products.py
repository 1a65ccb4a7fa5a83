"""Sums, products and convolutions of jax in an ONNX graph."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from imagen_jax.export.onnx_elementwise import Rule, cast
from imagen_jax.export.onnx_graph import Graph, Value
from imagen_jax.export.onnx_shapes import reshaped, transposed


def reduction(op: str) -> Rule:
    def rule(graph, eqn, x):
        return reduced(graph, op, x, list(map(int, eqn.params["axes"])), eqn.outvars[0].aval)

    return rule


def reduced(graph: Graph, op: str, x: Value, axes: Sequence, aval: Any) -> Value:
    if not axes:
        return x
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = [rest.index(axis) for axis in x.order if axis in rest]
    where = graph.initializer(np.array(sorted(x.order.index(axis) for axis in axes), np.int64))
    return graph.emit(op, [graph.named(x, x.order), where], aval, order, keepdims=0)


def any_or_all(op: str) -> Rule:
    def rule(graph, eqn, x):
        aval = eqn.outvars[0].aval
        number = jax.ShapeDtypeStruct(aval.shape, np.int32)
        found = reduced(graph, op, cast(graph, x, np.int32), eqn.params["axes"], number)
        return cast(graph, found, bool)

    return rule


def convolution(graph, eqn, x, kernel):
    params, aval = eqn.params, eqn.outvars[0].aval
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise NotImplementedError("a transposed convolution")
    padding = params["padding"]
    names = [graph.named(x, numbers.lhs_spec), graph.named(kernel, numbers.rhs_spec)]
    return graph.emit(
        "Conv",
        names,
        aval,
        numbers.out_spec,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[low for low, _ in padding] + [high for _, high in padding],
    )


def dot_general(graph, eqn, a, b):
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    aval = eqn.outvars[0].aval
    if len(a_sum) == 1 and not a_batch and b.array is not None and len(b.shape) == 2:
        return dense(graph, a, a_sum[0], transposed(b, (b_sum[0], 1 - b_sum[0])), aval)

    def matrices(value, batch, summed, sum_last):
        free = [i for i in range(len(value.shape)) if i not in (*batch, *summed)]
        axes = (*batch, *free, *summed) if sum_last else (*batch, *summed, *free)
        moved = transposed(value, axes)
        sizes = [[value.shape[i] for i in part] for part in (batch, free, summed)]
        row, column = math.prod(sizes[1]), math.prod(sizes[2])
        ends = (row, column) if sum_last else (column, row)
        return reshaped(graph, moved, (*sizes[0], *ends)), sizes

    left, (batch, rows, _) = matrices(a, a_batch, a_sum, True)
    right, (_, columns, _) = matrices(b, b_batch, b_sum, False)
    shape = (*batch, math.prod(rows), math.prod(columns))
    product = matmul(graph, left, right, jax.ShapeDtypeStruct(shape, left.dtype))
    return cast(graph, reshaped(graph, product, aval.shape), aval.dtype)


def matmul(graph: Graph, a: Value, b: Value, aval: Any) -> Value:
    """a @ b, or its transpose as b' @ a', whichever moves fewer numbers."""
    plain = tuple(range(len(aval.shape)))
    turned = (*plain[:-2], plain[-1], plain[-2])

    def cost(order):
        return sum(
            graph.count(value) for value in (a, b) if value.array is None and value.order != order
        )

    if cost(turned) < cost(plain):
        return graph.emit("MatMul", [graph.named(b, turned), graph.named(a, turned)], aval, turned)
    return graph.emit("MatMul", [graph.named(a), graph.named(b)], aval)


def dense(graph: Graph, x: Value, axis: int, kernel: Value, aval: Any) -> Value:
    """A dense layer; where channels lie before space, as a convolution of one pixel."""
    rest = [i for i in range(len(x.shape)) if i != axis]
    last = len(x.shape) - 1
    place = {old: new for new, old in enumerate((*rest, axis))}  # channels are last in the result
    if x.array is None and len(x.shape) in (3, 4) and x.order.index(axis) == 1:
        ones = (1,) * (len(x.shape) - 2)
        weights = graph.initializer(
            np.broadcast_to(kernel.array, kernel.shape).T.reshape(*kernel.shape[::-1], *ones)
        )
        out = jax.ShapeDtypeStruct(aval.shape, x.dtype)
        order = [place[i] for i in x.order]
        return cast(
            graph, graph.emit("Conv", [graph.named(x, x.order), weights], out, order), aval.dtype
        )
    order = x.order if x.order[-1] == axis else (*rest, axis)
    names = [graph.named(x, order), graph.named(kernel)]
    out = jax.ShapeDtypeStruct(aval.shape, x.dtype)
    order = [place[i] for i in order] if last else [0]
    return cast(graph, graph.emit("MatMul", names, out, order), aval.dtype)
