"""An ONNX graph that is being written, and the arrays in it.

ONNX convolves with channels before space, our networks have them last. So an array of the graph
knows in which order its axes lie there: a transposition only changes that order, elementwise
operations keep that of their largest operand, and nothing is moved until an operation needs
another order. In the same way arrays are repeated (broadcast) only where an operation does not do
it itself.
"""

import ast
import hashlib
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Dim = Any  # a whole number, or an expression of sizes that the caller chooses (jax.export)
# Sizes that stand in for the caller's, so that products of them can be compared: primes, since a
# product of other sizes should not happen to be one.
STAND_INS = (1_000_003, 999_983, 999_979, 999_961)


@dataclass(frozen=True, eq=False)
class Value:
    """An array: its shape for jax, and how it lies in the graph.

    array: of a constant, else None; with length 1 along `spread`. name: in the graph, else None.
    order: axis k in the graph is axis order[k] of the shape. spread: axes of the shape that have
    length 1 in the graph and are to be repeated.
    """

    shape: tuple[Dim, ...]
    dtype: np.dtype
    name: str | None = None
    array: np.ndarray | None = None
    order: tuple[int, ...] = ()
    spread: frozenset[int] = frozenset()

    def held(self, axis: int) -> Dim:
        """The length of an axis in the graph."""
        return 1 if axis in self.spread else self.shape[axis]


def constant(array: Any) -> Value:
    array = np.asarray(array)
    return Value(array.shape, array.dtype, None, array, tuple(range(array.ndim)))


# What jax writes sizes with.
OPERATIONS: dict[Any, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow,
    "floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min,
}  # fmt: skip


def evaluated(node: ast.expr, sizes: Mapping[str, int]) -> int:
    """A size as jax writes it, by the values of its symbols."""
    match node:
        case ast.Constant(int(value)):
            return value
        case ast.Name(name) if name in sizes:
            return sizes[name]
        case ast.UnaryOp(ast.USub(), operand):
            return -evaluated(operand, sizes)
        case ast.BinOp(left, op, right) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](evaluated(left, sizes), evaluated(right, sizes))
        case ast.Call(ast.Name(name), args, []) if name in OPERATIONS:
            return OPERATIONS[name](*(evaluated(arg, sizes) for arg in args))
    raise NotImplementedError(f"a size of {ast.unparse(node)}")


