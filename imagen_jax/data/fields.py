"""What the fields of an example say: captions, a class number, a size, other numbers.

What a field cannot be is a ValueError, in words to follow the example's key and a colon.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from imagen_jax.data.captions import Captions
from imagen_jax.storage import list_file
from imagen_jax.storage.json_file import parse_object
from imagen_jax.storage.wrong_files import START, what_it_is


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object as image crawlers write it, with NaN."""
    try:
        return parse_object(data, lenient=True)
    except ValueError as error:
        found = what_it_is(data[:START], len(data), ("text",))
        raise ValueError(f"is {found}" if found else f"is not a JSON object: {error}") from None


def to_captions(value: Any, name: str) -> Captions:
    """The captions in a field: a text, several, [text, weight] pairs, or {"text": [...]} with or
    without a "weight" each.

    Texts are strings or UTF-8 bytes. The lines of each become one; blank texts are left out.
    """
    if isinstance(value, list) and value and all(map(_is_weighted, value)):
        value = dict(zip(("text", "weight"), zip(*value, strict=True), strict=True))
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


def _is_weighted(value: Any) -> bool:
    """Whether it is a [text, weight] pair."""
    return isinstance(value, list) and len(value) == 2 and type(value[1]) in (int, float)


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
