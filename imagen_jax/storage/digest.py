"""A number for each array that changes with any of its bits, to compare what is read with what was
written.

Computed where the array lies, and the same on any mesh: integers are summed exactly in any order.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Arrays = Mapping[str, Mapping[str, Any]]  # {item: {path: array, or its shape}}


def _digest(array: jax.Array) -> jax.Array:
    """Sum of the elements' bits times odd numbers that differ by place, modulo 2**32.

    An odd factor is invertible, so a change of one element always shows.
    """
    bits = jnp.uint8 if array.dtype == bool else jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    words = array.astype(bits) if array.dtype == bool else jax.lax.bitcast_convert_type(array, bits)
    place, stride = jnp.uint32(0), 1
    for axis in reversed(range(array.ndim)):
        steps = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += steps * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


@jax.jit
def _digests(items: Arrays) -> dict[str, dict[str, jax.Array]]:
    """One program for all: several with collectives, started at once, could deadlock."""
    return jax.tree.map(_digest, items)


def described(items: Arrays) -> dict[str, dict[str, list]]:
    """{item: {path: [shape, digest]}} of {item: {path: array}}, JSON-able."""
    numbers = jax.device_get(_digests(items))
    return {
        item: {path: [list(leaf.shape), int(numbers[item][path])] for path, leaf in flat.items()}
        for item, flat in items.items()
    }


def first_fault(items: Arrays, saved: Mapping[str, Mapping[str, list]] | None) -> str | None:
    """Names the first array that is not as `described` when it was saved; None where all are, or
    where nothing was saved (by versions before the digests).
    """
    if saved is None:
        return None
    for item, arrays in described(items).items():
        for path, found in arrays.items():
            if found != saved[item].get(path):
                return f"{item}/{path} is not what was saved"
    return None


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def signed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able values with their own hash beside them."""
    return {**values, "hash": _hash(values)}


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `signed` was given; ValueError where it has changed.

    Versions before the digests signed nothing: without a hash and without `arrays` nothing is
    checked.
    """
    if "hash" not in values and "arrays" not in values:
        return dict(values)
    unsigned = {name: value for name, value in values.items() if name != "hash"}
    if values.get("hash") != _hash(unsigned):
        raise ValueError("its description is not what was saved")
    return unsigned
