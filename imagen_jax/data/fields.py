"""What the fields of an example say: captions, a class number, a size, other numbers.

What a field cannot be is a ValueError, in words to follow the example's key and a colon.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from imagen_jax.data.captions import Captions
from imagen_jax.storage import list_file


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object. Not `storage.json_file`: it refuses NaN, which image crawlers write."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object")
    return values


def to_captions(value: Any, name: str) -> Captions:
    """The captions in a field: a text, several, or {"text": [...]} with or without a "weight" each.

    Texts are strings or UTF-8 bytes. The lines of each become one; blank texts are left out.
    """
    section = value if isinstance(value, Mapping) else {"text": value}
    texts = section.get("text")
    several = isinstance(texts, Iterable) and not isinstance(texts, (str, bytes))
    texts = list(texts) if several else [texts]
    if not texts or not all(isinstance(text, (str, bytes)) for text in texts):
        raise ValueError(f"has no text {name!r}")
    weights = section.get("weight", [1.0] * len(texts))
    try:
        texts = [list_file.decode(text) if isinstance(text, bytes) else text for text in texts]
    except ValueError as error:
        raise ValueError(f"its caption {error}") from None
    lines = [" ".join(filter(None, map(str.strip, text.split("\n")))) for text in texts]
    captions = [(line, float(weight)) for line, weight in zip(lines, weights, strict=True) if line]
    if not captions:
        raise ValueError("its caption is empty")
    return captions


def to_label(value: Any) -> int:
    """The class number in a field: an int, or its digits as a string or bytes."""
    if isinstance(value, bytes):
        value = value.strip().decode("ascii", "replace")
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"its label is {str(value)[:50]!r}; it must be a class number")
    return value


def to_size(values: Mapping[str, Any]) -> tuple[int, int]:
    """(`width`, `height`); 0, 0 where they are missing or cannot be sizes."""
    sides = values.get("width"), values.get("height")
    return sides if all(type(side) is int and 0 < side < 2**31 for side in sides) else (0, 0)


def to_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the fields, as floats."""
    return {
        name: float(value)
        for name, value in values.items()
        if type(value) in (int, float) and abs(value) < 1e300
    }
