"""What of a function does not change from call to call, computed once: of a network in the loop
over steps, the keys and values of the text. XLA leaves them there, as guidance has a branch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal, Var

# What only moves or repeats values stays with the calls: kept, it would take more memory than time.
MOVES = frozenset({"broadcast_in_dim", "concatenate", "convert_element_type", "reshape", "squeeze"})


def hoisted(function: Callable, example: Sequence[Any], fixed: Any) -> Callable:
    """The function, but what in it follows from the arrays `fixed` that it closes over, and from no
    argument, is computed here. The same numbers come out.

    Args:
        function: of arrays, to a tree of arrays, within a program that is being traced.
        example: what it will be called with, or arrays' shapes.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    jaxpr, constants = closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    leaves = jax.tree.leaves(fixed)
    follows = {var for var, value in constants.items() if any(value is leaf for leaf in leaves)}
    known = set(constants)
    for eqn in jaxpr.eqns:
        if known.issuperset(variables(eqn.invars)) and not eqn.effects:
            known.update(eqn.outvars)
            if follows.intersection(variables(eqn.invars)):
                follows.update(eqn.outvars)
    kept = {
        var
        for eqn in jaxpr.eqns
        if eqn.primitive.name not in MOVES
        for var in eqn.outvars
        if var in known & follows
    }
    late, needed = needed_for(jaxpr.outvars, jaxpr.eqns, kept)
    early, _ = needed_for(needed & kept, jaxpr.eqns, set())
    values = evaluate(early, constants)
    before = constants | {var: values[var] for var in needed & kept}

    def called(*arguments: Any) -> Any:
        given = dict(zip(jaxpr.invars, jax.tree.leaves(arguments), strict=True))
        values = evaluate(late, before | given)
        results = [var.val if isinstance(var, Literal) else values[var] for var in jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return called


def variables(atoms: Iterable[Any]) -> set[Var]:
    """Those of an equation's operands that are not literals."""
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def needed_for(
    wanted: Iterable[Any], eqns: Sequence[JaxprEqn], given: set[Var]
) -> tuple[list[JaxprEqn], set[Var]]:
    """The equations that give the variables `wanted` where `given` are there, and all variables
    that these read.
    """
    needed, found = variables(wanted), []
    for eqn in reversed(eqns):
        if (needed - given).intersection(eqn.outvars) or eqn.effects:
            found.append(eqn)
            needed |= variables(eqn.invars)
    return found[::-1], needed


def evaluate(eqns: Sequence[JaxprEqn], values: dict[Var, Any]) -> dict[Var, Any]:
    """The values with those that the equations add."""
    values = dict(values)
    for eqn in eqns:
        operands = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return values
