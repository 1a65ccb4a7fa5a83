"""Elementwise operations of jax in an ONNX graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from onnx import helper

from imagen_jax.export.onnx_graph import Graph, Value, constant, fixed

Rule = Callable[..., Value | list[Value]]  # (graph, equation, *values): what it gives


def elementwise(
    graph: Graph, op: str, values: Sequence[Value], aval: Any, **attributes: Any
) -> Value:
    """An operation on arrays of one shape, or on such and numbers, in the order of the largest."""
    full = [value for value in values if len(value.shape) == len(aval.shape)]
    plain = tuple(range(len(aval.shape)))
    rank = [(value.array is None, graph.count(value), value.order != plain) for value in full]
    order = full[rank.index(max(rank))].order if full else plain
    names = [
        graph.named(v, order if len(v.shape) == len(order) else None, whole=False) for v in values
    ]
    ones = [{i for i in plain if str(v.held(i)) == "1"} for v in full]
    spread = frozenset(i for i in set.intersection(*ones, set(plain)) if str(aval.shape[i]) != "1")
    return graph.emit(op, names, aval, order, spread, **attributes)


def simple(op: str, **attributes: Any) -> Rule:
    return lambda graph, eqn, *values: elementwise(
        graph, op, values, eqn.outvars[0].aval, **attributes
    )


def number(value: Any, like: Value) -> Value:
    return constant(np.asarray(value, like.dtype))


def by_kind(of_bool: str, other: str) -> Rule:
    def rule(graph, eqn, *values):
        op = of_bool if values[0].dtype == bool else other
        return elementwise(graph, op, values, eqn.outvars[0].aval)

    return rule


def chain(build: Callable) -> Rule:
    """A formula of one argument: build(op, x), op(name, *values) an elementwise operation."""

    def rule(graph, eqn, *values):
        aval = eqn.outvars[0].aval
        return build(lambda op, *args: elementwise(graph, op, args, aval), *values)

    return rule


def not_equal(graph, eqn, a, b):
    aval = eqn.outvars[0].aval
    return elementwise(graph, "Not", [elementwise(graph, "Equal", [a, b], aval)], aval)


def is_finite(graph, eqn, x):
    aval = eqn.outvars[0].aval
    wrong = [elementwise(graph, op, [x], aval) for op in ("IsNaN", "IsInf")]
    return elementwise(graph, "Not", [elementwise(graph, "Or", wrong, aval)], aval)


def integer_pow(graph, eqn, x):
    power, aval = eqn.params["y"], eqn.outvars[0].aval
    if power == 2:
        return elementwise(graph, "Mul", [x, x], aval)
    return elementwise(graph, "Pow", [x, number(power, x)], aval)


def select(graph, eqn, which, *cases):
    if len(cases) != 2 or which.dtype != bool:
        raise NotImplementedError("a choice between more than two arrays")
    aval = eqn.outvars[0].aval
    if aval.dtype == bool:  # which ONNX Runtime's Where does not know
        other = jax.ShapeDtypeStruct(which.shape, bool)
        no = elementwise(graph, "Not", [which], other)
        chosen = [
            elementwise(graph, "And", pair, aval) for pair in zip((no, which), cases, strict=True)
        ]
        return elementwise(graph, "Or", chosen, aval)
    return elementwise(graph, "Where", [which, cases[1], cases[0]], aval)


def clamp(graph, eqn, low, x, high):
    aval = eqn.outvars[0].aval
    return elementwise(graph, "Min", [elementwise(graph, "Max", [x, low], aval), high], aval)


def cast(graph: Graph, value: Value, dtype: Any) -> Value:
    dtype = np.dtype(dtype)
    if value.dtype == dtype:
        return value
    if value.array is not None:
        return replace(value, array=value.array.astype(dtype), dtype=dtype)
    to = helper.np_dtype_to_tensor_dtype(dtype)
    aval = jax.ShapeDtypeStruct(value.shape, dtype)
    return graph.emit("Cast", [value.name], aval, value.order, value.spread, to=to)


@dataclass(frozen=True, eq=False)
class Bits(Value):
    """The bits of a float, of which only the sign can be read, by `sign_mask`."""

    of: Value | None = None


def bits(graph, eqn, x):
    if (x.dtype, eqn.params["new_dtype"]) != (np.float32, np.int32):
        raise NotImplementedError("bits of anything but float32 as int32")
    return Bits(x.shape, np.dtype(np.int32), of=x)


def sign_mask(graph, eqn, x, shift):
    """-1 where a float is negative, else 0: its bits, shifted until the sign alone is left."""
    if not isinstance(x, Bits) or shift.array is None or np.any(shift.array != 31):
        raise NotImplementedError("a shift to the right that is not of a float's sign")
    x, of_bool = x.of, jax.ShapeDtypeStruct(x.shape, bool)
    negative = elementwise(graph, "Less", [x, number(0, x)], of_bool)
    return elementwise(graph, "Neg", [cast(graph, negative, np.int32)], eqn.outvars[0].aval)


def rounding(graph, eqn, x):
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise NotImplementedError("rounding other than to the nearest even number")
    return elementwise(graph, "Round", [x], eqn.outvars[0].aval)


def logistic(graph, eqn, x):
    """Of a schedule by exp: ONNX Runtime's Sigmoid is exact to 1e-7, and smaller numbers count."""
    aval = eqn.outvars[0].aval
    if any(fixed(dim) and dim > 1 for dim in aval.shape):
        return elementwise(graph, "Sigmoid", [x], aval)
    power = elementwise(graph, "Exp", [elementwise(graph, "Neg", [x], aval)], aval)
    return elementwise(
        graph, "Reciprocal", [elementwise(graph, "Add", [power, number(1, x)], aval)], aval
    )


def sine(graph, eqn, x):
    """Small angles by the series: OpenVINO's Sin is exact to 1e-7, and schedules take its log."""
    aval = eqn.outvars[0].aval

    def op(name: str, *values: Value) -> Value:
        return elementwise(graph, name, values, aval)

    square, series = op("Mul", x, x), number(1 / 362880, x)
    for divisor in (-5040, 120, -6, 1):
        series = op("Add", op("Mul", series, square), number(1 / divisor, x))
    small = jax.ShapeDtypeStruct(aval.shape, bool)
    near = elementwise(graph, "Less", [op("Abs", x), number(0.5, x)], small)
    return op("Where", near, op("Mul", series, x), op("Sin", x))


def keep(graph, eqn, *values):
    return list(values)
