"""Operations of jax that move numbers, in an ONNX graph: shapes, slices and look-ups."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from imagen_jax.export.onnx_elementwise import cast
from imagen_jax.export.onnx_graph import Graph, Value, constant, fixed


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
    grown = {
        axes[i] for i in range(len(axes)) if i in x.spread or _grows(x.shape[i], shape[axes[i]])
    }
    spread = frozenset(
        grown | {axis for axis in new if not (fixed(shape[axis]) and shape[axis] == 1)}
    )
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
        if (
            len(right) != 1
            or not left
            or left[0] in x.spread
            or any(a not in x.spread for a in left[1:])
        ):
            return None
        scales[right[0]] = math.prod(x.shape[axis] for axis in left[1:])
    if not all(map(fixed, scales.values())) or x.dtype.kind != "f":
        return None
    kept = [left[0] for left, _ in groups]
    small = tuple(x.held(axis) for axis in kept)
    order = tuple(kept.index(axis) for axis in x.order if axis in kept)
    (name,) = graph.add(
        "Reshape", [x.name, graph.shape([small[axis] for axis in order], guess=True)]
    )
    factors = graph.initializer(np.array([scales[axis] for axis in order], np.float32))
    attributes = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    (name,) = graph.add("Resize", [name, "", factors], **attributes)
    return Value(shape, x.dtype, name, None, order)


def concatenate(graph, eqn, *values):
    axis, aval = eqn.params["dimension"], eqn.outvars[0].aval
    values = [
        value for value in values if not (fixed(value.shape[axis]) and value.shape[axis] == 0)
    ]
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
    bounds = zip(
        eqn.params["start_indices"], eqn.params["limit_indices"], strides, x.shape, strict=True
    )
    cut = [
        (axis, *bound[:3])
        for axis, bound in enumerate(bounds)
        if not (str(bound[0]) == "0" and str(bound[1]) == str(bound[3]) and bound[2] == 1)
    ]
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
    inputs = [
        graph.named(x, x.order),
        graph.initializer(np.array(widths, np.int64)),
        graph.named(value),
    ]
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


def row_of(graph: Graph, x: Value, index: int) -> Value:
    if x.array is not None:
        return constant(np.broadcast_to(x.array, x.shape)[index])
    aval = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    return graph.emit(
        "Gather", [graph.named(x), graph.named(constant(np.int64(index)))], aval, axis=0
    )
