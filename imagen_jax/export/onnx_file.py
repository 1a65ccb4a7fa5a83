"""jax functions as ONNX files."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper

from imagen_jax.export.onnx_graph import Graph, Sizes, Value, constant, fixed, info
from imagen_jax.export.onnx_program import run

LEAST_OPSET, OPSET = 18, 20  # reductions take their axes as an input from 18 on
LARGEST = 1.5e9  # bytes of a file with its weights; protobuf's limit is 2 GB


def to_onnx(
    function: Callable,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    outputs: Sequence[str],
    opset: int = OPSET,
) -> onnx.ModelProto:
    """The function of arrays by name, as an ONNX model; it gives arrays in the order of `outputs`.

    Args:
        inputs: shapes, in which sizes may be symbols of `jax.export.symbolic_shape`.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(**inputs)
    # jax sorts what is given by name.
    names = sorted(inputs)
    symbols = sorted({s for shape in inputs.values() for d in shape.shape if not fixed(d) for s in symbols_of(d)})
    graph = Graph(Sizes(symbols))
    values = []
    for name in names:
        shape = inputs[name]
        graph.inputs.append(info(name, shape.shape, shape.dtype))
        plain = tuple(range(len(shape.shape)))
        values.append(Value(tuple(shape.shape), np.dtype(shape.dtype), name, None, plain))
    graph.symbols = read_sizes(graph, inputs)
    consts = [constant(np.asarray(value)) for value in traced.consts]
    results = run(graph, traced.jaxpr, consts, values)
    made = []
    for name, value in zip(outputs, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.named(value)], [name]))
        made.append(info(name, value.shape, value.dtype))
    proto = graph.proto("imagen_jax", made)
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", opset)], producer_name="imagen_jax"
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import, True)
    return model


def symbols_of(dim: Any) -> list[str]:
    import re

    return [word for word in re.findall(r"[A-Za-z_]\w*", str(dim)) if word not in ("max", "min", "floordiv", "mod")]


def read_sizes(graph: Graph, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, str]:
    """Each symbol's size at run time, from an input that has an axis of that size."""
    found = {}
    for name, shape in inputs.items():
        for axis, dim in enumerate(shape.shape):
            if str(dim) in graph.sizes.symbols and str(dim) not in found:
                (found[str(dim)],) = graph.add("Shape", [name], start=axis, end=axis + 1)
    return found
