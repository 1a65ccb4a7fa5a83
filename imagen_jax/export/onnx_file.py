"""jax functions as ONNX files."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import GraphProto, helper

from imagen_jax.export.directory import check_parts, write_export
from imagen_jax.export.onnx_graph import Graph, Sizes, Value, constant, fixed, info
from imagen_jax.export.onnx_program import run
from imagen_jax.export.parts import CASCADE, Part
from imagen_jax.export.small_weights import graphs, with_small_weights
from imagen_jax.pipeline.lazy_params import as_lazy
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.codec import require
from imagen_jax.storage.quantized import schemes_in

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
    traced = jax.make_jaxpr(function)(**inputs)
    # jax sorts what is given by name.
    names = sorted(inputs)
    symbols = sorted(
        {s for shape in inputs.values() for d in shape.shape if not fixed(d) for s in symbols_of(d)}
    )
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
    """The names of sizes in a symbolic dimension."""
    return [
        word
        for word in re.findall(r"[A-Za-z_]\w*", str(dim))
        if word not in ("max", "min", "floordiv", "mod")
    ]


def read_sizes(graph: Graph, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, str]:
    """Each symbol's size at run time, from an input that has an axis of that size."""
    found = {}
    for name, shape in inputs.items():
        for axis, dim in enumerate(shape.shape):
            if str(dim) in graph.sizes.symbols and str(dim) not in found:
                (found[str(dim)],) = graph.add("Shape", [name], start=axis, end=axis + 1)
    return found


def export_onnx(
    pipeline: Pipeline,
    directory: str | Path,
    parts: Sequence[str] | None = None,
    dtype: str = "float32",
    opset: int = OPSET,
) -> list[Path]:
    """Writes a cascade as ONNX: a file a part, `export.json`, the tokenizer, and a script that
    makes images from them. Returns the parts' files.

    Args:
        parts: of `export.parts.part_names`; all when None.
        dtype: of the weights and of the networks' arithmetic; inputs and outputs are float32. Norms
            and softmax stay float32, as does the arithmetic of the text encoder. "int8": of the
            weights alone (`small_weights`), with all arithmetic in float32.

    Raises:
        ValueError: an unknown part, dtype or opset; kernels are in int8_dynamic.
    """
    newest = onnx.defs.onnx_opset_version()
    require(
        (opset >= LEAST_OPSET, f"opset {opset} is too low; an export needs {LEAST_OPSET} or more"),
        (opset <= newest, f"opset {opset} is unknown to onnx {onnx.__version__}: {newest} at most"),
    )
    parts = check_parts(pipeline.cascade, parts, dtype)
    refuse_dynamic(pipeline, parts)

    def write(part: Part, path: Path, metadata: dict[str, str]) -> None:
        model = to_onnx(part.function, part.inputs, part.outputs, opset)
        if dtype != "float32":
            model = with_small_weights(model, dtype)
        helper.set_model_props(model, metadata | {"part": part.name, "opset": str(opset)})
        save(model, path)

    made_with = {"format": "onnx", "opset": opset, "onnx": onnx.__version__, "jax": jax.__version__}
    return write_export(pipeline, Path(directory), parts, dtype, made_with, ".onnx", write)


def refuse_dynamic(pipeline: Pipeline, parts: Sequence[str]) -> None:
    """ValueError where a part has kernels in int8_dynamic, whose products ONNX has not."""
    params = as_lazy(pipeline.params)
    for name in params:
        needed = {CASCADE, name, f"{name}_network", f"{name}_steps"} & set(parts)
        if needed and "int8_dynamic" in schemes_in(params.shapes(name)):
            raise ValueError(
                f"{name} is quantized to int8_dynamic, which has no ONNX form; export the float "
                "model with --dtype int8, or as stablehlo"
            )


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model, with its weights in a file beside it where they are near protobuf's 2 GB."""
    beside = path.with_name(f"{path.name}.data")
    path.unlink(missing_ok=True)
    beside.unlink(missing_ok=True)
    if weight_bytes(model.graph) <= LARGEST:
        onnx.save(model, path)
        return
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=beside.name,
        size_threshold=1024,
    )


def weight_bytes(graph: GraphProto) -> int:
    """The bytes of all weights of a graph and those within it."""
    return sum(len(tensor.raw_data) for each in graphs(graph) for tensor in each.initializer)
