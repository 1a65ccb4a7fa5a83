"""A jax function as an ONNX graph: what each of jax's operations is there.

The function is traced, and what follows from its constants alone is computed now. Functions within
it become part of the graph, loops `Loop` and conditions `If`; a scan is unrolled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.extend import core
from onnx import TensorProto, helper

from imagen_jax.export.onnx_graph import Graph, Value, constant, fixed, info

Outputs = Value | list[Value]
Rule = Callable[..., Outputs]  # (graph, equation, *values): what it gives


# ------------------------------------------------------------------------------------- the program


def run(graph: Graph, jaxpr: core.Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    """Writes a program into the graph; its results."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom: Any) -> Value:
        return constant(np.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = equation(graph, eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def equation(graph: Graph, eqn: core.JaxprEqn, operands: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name not in RULES:
        raise NotImplementedError(f"there is no ONNX form of jax's operation {name!r}")
    foldable = name not in STRUCTURE and all(value.array is not None for value in operands)
    if foldable and all(fixed(dim) for var in eqn.outvars for dim in var.aval.shape):
        return folded(eqn, operands)
    results = RULES[name](graph, eqn, *operands)
    return results if isinstance(results, list) else [results]


def folded(eqn: core.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """An operation on constants, done now."""
    arrays = [np.broadcast_to(value.array, value.shape) for value in operands]
    with jax.ensure_compile_time_eval():
        results = eqn.primitive.bind(*arrays, **eqn.params)
    return list(map(constant, results if eqn.primitive.multiple_results else [results]))


def inlined(parameter: str) -> Rule:
    """A function that is called: the program that this parameter holds."""

    def rule(graph: Graph, eqn: core.JaxprEqn, *operands: Value) -> list[Value]:
        inner = eqn.params[parameter]
        closed = isinstance(inner, core.ClosedJaxpr)
        consts = list(map(constant, inner.consts)) if closed else []
        return run(graph, inner.jaxpr if closed else inner, consts, operands)

    return rule


# ------------------------------------------------------------------------------------- elementwise


def elementwise(graph: Graph, op: str, values: Sequence[Value], aval: Any, **attributes: Any) -> Value:
    """An operation on arrays of one shape, or on such and numbers, in the order of the largest."""
    full = [value for value in values if len(value.shape) == len(aval.shape)]
    plain = tuple(range(len(aval.shape)))
    rank = [(value.array is None, graph.count(value), value.order != plain) for value in full]
    order = full[rank.index(max(rank))].order if full else plain
    names = [graph.named(v, order if len(v.shape) == len(order) else None, whole=False) for v in values]
    spread = frozenset.intersection(*(v.spread for v in full)) if full else frozenset()
    # A number of another rank has all axes of length 1.
    if len(full) < len(values) and not full:
        spread = frozenset()
    return graph.emit(op, names, aval, order, spread, **attributes)


def simple(op: str, **attributes: Any) -> Rule:
    return lambda graph, eqn, *values: elementwise(graph, op, values, eqn.outvars[0].aval, **attributes)


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
    least = elementwise(graph, "Abs", [x], jax.ShapeDtypeStruct(aval.shape, x.dtype))
    return elementwise(graph, "LessOrEqual", [least, number(np.finfo(x.dtype).max, x)], aval)


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
        chosen = [elementwise(graph, "And", pair, aval) for pair in zip((no, which), cases)]
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


def sign_mask(graph, eqn, x):
    """-1 where a float is negative, else 0: all that is read of its bits is the sign."""
    negative = elementwise(graph, "Less", [x, number(0, x)], jax.ShapeDtypeStruct(x.shape, bool))
    minus = elementwise(graph, "Neg", [cast(graph, negative, np.int32)], eqn.outvars[0].aval)
    return minus


def logistic(graph, eqn, x):
    """Of numbers such as a schedule's by exp: Sigmoid is exact to 1e-7, and so not for small ones."""
    aval = eqn.outvars[0].aval
    if any(fixed(dim) and dim > 1 for dim in aval.shape):
        return elementwise(graph, "Sigmoid", [x], aval)
    power = elementwise(graph, "Exp", [elementwise(graph, "Neg", [x], aval)], aval)
    return elementwise(
        graph, "Reciprocal", [elementwise(graph, "Add", [power, number(1, x)], aval)], aval
    )


def keep(graph, eqn, *values):
    return list(values)


# ------------------------------------------------------------------------------------------ shapes


def transpose(graph, eqn, x):
    return transposed(x, tuple(map(int, eqn.params["permutation"])))


def transposed(x: Value, permutation: Sequence[int]) -> Value:
    place = {axis: i for i, axis in enumerate(permutation)}
    shape = tuple(x.shape[axis] for axis in permutation)
    spread = frozenset(place[axis] for axis in x.spread)
    if x.array is not None:
        plain = tuple(range(len(shape)))
        return Value(shape, x.dtype, None, np.transpose(x.array, permutation), plain, spread)
    return replace(x, shape=shape, order=tuple(place[axis] for axis in x.order), spread=spread)


def broadcast(graph, eqn, x, *sizes):
    axes = tuple(map(int, eqn.params["broadcast_dimensions"]))
    return broadcasted(graph, x, tuple(eqn.outvars[0].aval.shape), axes)


def broadcasted(graph: Graph, x: Value, shape: tuple, axes: Sequence[int]) -> Value:
    """New axes have length 1 in the graph, and are repeated later, if ever."""
    new = [axis for axis in range(len(shape)) if axis not in axes]
    grown = {axes[i] for i in range(len(axes)) if i in x.spread or _grows(x.shape[i], shape[axes[i]])}
    spread = frozenset(grown | {axis for axis in new if not (fixed(shape[axis]) and shape[axis] == 1)})
    plain = tuple(range(len(shape)))
    if x.array is not None:
        lengths = [1] * len(shape)
        for i, axis in enumerate(axes):
            lengths[axis] = x.array.shape[i]
        return Value(tuple(shape), x.dtype, None, x.array.reshape(lengths), plain, spread)
    if not new:
        return replace(x, shape=tuple(shape), spread=spread)
    order = [axes[axis] for axis in x.order]
    if order == sorted(order):
        order = plain
        places = [i for i in range(len(shape)) if i in new]
    else:
        places = [len(order) + i for i in range(len(new))]
        order = (*order, *new)
    axes_name = graph.initializer(np.array(places, np.int64))
    (name,) = graph.add("Unsqueeze", [x.name, axes_name])
    return Value(tuple(shape), x.dtype, name, None, tuple(order), spread)


def _grows(before: Any, after: Any) -> bool:
    return fixed(before) and before == 1 and not (fixed(after) and after == 1)


def squeeze(graph, eqn, x):
    return reshaped(graph, x, eqn.outvars[0].aval.shape)


def reshape(graph, eqn, x, *sizes):
    return reshaped(graph, x, eqn.outvars[0].aval.shape)


def reshaped(graph: Graph, x: Value, shape: Sequence) -> Value:
    shape, plain = tuple(shape), tuple(range(len(shape)))
    if shape == x.shape:
        return x
    if x.array is not None and all(map(fixed, shape)):
        array = np.broadcast_to(x.array, x.shape).reshape(shape)
        return Value(shape, x.dtype, None, array, plain)
    groups = grouped(graph.sizes.stand_in(x.shape), graph.sizes.stand_in(shape))
    if x.spread and x.name is not None:
        enlarged = _enlarged(graph, x, shape, groups)
        if enlarged is not None:
            return enlarged
        order = x.order
        x = replace(x, name=graph.named(x, order), spread=frozenset())
    elif x.array is not None:
        x = Value(x.shape, x.dtype, graph.named(x), None, tuple(range(len(x.shape))))
    order = _regrouped(x, groups)
    if order is None:
        x = replace(x, name=graph.named(x), order=tuple(range(len(x.shape))))
        order = plain
    target = graph.shape([shape[axis] for axis in order], guess=True)
    (name,) = graph.add("Reshape", [x.name, target])
    return Value(shape, x.dtype, name, None, order)


def grouped(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that have one product."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        left, right = [], []
        if i < len(before):
            left.append(i)
            i += 1
        if j < len(after):
            right.append(j)
            j += 1
        product = lambda axes, sizes: math.prod(sizes[axis] for axis in axes)  # noqa: E731
        while (a := product(left, before)) != (b := product(right, after)):
            if a < b:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups


def _regrouped(x: Value, groups: Sequence[tuple[list[int], list[int]]]) -> tuple[int, ...] | None:
    """The order of the new axes where each group of old ones lies together; None where not."""
    place = {axis: k for k, axis in enumerate(x.order)}
    found = []
    for left, right in groups:
        places = [place[axis] for axis in left]
        if places != list(range(places[0], places[0] + len(places))) if places else False:
            return None
        found.append((places[0] if places else -1, right))
    # An axis of length 1 out of nothing goes with the group before it.
    last = -1
    keyed = []
    for start, right in found:
        last = start if start >= 0 else last
        keyed.append((last, right))
    return tuple(axis for _, right in sorted(keyed, key=lambda entry: entry[0]) for axis in right)


def _enlarged(graph: Graph, x: Value, shape: tuple, groups: Sequence) -> Value | None:
    """Axes repeated after each pixel and merged with it, as an enlargement by `Resize`."""
    scales = {}
    for left, right in groups:
        if len(right) != 1 or not left or left[0] in x.spread or any(a not in x.spread for a in left[1:]):
            return None
        scales[right[0]] = math.prod(x.shape[axis] for axis in left[1:])
    if not all(map(fixed, scales.values())) or x.dtype.kind != "f":
        return None
    kept = [left[0] for left, _ in groups]
    small = tuple(x.held(axis) for axis in kept)
    order = tuple(kept.index(axis) for axis in x.order if axis in kept)
    (name,) = graph.add("Reshape", [x.name, graph.shape([small[axis] for axis in order], guess=True)])
    factors = graph.initializer(np.array([scales[axis] for axis in order], np.float32))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    (name,) = graph.add("Resize", [name, "", factors], **attributes)
    return Value(shape, x.dtype, name, None, order)


def concatenate(graph, eqn, *values):
    axis, aval = eqn.params["dimension"], eqn.outvars[0].aval
    values = [value for value in values if not (fixed(value.shape[axis]) and value.shape[axis] == 0)]
    order = max(values, key=graph.count).order
    names = [graph.named(value, order) for value in values]
    return graph.emit("Concat", names, aval, order, axis=order.index(axis))


def stack(graph, eqn, *values):
    axis, aval = eqn.params["axis"], eqn.outvars[0].aval
    shape = list(aval.shape)
    shape[axis] = 1
    names = [graph.named(reshaped(graph, value, shape)) for value in values]
    return graph.emit("Concat", names, aval, axis=axis)


def split(graph, eqn, x):
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    lengths = graph.shape(sizes)
    x = replace(x, name=graph.named(x, x.order), array=None, spread=frozenset())
    names = graph.add("Split", [x.name, lengths], len(sizes), axis=x.order.index(axis))
    pairs = zip(names, eqn.outvars, strict=True)
    return [replace(x, name=name, shape=tuple(var.aval.shape)) for name, var in pairs]


def slice_(graph, eqn, x):
    strides = eqn.params["strides"] or [1] * len(x.shape)
    bounds = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, x.shape, strict=True)
    cut = [(axis, *bound[:3]) for axis, bound in enumerate(bounds) if not (
        str(bound[0]) == "0" and str(bound[1]) == str(bound[3]) and bound[2] == 1)]
    axes, starts, limits, steps = zip(*cut, strict=True) if cut else ((), (), (), ())
    name = graph.named(x, x.order)
    parts = [graph.shape(starts), graph.shape(limits)]
    parts += [graph.initializer(np.array([x.order.index(axis) for axis in axes], np.int64))]
    parts += [graph.shape(steps)]
    return graph.emit("Slice", [name, *parts], eqn.outvars[0].aval, x.order)


def dynamic_slice(graph, eqn, x, *starts):
    return part_of(graph, x, dict(enumerate(starts)), eqn.params["slice_sizes"])


def part_of(graph: Graph, x: Value, starts: dict[int, Value], sizes: Sequence) -> Value:
    """A slice that begins, along some axes, where the program says; moved to lie in the array."""
    names, axes = [], [i for i, size in enumerate(sizes) if str(size) != str(x.shape[i])]
    for axis in axes:
        start = graph.named(reshaped(graph, cast(graph, starts[axis], np.int64), (1,)))
        (start,) = graph.add("Max", [start, graph.size(0)])
        names.append(graph.add("Min", [start, graph.size(x.shape[axis] - sizes[axis])])[0])
    if not axes:
        return x
    begin = names[0] if len(names) == 1 else graph.add("Concat", names, axis=0)[0]
    (end,) = graph.add("Add", [begin, graph.shape([sizes[axis] for axis in axes])])
    where = graph.initializer(np.array([x.order.index(axis) for axis in axes], np.int64))
    aval = jax.ShapeDtypeStruct(tuple(sizes), x.dtype)
    return graph.emit("Slice", [graph.named(x, x.order), begin, end, where], aval, x.order)


def pad(graph, eqn, x, value):
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or inside for low, high, inside in config):
        raise NotImplementedError("padding that cuts, or goes between numbers")
    config = [config[axis] for axis in x.order]
    widths = [low for low, _, _ in config] + [high for _, high, _ in config]
    inputs = [graph.named(x, x.order), graph.initializer(np.array(widths, np.int64)), graph.named(value)]
    return graph.emit("Pad", inputs, eqn.outvars[0].aval, x.order)


def iota(graph, eqn, *sizes):
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    bounds = [graph.named(constant(np.int64(0)))]
    bounds += graph.add("Squeeze", [graph.size(aval.shape[axis])])
    (name,) = graph.add("Range", [*bounds, graph.named(constant(np.int64(1)))])
    line = cast(graph, Value((aval.shape[axis],), np.dtype(np.int64), name, None, (0,)), aval.dtype)
    return broadcasted(graph, line, aval.shape, (axis,))


def dim_as_value(graph, eqn):
    name = graph.add("Squeeze", [graph.size(eqn.params["dim"])])[0]
    size = Value((), np.dtype(np.int64), name, None, ())
    return cast(graph, size, eqn.outvars[0].aval.dtype)


# ------------------------------------------------------------------------ sums, products, look-ups


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
        return sum(graph.count(value) for value in (a, b) if value.array is None and value.order != order)

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
        weights = graph.initializer(np.broadcast_to(kernel.array, kernel.shape).T.reshape(
            *kernel.shape[::-1], *ones))
        out = jax.ShapeDtypeStruct(aval.shape, x.dtype)
        order = [place[i] for i in x.order]
        return cast(graph, graph.emit("Conv", [graph.named(x, x.order), weights], out, order), aval.dtype)
    order = x.order if x.order[-1] == axis else (*rest, axis)
    names = [graph.named(x, order), graph.named(kernel)]
    out = jax.ShapeDtypeStruct(aval.shape, x.dtype)
    order = [place[i] for i in order] if last else [0]
    return cast(graph, graph.emit("MatMul", names, out, order), aval.dtype)


def gather(graph, eqn, x, indices):
    """One slice, rows along one axis, or rows of each example of a batch."""
    params, aval = eqn.params, eqn.outvars[0].aval
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    axes, batch, gone, offsets = (
        list(map(int, found))
        for found in (
            numbers.start_index_map,
            numbers.operand_batching_dims,
            numbers.collapsed_slice_dims,
            numbers.offset_dims,
        )
    )
    if len(indices.shape) == 1:
        starts = {axis: row_of(graph, indices, i) for i, axis in enumerate(axes)}
        return reshaped(graph, part_of(graph, x, starts, sizes), aval.shape)
    whole = [i for i in range(len(sizes)) if i not in (*axes, *batch)]
    single = len(x.shape) == 1 and sizes[0] == 1  # of a line, whether its axis is kept or not
    known = len(axes) == 1 and (gone == axes or single)
    known &= all(str(sizes[i]) == str(x.shape[i]) for i in whole)
    last = [len(aval.shape) - len(offsets) + i for i in range(len(offsets))]
    if not known or (batch and (batch, axes, offsets) != ([0], [1], last)):
        raise NotImplementedError(f"a look-up of the form {numbers}")
    if batch:
        places = graph.named(cast(graph, indices, np.int64))
    else:
        places = graph.named(cast(graph, reshaped(graph, indices, indices.shape[:-1]), np.int64))
    (name,) = graph.add("Min", [places, graph.size(x.shape[axes[0]] - 1)])
    (name,) = graph.add("Max", [name, graph.size(0)])
    if batch:
        return graph.emit("GatherND", [graph.named(x), name], aval, batch_dims=1)
    if single:
        (name,) = graph.add("Gather", [graph.named(x), name])
        return graph.emit("Reshape", [name, graph.shape(aval.shape, guess=True)], aval)
    # Gather puts the places where the axis was; jax says which axes of the result are of the rows.
    places_at = [i for i in range(len(aval.shape)) if i not in offsets]
    order = (*offsets[: axes[0]], *places_at, *offsets[axes[0] :])
    return graph.emit("Gather", [graph.named(x), name], aval, order, axis=axes[0])


def sort(graph, eqn, *values):
    """By the first array, ascending; equal ones stay in their order, as TopK has it."""
    axis, key = eqn.params["dimension"], values[0]
    if eqn.params["num_keys"] != 1:
        raise NotImplementedError("a sort by several arrays")
    numbers = cast(graph, key, np.int32) if key.dtype == bool else key
    count = graph.size(key.shape[axis])
    attributes = {"axis": axis, "largest": 0, "sorted": 1}
    name, places = graph.add("TopK", [graph.named(numbers), count], 2, **attributes)
    plain = tuple(range(len(key.shape)))
    results = [cast(graph, Value(key.shape, numbers.dtype, name, None, plain), key.dtype)]
    for value, var in zip(values[1:], eqn.outvars[1:], strict=True):
        inputs = [graph.named(value), places]
        results.append(graph.emit("GatherElements", inputs, var.aval, axis=axis))
    return results


# --------------------------------------------------------------------------------- loops, branches


def while_loop(graph, eqn, *operands):
    params = eqn.params
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    first, second = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = operands[:first], operands[first : first + second]
    state = operands[first + second :]

    def closed(where: Graph, program: core.ClosedJaxpr, *inputs: Value) -> list[Value]:
        return run(where, program.jaxpr, list(map(constant, program.consts)), inputs)

    (go,) = closed(graph, cond, *cond_consts, *state)
    inside = Graph(graph.sizes, graph)
    inside.inputs = [
        helper.make_tensor_value_info(inside.new_name("i"), TensorProto.INT64, []),
        helper.make_tensor_value_info(inside.new_name("go"), TensorProto.BOOL, []),
    ]
    carried = []
    for value in state:
        name = inside.new_name("state")
        inside.inputs.append(info(name, value.shape, value.dtype))
        carried.append(Value(value.shape, value.dtype, name, None, tuple(range(len(value.shape)))))
    results = closed(inside, body, *body_consts, *carried)
    (again,) = closed(inside, cond, *cond_consts, *results)
    outputs = subgraph_outputs(inside, [again, *results])
    inputs = ["", graph.named(go), *map(graph.named, state)]
    names = graph.add("Loop", inputs, len(state), body=inside.proto(inside.new_name("body"), outputs))
    return [replace(value, name=name) for value, name in zip(carried, names, strict=True)]


def subgraph_outputs(inside: Graph, values: Sequence[Value]) -> list:
    """A subgraph's outputs are made within it: what comes from around it is passed on by a node."""
    outputs = []
    for value in values:
        (name,) = inside.add("Identity", [inside.named(value)])
        outputs.append(info(name, value.shape, value.dtype))
    return outputs


def cond(graph, eqn, index, *operands):
    branches = eqn.params["branches"]

    def branch(where: Graph, program: core.ClosedJaxpr) -> list[Value]:
        return run(where, program.jaxpr, list(map(constant, program.consts)), operands)

    if index.array is not None:
        return branch(graph, branches[int(np.clip(index.array, 0, len(branches) - 1))])
    if len(branches) != 2:
        raise NotImplementedError("a choice between more than two branches")
    bodies = {}
    for name, program in zip(("else_branch", "then_branch"), branches, strict=True):
        inside = Graph(graph.sizes, graph)
        outputs = subgraph_outputs(inside, branch(inside, program))
        bodies[name] = inside.proto(inside.new_name("branch"), outputs)
    which = cast(graph, index, bool)
    names = graph.add("If", [graph.named(which)], len(eqn.outvars), **bodies)
    return [
        Value(tuple(v.aval.shape), np.dtype(v.aval.dtype), name, None, tuple(range(len(v.aval.shape))))
        for v, name in zip(eqn.outvars, names, strict=True)
    ]


def scan(graph, eqn, *operands):
    """Unrolled: each layer with its own constants."""
    params = eqn.params
    consts = operands[: params["num_consts"]]
    carry = list(operands[len(consts) : len(consts) + params["num_carry"]])
    rows, program = operands[len(consts) + len(carry) :], params["jaxpr"]
    if len(eqn.outvars) != len(carry) or params["reverse"]:
        raise NotImplementedError("a scan that collects results, or runs backwards")
    for step in range(params["length"]):
        own = [row_of(graph, row, step) for row in rows]
        carry = run(graph, program.jaxpr, list(map(constant, program.consts)), [*consts, *carry, *own])
    return carry


def row_of(graph: Graph, x: Value, index: int) -> Value:
    if x.array is not None:
        return constant(np.broadcast_to(x.array, x.shape)[index])
    aval = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    return graph.emit("Gather", [graph.named(x), graph.named(constant(np.int64(index)))], aval, axis=0)


# Rules that take constants too: they keep them small, or hold programs.
STRUCTURE = {"broadcast_in_dim", "transpose", "jit", "pjit", "closed_call", "custom_jvp_call",
             "custom_vjp_call", "checkpoint", "remat2", "while", "cond", "scan", "computed_once",
             "stop_gradient", "convert_element_type", "dim_as_value"}  # fmt: skip
PASSED = ("computed_once", "stop_gradient", "optimization_barrier", "copy", "copy_p", "name")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("jit", "pjit"), inlined("jaxpr")),
    **dict.fromkeys(("checkpoint", "remat2"), inlined("jaxpr")),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "closed_call"), inlined("call_jaxpr")),
    **dict.fromkeys(PASSED, keep),
    "add": simple("Add"), "sub": simple("Sub"), "mul": by_kind("And", "Mul"), "div": simple("Div"),
    "max": by_kind("Or", "Max"), "min": by_kind("And", "Min"), "pow": simple("Pow"),
    "rem": simple("Mod", fmod=1), "and": by_kind("And", "BitwiseAnd"), "or": by_kind("Or", "BitwiseOr"),
    "not": by_kind("Not", "BitwiseNot"), "neg": simple("Neg"), "abs": simple("Abs"),
    "sign": simple("Sign"), "exp": simple("Exp"), "log": simple("Log"), "sqrt": simple("Sqrt"),
    "sin": simple("Sin"), "cos": simple("Cos"), "tan": simple("Tan"), "tanh": simple("Tanh"),
    "atan": simple("Atan"), "erf": simple("Erf"), "logistic": logistic,
    "floor": simple("Floor"), "ceil": simple("Ceil"), "round": simple("Round"),
    "eq": simple("Equal"), "lt": simple("Less"), "le": simple("LessOrEqual"),
    "gt": simple("Greater"), "ge": simple("GreaterOrEqual"), "ne": not_equal,
    "lt_to": simple("Less"), "le_to": simple("LessOrEqual"), "eq_to": simple("Equal"),
    "square": chain(lambda op, x: op("Mul", x, x)),
    "rsqrt": chain(lambda op, x: op("Reciprocal", op("Sqrt", x))),
    # Both without the difference, which has few digits near 0.
    "expm1": chain(lambda op, x: op("Mul", op("Tanh", op("Mul", x, number(0.5, x))),
                                    op("Add", op("Exp", x), number(1, x)))),
    "log1p": chain(lambda op, x: op("Mul", number(2, x),
                                    op("Atanh", op("Div", x, op("Add", x, number(2, x)))))),
    "is_finite": is_finite, "integer_pow": integer_pow, "select_n": select, "clamp": clamp,
    "convert_element_type": lambda graph, eqn, x: cast(graph, x, eqn.outvars[0].aval.dtype),
    "bitcast_convert_type": sign_mask, "shift_right_arithmetic": lambda graph, eqn, x, bits: x,
    "transpose": transpose, "broadcast_in_dim": broadcast, "reshape": reshape, "squeeze": squeeze,
    "concatenate": concatenate, "stack": stack, "split": split, "slice": slice_,
    "dynamic_slice": dynamic_slice, "pad": pad, "iota": iota, "dim_as_value": dim_as_value,
    "reduce_sum": reduction("ReduceSum"), "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"), "reduce_prod": reduction("ReduceProd"),
    "reduce_or": any_or_all("ReduceMax"), "reduce_and": any_or_all("ReduceMin"),
    "conv_general_dilated": convolution, "dot_general": dot_general, "gather": gather,
    "sort": sort, "while": while_loop, "cond": cond, "scan": scan,
}  # fmt: skip
