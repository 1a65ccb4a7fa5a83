"""Fields of another project's config, read one by one; what is not supported is named."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

# Far above every model: what is larger is none, and would exhaust the memory.
MAX_SIZE = 2**24
MAX_LENGTH = 64  # of a list, which has one entry a level


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object. Every method raises ValueError, which names the object by
    `owner`, the field, its value and what would be right.
    """

    owner: str
    values: Mapping[str, Any]

    def refuse(self, field: str, supported: str) -> NoReturn:
        value = self.values[field]
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        raise ValueError(f"{self.owner}'s {field} is {shown}; supported is {supported}.")

    def choice(self, field: str, choices: Mapping[str | None, Any]) -> Any:
        """What a name (or null) stands for."""
        value = self.values[field]
        if not isinstance(value, str | None) or value not in choices:
            self.refuse(field, " or ".join(map(repr, choices)))
        return choices[value]

    def flag(self, field: str) -> bool:
        if not isinstance(self.values[field], bool):
            self.refuse(field, "true or false")
        return self.values[field]

    def positive(self, field: str) -> float:
        value = self.values[field]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            self.refuse(field, "a positive number")
        return float(value)

    def count(self, field: str, most: int = MAX_SIZE) -> int:
        """A positive integer, or a list that repeats one."""
        value = self.values[field]
        items = value if isinstance(value, list | tuple) and value else [value]
        if not all(_is_count(item, most) and item == items[0] for item in items):
            self.refuse(field, f"an integer from 1 to {most}, the same throughout")
        return items[0]

    def counts(self, field: str, length: int | None = None, most: int = MAX_SIZE) -> list[int]:
        """A list of positive integers; with a known length, a single one stands for all."""
        value = self.values[field]
        items = [value] * length if length and _is_count(value, most) else value
        fits = isinstance(items, list | tuple) and len(items) == (length or len(items)) > 0
        if not fits or len(items) > MAX_LENGTH or not all(_is_count(item, most) for item in items):
            several = length or f"1 to {MAX_LENGTH}"
            self.refuse(field, f"a list of {several} integers from 1 to {most}")
        return list(items)

    def flags(self, field: str, length: int) -> list[bool]:
        """A list of so many flags; a single one stands for all."""
        value = self.values[field]
        items = [value] * length if isinstance(value, bool) else value
        fits = isinstance(items, list | tuple) and len(items) == length
        if not fits or not all(isinstance(item, bool) for item in items):
            self.refuse(field, f"true, false or a list of {length} of them")
        return list(items)

    def names(self, field: str, length: int) -> list[str]:
        value = self.values[field]
        fits = isinstance(value, list | tuple) and len(value) == length
        if not fits or not all(isinstance(item, str) for item in value):
            self.refuse(field, f"a list of {length} names")
        return list(value)
