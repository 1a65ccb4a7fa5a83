"""A jax function as an ONNX graph: what each of jax's operations is there.

The function is traced, and what follows from its constants alone is computed now. Functions within
it become part of the graph, loops `Loop` and conditions `If`; a scan is unrolled.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.extend import core
from onnx import TensorProto, helper

from imagen_jax.export.onnx_elementwise import (
    Bits,
    Rule,
    bits,
    by_kind,
    cast,
    chain,
    clamp,
    integer_pow,
    is_finite,
    keep,
    logistic,
    not_equal,
    number,
    rounding,
    select,
    sign_mask,
    simple,
    sine,
)
from imagen_jax.export.onnx_graph import Graph, Value, constant, fixed, info
from imagen_jax.export.onnx_products import any_or_all, convolution, dot_general, reduction
from imagen_jax.export.onnx_shapes import (
    broadcast,
    concatenate,
    dim_as_value,
    dynamic_slice,
    gather,
    iota,
    pad,
    reshape,
    row_of,
    slice_,
    sort,
    split,
    squeeze,
    stack,
    transpose,
)


def run(
    graph: Graph, jaxpr: core.Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    """Writes a program into the graph; its results."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom: Any) -> Value:
        return (
            constant(np.asarray(atom.val, atom.aval.dtype))
            if isinstance(atom, core.Literal)
            else values[atom]
        )

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = equation(graph, eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def equation(graph: Graph, eqn: core.JaxprEqn, operands: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name not in RULES:
        raise NotImplementedError(f"there is no ONNX form of jax's operation {name!r}")
    if name != "shift_right_arithmetic" and any(isinstance(value, Bits) for value in operands):
        raise NotImplementedError(f"{name!r} of a float's bits, of which only the sign is read")
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


def run_inner(graph: Graph, program: Any, inputs: Sequence[Value]) -> list[Value]:
    """Writes the program of a parameter, which holds its constants if it is closed."""
    consts = list(map(constant, getattr(program, "consts", ())))
    return run(graph, getattr(program, "jaxpr", program), consts, inputs)


def inlined(parameter: str) -> Rule:
    """A function that is called: the program that this parameter holds."""
    return lambda graph, eqn, *operands: run_inner(graph, eqn.params[parameter], operands)


def while_loop(graph, eqn, *operands):
    params = eqn.params
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    first, second = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = operands[:first], operands[first : first + second]
    state = operands[first + second :]

    (go,) = run_inner(graph, cond, (*cond_consts, *state))
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
    results = run_inner(inside, body, (*body_consts, *carried))
    (again,) = run_inner(inside, cond, (*cond_consts, *results))
    outputs = subgraph_outputs(inside, [again, *results])
    inputs = ["", graph.named(go), *map(graph.named, state)]
    names = graph.add(
        "Loop", inputs, len(state), body=inside.proto(inside.new_name("body"), outputs)
    )
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

    if index.array is not None:
        return run_inner(graph, branches[int(np.clip(index.array, 0, len(branches) - 1))], operands)
    if len(branches) != 2:
        raise NotImplementedError("a choice between more than two branches")
    bodies = {}
    for name, program in zip(("else_branch", "then_branch"), branches, strict=True):
        inside = Graph(graph.sizes, graph)
        outputs = subgraph_outputs(inside, run_inner(inside, program, operands))
        bodies[name] = inside.proto(inside.new_name("branch"), outputs)
    which = cast(graph, index, bool)
    names = graph.add("If", [graph.named(which)], len(eqn.outvars), **bodies)
    return [
        Value(
            tuple(v.aval.shape), np.dtype(v.aval.dtype), name, None, tuple(range(len(v.aval.shape)))
        )
        for v, name in zip(eqn.outvars, names, strict=True)
    ]


def scan(graph, eqn, *operands):
    """Unrolled: each layer with its own constants."""
    params = eqn.params
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # from jax 0.11 on
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    consts, carry = operands[:num_consts], list(operands[num_consts : num_consts + num_carry])
    rows = operands[num_consts + num_carry :]
    if len(eqn.outvars) != num_carry or params["reverse"]:
        raise NotImplementedError("a scan that collects results, or runs backwards")
    for step in range(params["length"]):
        own = [row_of(graph, row, step) for row in rows]
        carry = run_inner(graph, params["jaxpr"], (*consts, *carry, *own))
    return carry


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
    "rem": simple("Mod", fmod=1),
    "and": by_kind("And", "BitwiseAnd"), "or": by_kind("Or", "BitwiseOr"),
    "not": by_kind("Not", "BitwiseNot"), "neg": simple("Neg"), "abs": simple("Abs"),
    "sign": simple("Sign"), "exp": simple("Exp"), "log": simple("Log"), "sqrt": simple("Sqrt"),
    "sin": sine, "cos": simple("Cos"), "tan": simple("Tan"), "tanh": simple("Tanh"),
    "atan": simple("Atan"), "erf": simple("Erf"), "logistic": logistic,
    "floor": simple("Floor"), "ceil": simple("Ceil"), "round": rounding,
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
    "bitcast_convert_type": bits, "shift_right_arithmetic": sign_mask,
    "transpose": transpose, "broadcast_in_dim": broadcast, "reshape": reshape, "squeeze": squeeze,
    "concatenate": concatenate, "stack": stack, "split": split, "slice": slice_,
    "dynamic_slice": dynamic_slice, "pad": pad, "iota": iota, "dim_as_value": dim_as_value,
    "reduce_sum": reduction("ReduceSum"), "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"), "reduce_prod": reduction("ReduceProd"),
    "reduce_or": any_or_all("ReduceMax"), "reduce_and": any_or_all("ReduceMin"),
    "conv_general_dilated": convolution, "dot_general": dot_general, "gather": gather,
    "sort": sort, "while": while_loop, "cond": cond, "scan": scan,
}  # fmt: skip
