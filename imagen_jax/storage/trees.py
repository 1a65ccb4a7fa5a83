"""Nested dicts of arrays as flat ones by "a/b/c", and back."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.typing import Params


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": leaf}} to {"a/b": leaf}, sorted by name."""
    flat = {}
    for key in sorted(params):
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(
                f"A tree of parameters has the key {key!r}: keys are names without '/'."
            )
        value = params[key]
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"Parameter {name!r} lies below another parameter.")
        if last in node:
            raise ValueError(f"Parameter {name!r} is also the parent of others.")
        node[last] = value
    return tree


SHOWN_NAMES = 8


def name_some(names: list[str]) -> str:
    """The first few of many names, for an error message."""
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
