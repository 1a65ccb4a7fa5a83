"""Nested dicts of arrays as flat ones by "a/b/c", and back."""

import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from imagen_jax.typing import Params

SHOWN_NAMES = 8


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": leaf}} to {"a/b": leaf}, sorted by name.

    ValueError: a key is not a name, or has a "/" in it.
    """
    flat = traverse_util.flatten_dict(params)
    for key in {key for path in flat for key in path}:
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(
                f"A tree of parameters has the key {key!r}: keys must be names without '/'."
            )
    return {"/".join(path): flat[path] for path in sorted(flat)}


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`. ValueError: a parameter lies below another one."""
    parents = {name[: slash.start()] for name in flat for slash in re.finditer("/", name)}
    for name in sorted(parents & set(flat)):
        raise ValueError(f"Parameter {name!r} is also the parent of others.")
    return traverse_util.unflatten_dict(flat, sep="/")


def name_some(names: list[str]) -> str:
    """The first few of many names, for an error message."""
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
