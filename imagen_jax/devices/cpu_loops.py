"""Convolutions in loops on CPUs. XLA:CPU brings convolutions into the form that it has fast code
for outside of loops alone; the gradients of convolutions in a loop take 10 to 20 times as long.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def fast_in_loops(function: Callable) -> Callable:
    """The function with every convolution on operands [batch, *space, channels] and [*space,
    channels, features], to which others are transposed. For the body of a loop on a CPU.
    """

    def rewritten(*arguments: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _run(jaxpr.jaxpr, jaxpr.consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rewritten


def _run(jaxpr: core.Jaxpr, consts: Any, *arguments: Any) -> list[Any]:
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
    """A parameter of an equation: jaxprs rewritten, such as those of jit, remat and scan."""
    if isinstance(value, core.ClosedJaxpr):
        shapes = [var.aval for var in value.jaxpr.invars]
        return jax.make_jaxpr(lambda *x: _run(value.jaxpr, value.consts, *x))(*shapes)
    if isinstance(value, core.Jaxpr) and not value.constvars:
        shapes = [var.aval for var in value.invars]
        inner = jax.make_jaxpr(lambda *x: _run(value, (), *x))(*shapes)
        return value if inner.consts else inner.jaxpr
    return tuple(map(_inside, value)) if type(value) is tuple else value


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
