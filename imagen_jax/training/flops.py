"""FLOPs of a jax function, counted from its operations' shapes before any compiler has seen it."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count(function: Callable, *arguments: Any) -> dict[str, float]:
    """FLOPs by kind: "convolution", "dense" (a matrix of parameters) and "attention" (products of
    activations, which have a batch or are in a Pallas kernel). Nothing else is counted. Arguments
    may be shapes.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments))


def of_jaxpr(closed: core.ClosedJaxpr) -> dict[str, float]:
    """What `count` counts, of a function that has been traced."""
    counts: Counter[str] = Counter()
    _add(closed.jaxpr, 1, counts)
    return {kind: float(counts[kind]) for kind in ("convolution", "dense", "attention")}


def total(function: Callable, *arguments: Any) -> float:
    """The sum of what `count` counts, the recomputation of remat included."""
    return sum(count(function, *arguments).values())


def kernels(closed: core.ClosedJaxpr) -> dict[str, float]:
    """FLOPs of one call of each Pallas kernel, by its name, on one device, of a function that has
    been traced.
    """
    found: dict[str, float] = {}

    def look(jaxpr: core.Jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                found[equation.params["name"]] = float(_kernel(equation))
            else:
                for inner in core.jaxprs_in_params(equation.params):
                    look(inner)

    look(closed.jaxpr)
    return found


def _add(jaxpr: core.Jaxpr, times: int, counts: Counter) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "conv_general_dilated":
            counts["convolution"] += times * _convolution(equation)
        elif name == "dot_general":
            (left_axes, _), (batch_axes, _) = equation.params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[axis] for axis in left_axes)
            results = math.prod(equation.outvars[0].aval.shape)
            counts["attention" if batch_axes else "dense"] += times * 2 * results * length
        elif name.startswith("dot_product_attention"):
            counts["attention"] += times * _cudnn_attention(equation)
        if name == "pallas_call":
            counts["attention"] += times * _kernel(equation)
            continue
        runs = times * _runs(equation)
        for inner in core.jaxprs_in_params(equation.params):
            _add(inner, runs, counts)


def _kernel(equation: core.JaxprEqn) -> int:
    """FLOPs of a Pallas kernel: those of what it does to a block, over its grid."""
    counts: Counter[str] = Counter()
    for inner in core.jaxprs_in_params(equation.params):
        _add(inner, math.prod(equation.params["grid_mapping"].grid), counts)
    return sum(counts.values())


def _cudnn_attention(equation: core.JaxprEqn) -> int:
    """FLOPs of cuDNN's attention: two products forward, five backward, which makes the weights
    again. Queries and keys are [b n heads head], or [b heads n head] in layout 1.
    """
    query, key = (operand.aval.shape for operand in equation.invars[:2])
    products = 5 if "_bwd" in equation.primitive.name else 2
    return products * 2 * math.prod(query) * key[1 + equation.params["layout"]]


def _runs(equation: core.JaxprEqn) -> int:
    """How often an operation runs what is inside it: a loop its body, a mesh what each device
    does.
    """
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "shard_map":
            return equation.params["mesh"].size
    return 1


def _convolution(equation: core.JaxprEqn) -> int:
    """2 x pairs of an output's and a kernel's pixel that meet a pixel of the image x channels."""
    params = equation.params
    numbers = params["dimension_numbers"]
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    axes = zip(
        [image[i] for i in numbers.lhs_spec[2:]],
        [kernel[i] for i in numbers.rhs_spec[2:]],
        [output[i] for i in numbers.out_spec[2:]],
        params["window_strides"],
        [before for before, _ in params["padding"]],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    pairs = math.prod(overlaps(*axis) for axis in axes)
    batch, features = (output[axis] for axis in numbers.out_spec[:2])
    return 2 * pairs * batch * features * kernel[numbers.rhs_spec[1]]


def overlaps(
    image: int,
    kernel: int,
    output: int,
    stride: int = 1,
    before: int = 0,
    image_dilation: int = 1,
    kernel_dilation: int = 1,
) -> int:
    """Along one axis: pairs of an output's and a kernel's pixel that meet a pixel of the image, not
    its padding (`before`) nor a gap of its dilation.
    """
    last = (image - 1) * image_dilation
    return sum(
        0 <= (place := tap * kernel_dilation - before + start * stride) <= last
        and place % image_dilation == 0
        for tap in range(kernel)
        for start in range(output)
    )
