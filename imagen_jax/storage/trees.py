"""Trees of arrays as flat dicts by "a/b/c", and back to nested dicts."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.tree_util import DictKey

from imagen_jax.typing import Params

SHOWN_NAMES = 8
LONGEST = 160  # characters of one


def flatten(tree: Any) -> dict[str, Any]:
    """{"a": {"b": leaf}} to {"a/b": leaf}, in the order of JAX (dicts by name); any pytree will do.

    Raises:
        ValueError: a dict has a key that is not a name, or has "/" in it.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for key in (entry.key for entry in path if isinstance(entry, DictKey)):
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(
                    f"A tree of parameters has the key {key!r}: keys must be names without '/'."
                )
        flat[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`. ValueError: a parameter lies below another one."""
    parents = {name[: slash.start()] for name in flat for slash in re.finditer("/", name)}
    for name in sorted(parents & set(flat)):
        raise ValueError(f"Parameter {name!r} is also the parent of others.")
    return traverse_util.unflatten_dict(flat, sep="/")


def first_difference(found: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    """(a.b.c, what it is in `found`, in `wanted`) of the first leaf by name in which two trees of
    JSON values differ; None stands for one that is not there.
    """
    found, wanted = flatten(found), flatten(json.loads(json.dumps(wanted)))  # tuples as lists
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            return name.replace("/", "."), found.get(name), wanted.get(name)
    return None


def num_bytes(tree: Any) -> int:
    """The bytes of a tree of arrays, or of their shapes and dtypes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def name_some(names: list[str]) -> str:
    """The first few of many names, for an error message."""
    rest = len(names) - SHOWN_NAMES
    shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in names]
    return ", ".join(shown[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def shape_differences(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    """What is missing, what is unused and what has another shape: "" where nothing is."""
    kinds = {
        "missing": sorted(set(wanted) - set(found)),
        "unused": sorted(set(found) - set(wanted)),
        "misshapen": [
            f"{name} is {tuple(found[name])}, not {shape}"
            for name, shape in sorted(wanted.items())
            if name in found and tuple(found[name]) != shape
        ],
    }
    return "; ".join(f"{len(odd)} {kind}: {name_some(odd)}" for kind, odd in kinds.items() if odd)
