"""Convolutions in loops on CPUs. XLA:CPU brings convolutions into the form that it has fast code
for outside of loops alone; the gradients of convolutions in a loop take 10 to 20 times as long.

A loop that is unrolled (`jax.lax.scan(..., unroll=True)`) is as fast as what is done here. But it
keeps the temporaries of the whole batch, which accumulation is there to avoid (of a U-Net of 30M in
two micro-batches 238 MB, here 126), and takes 83 to 121 s to compile, here 31.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def fast_in_loops(function: Callable) -> Callable:
    """The function with every convolution on operands [batch, *space, channels] and [*space,
    channels, features], to which others are transposed. For the body of a loop on a CPU. Where jax
    has an operation that this does not fit, it warns and gives the function as it is.
    """

    def rewritten(*arguments: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves, tree = jax.tree.leaves(arguments), jax.tree.structure(shapes)
        try:
            results = _run(jaxpr.jaxpr, jaxpr.consts, leaves)
        except Exception as error:
            warnings.warn(f"gradients of convolutions in a loop stay slow: {error!r}", stacklevel=2)
            results = core.jaxpr_as_fun(jaxpr)(*leaves)
        return jax.tree.unflatten(tree, results)

    return rewritten


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """What a jaxpr gives, its convolutions in the fast form."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    for equation in jaxpr.eqns:
        inputs = [_read(values, var) for var in equation.invars]
        if equation.primitive is jax.lax.conv_general_dilated_p:
            results = _convolve(*inputs, **equation.params)
        else:
            params = {name: _inside(value) for name, value in equation.params.items()}
            params = equation.primitive.get_bind_params(params)
            results = equation.primitive.bind(*inputs, **params)
        if not equation.primitive.multiple_results:
            results = [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [_read(values, var) for var in jaxpr.outvars]


def _read(values: dict, var: Any) -> Any:
    return var.val if isinstance(var, core.Literal) else values[var]


def _inside(value: Any) -> Any:
    """A parameter of an equation: jaxprs with convolutions, such as those of jit, remat and scan,
    rewritten.
    """
    if isinstance(value, tuple | list):
        return tuple(map(_inside, value)) if any(map(_convolves, value)) else value
    if not _convolves(value):
        return value
    closed = isinstance(value, core.ClosedJaxpr)
    jaxpr, consts = (value.jaxpr, value.consts) if closed else (value, ())
    shapes = [var.aval for var in jaxpr.invars]
    inner = jax.make_jaxpr(lambda *arguments: _run(jaxpr, consts, arguments))(*shapes)
    return inner if closed else inner.jaxpr


def _convolves(value: Any) -> bool:
    """Whether a parameter is a jaxpr with a convolution in it."""
    if not isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return False
    return any(
        equation.primitive is jax.lax.conv_general_dilated_p
        or any(map(_convolves, core.jaxprs_in_params(equation.params)))
        for equation in value.eqns
    )


def _convolve(left: Any, kernel: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """A convolution by way of the fast form: operands and result transposed."""
    numbers, space = dimension_numbers, tuple(range(1, left.ndim - 1))
    batch, channels, *sides = numbers.lhs_spec
    features, inner, *kernel_sides = numbers.rhs_spec
    left = jnp.transpose(left, (batch, *sides, channels))
    kernel = jnp.transpose(kernel, (*kernel_sides, inner, features))
    last = left.ndim - 1
    fast = jax.lax.ConvDimensionNumbers(
        (0, last, *space), (last, last - 1, *(axis - 1 for axis in space)), (0, last, *space)
    )
    result = jax.lax.conv_general_dilated_p.bind(left, kernel, dimension_numbers=fast, **params)
    batch, features, *sides = numbers.out_spec
    return jnp.transpose(result, np.argsort((batch, *sides, features)))
