"""What of a function does not change from call to call, computed once: of a network in the loop
over steps, the keys and values of the text. XLA leaves them there, as guidance has a branch.

That networks need not know of it, their program is split. JAX's own way to split one is not public
(`partial_eval_jaxpr_nounits`), and would keep all that is known, such as each parameter cast to the
dtype of the network.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

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
    jaxpr, tree = closed.jaxpr, jax.tree.structure(shapes)

    def part(eqns: Sequence[JaxprEqn], given: Sequence[Var], results: Sequence[Any]) -> Callable:
        program = {"constvars": (), "invars": given, "outvars": results, "eqns": eqns}
        effects = set().union(*(eqn.effects for eqn in eqns))
        return jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(**program, effects=effects), ()))

    candidates = decided(closed, fixed)
    late, read = needed_for(jaxpr.outvars, jaxpr.eqns, candidates)
    kept = [var for var in candidates if var in read]
    early, _ = needed_for(kept, [eqn for eqn in jaxpr.eqns if not eqn.effects], ())
    before = [*closed.consts, *part(early, jaxpr.constvars, kept)(*closed.consts)]
    rest = part(late, [*jaxpr.constvars, *kept, *jaxpr.invars], jaxpr.outvars)

    def called(*arguments: Any) -> Any:
        return jax.tree.unflatten(tree, rest(*before, *jax.tree.leaves(arguments)))

    return called


def decided(closed: ClosedJaxpr, fixed: Any) -> dict[Var, None]:
    """In order, the variables that follow from `fixed` and from no argument, but for MOVES."""
    known, leaves = set(closed.jaxpr.constvars), jax.tree.leaves(fixed)
    pairs = zip(closed.jaxpr.constvars, closed.consts, strict=True)
    follows = {var for var, value in pairs if any(value is leaf for leaf in leaves)}
    found = {}
    for eqn in closed.jaxpr.eqns:
        if known.issuperset(variables(eqn.invars)) and not eqn.effects:
            known.update(eqn.outvars)
            if follows.intersection(variables(eqn.invars)):
                follows.update(eqn.outvars)
                if eqn.primitive.name not in MOVES:
                    found.update(dict.fromkeys(eqn.outvars))
    return found


def variables(atoms: Iterable[Any]) -> set[Var]:
    """Those of an equation's operands that are not literals."""
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def needed_for(
    wanted: Iterable[Any], eqns: Sequence[JaxprEqn], given: Collection[Var]
) -> tuple[list[JaxprEqn], set[Var]]:
    """The equations that give the variables `wanted` where `given` are there, and those with
    effects; and all variables that these read.
    """
    needed, found = variables(wanted), []
    for eqn in reversed(eqns):
        if needed.difference(given).intersection(eqn.outvars) or eqn.effects:
            found.append(eqn)
            needed |= variables(eqn.invars)
    return found[::-1], needed