class Sizes:
    """The sizes that a caller chooses, by the names of their symbols."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = tuple(symbols)

    def at(self, dim: Dim, values: Sequence[int]) -> int:
        """A dimension where the symbols have these values."""
        if isinstance(dim, int | np.integer):
            return int(dim)
        sizes = dict(zip(self.symbols, values, strict=False))
        return evaluated(ast.parse(str(dim).replace("^", "**"), mode="eval").body, sizes)

    def stand_in(self, dims: Sequence[Dim]) -> list[int]:
        return [self.at(dim, STAND_INS) for dim in dims]

    def linear(self, dim: Dim) -> tuple[int, list[int]]:
        """(constant, factors): the dimension is constant + sum(factor * symbol)."""
        count = len(self.symbols)
        first = self.at(dim, [0] * count)
        units = [[int(i == j) for j in range(count)] for i in range(count)]
        factors = [self.at(dim, unit) - first for unit in units]
        probe = [3 + 4 * i for i in range(count)]
        if self.at(dim, probe) != first + sum(f * p for f, p in zip(factors, probe, strict=True)):
            raise NotImplementedError(f"a size of {dim}, which is not linear in the symbols")
        return first, factors


def fixed(dim: Dim) -> bool:
    return isinstance(dim, int | np.integer)


class Graph:
    """A graph or, with a parent, the body of a loop or the branch of a condition."""

    def __init__(self, sizes: Sizes, parent: "Graph | None" = None):
        self.sizes, self.parent = sizes, parent
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self._made: dict[Any, str] = {}  # constants and moved arrays, by what they are
        self._count = parent._count if parent else [0]

    # ------------------------------------------------------------------------------------- writing

    def new_name(self, hint: str = "x") -> str:
        self._count[0] += 1
        return f"{hint}_{self._count[0]}"

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """A node; the names of its outputs."""
        names = [self.new_name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def once(self, key: Any, make: Any) -> str:
        """`make()`, or what an earlier call with this key gave here or in a graph around."""
        graph = self
        while graph is not None:
            if key in graph._made:
                return graph._made[key]
            graph = graph.parent
        self._made[key] = name = make()
        return name

    def initializer(self, array: np.ndarray) -> str:
        array = np.asarray(array, order="C")
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()

        def make() -> str:
            name = self.new_name("c")
            self.initializers.append(numpy_helper.from_array(array, name))
            return name

        return self.once((array.dtype.str, array.shape, digest), make)

    def size(self, dim: Dim) -> str:
        """A dimension as int64[1]. The root graph sets `symbols`, by name."""
        if fixed(dim):
            return self.initializer(np.array([dim], np.int64))
        first, factors = self.sizes.linear(dim)
        root = self
        while root.parent is not None:
            root = root.parent

        def make() -> str:
            total = None
            for symbol, factor in zip(self.sizes.symbols, factors, strict=True):
                if factor:
                    (part,) = self.add("Mul", [root.symbols[symbol], self._int64(factor)])
                    total = part if total is None else self.add("Add", [total, part])[0]
            return self.add("Add", [total, self._int64(first)])[0] if first else total

        return self.once(("size", str(dim)), make)

    def _int64(self, value: int) -> str:
        return self.initializer(np.array([value], np.int64))

    def shape(self, dims: Sequence[Dim], guess: bool = False) -> str:
        """A shape as int64[rank]; `guess`: for Reshape, which finds out one size itself."""
        unknown = [i for i, dim in enumerate(dims) if not fixed(dim)]
        if not unknown or (guess and len(unknown) == 1):
            known = [-1 if i in unknown else int(dim) for i, dim in enumerate(dims)]
            return self.initializer(np.array(known, np.int64))
        key = ("shape", tuple(map(str, dims)))
        return self.once(key, lambda: self.add("Concat", list(map(self.size, dims)), axis=0)[0])

    # --------------------------------------------------------------------------------------- arrays

    def named(self, value: Value, order: Sequence[int] | None = None, whole: bool = True) -> str:
        """The name of an array with its axes in this order (None: as in its shape); `whole`:
        repeated to its whole size.
        """
        order = tuple(range(len(value.shape))) if order is None else tuple(order)
        if value.array is not None:
            array = np.transpose(value.array, order)
            if whole and value.spread:
                if not all(map(fixed, value.shape)):
                    return self._expand(
                        replace(value, array=None, name=self.initializer(array)), order
                    )
                array = np.broadcast_to(array, [value.shape[i] for i in order])
            return self.initializer(array)
        name = value.name
        if value.order != order:
            name = self.once((name, order), lambda: self._moved(value, order))
        if whole and value.spread:
            return self._expand(replace(value, name=name), order)
        return name

    def _expand(self, value: Value, order: tuple[int, ...]) -> str:
        shape = self.shape([value.shape[i] for i in order])
        key = (value.name, "whole", tuple(str(value.shape[i]) for i in order))
        return self.once(key, lambda: self.add("Expand", [value.name, shape])[0])

    def _moved(self, value: Value, order: tuple[int, ...]) -> str:
        """Axes of length 1 move by a new shape, others by a transposition."""
        long = [axis for axis in value.order if self._long(value.held(axis))]
        if long == [axis for axis in order if axis in long]:
            shape = self.shape([value.held(axis) for axis in order], guess=True)
            return self.add("Reshape", [value.name, shape])[0]
        permutation = [value.order.index(axis) for axis in order]
        return self.add("Transpose", [value.name], perm=permutation)[0]

    @staticmethod
    def _long(dim: Dim) -> bool:
        return not (fixed(dim) and dim == 1)

    def count(self, value: Value) -> int:
        """How many numbers there are in the graph, the caller's sizes taken for small."""
        held = [value.held(axis) for axis in range(len(value.shape))]
        return math.prod(self.sizes.at(dim, [8] * len(STAND_INS)) for dim in held)

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        aval: Any,
        order: Sequence[int] | None = None,
        spread: frozenset[int] = frozenset(),
        **attributes: Any,
    ) -> Value:
        """A node of one output, as an array of this shape and dtype."""
        (name,) = self.add(op, inputs, **attributes)
        order = tuple(range(len(aval.shape))) if order is None else tuple(order)
        return Value(tuple(aval.shape), np.dtype(aval.dtype), name, None, order, spread)

    def proto(self, name: str, outputs: Sequence[ValueInfoProto]) -> GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, list(outputs), self.initializers)


def info(name: str, shape: Sequence[Dim], dtype: np.dtype) -> ValueInfoProto:
    """How an input or an output is declared; sizes of the caller's by their names."""
    dims = [int(dim) if fixed(dim) else str(dim) for dim in shape]
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims
    )
