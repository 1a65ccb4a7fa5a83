"""Fields of another project's config, read one by one; what is not supported is named."""

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from imagen_jax.models.bounds import MAX_WIDTH
from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.wrong_files import brief

MAX_LENGTH = 64  # of a list, which has one entry a level


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object. Every method raises ValueError, which names the object by
    `owner`, the field, its value and what would be right.
    """

    owner: str
    values: Mapping[str, Any]

    def refuse(self, field: str, supported: str) -> NoReturn:
        """ValueError that names the field, its value and what is supported."""
        shown = repr(self.values[field])[:80] if field in self.values else "missing"
        raise ValueError(f"{self.owner}'s {field} is {shown}; supported is {supported}.")

    def choice(self, field: str, choices: Mapping[Any, Any]) -> Any:
        """What a name (or null) stands for."""
        value = self.values.get(field)
        if not isinstance(value, str | None) or value not in choices:
            self.refuse(field, " or ".join(map(repr, choices)))
        return choices[value]

    def flag(self, field: str) -> bool:
        """A field that is true or false; ValueError otherwise."""
        if not isinstance(self.values[field], bool):
            self.refuse(field, "true or false")
        return self.values[field]

    def positive(self, field: str, most: float = sys.float_info.max) -> float:
        """A field that is a number in (0, most]; ValueError otherwise."""
        value = self.values[field]
        if type(value) not in (int, float) or not 0 < value <= most:
            limit = "" if most == sys.float_info.max else f", at most {most}"
            self.refuse(field, f"a positive number{limit}")
        return float(value)

    def count(self, field: str, most: int = MAX_WIDTH) -> int:
        """A positive integer, or a list that repeats one."""
        value = self.values.get(field)
        items = value if isinstance(value, list | tuple) and value else [value]
        if not all(_is_count(item, most) and item == items[0] for item in items):
            self.refuse(field, f"an integer from 1 to {most}, the same throughout")
        return items[0]

    def counts(self, field: str, length: int | None = None, most: int = MAX_WIDTH) -> list[int]:
        """A list of positive integers; with a known length, a single one stands for all."""
        what = f"integers from 1 to {most}"
        return self._list(field, length, what, lambda value: _is_count(value, most))

    def flags(self, field: str, length: int) -> list[bool]:
        """A list of so many flags; a single one stands for all."""
        return self._list(field, length, "flags", lambda value: isinstance(value, bool))

    def _list(
        self, field: str, length: int | None, what: str, fits: Callable[[Any], bool]
    ) -> list[Any]:
        value = self.values[field]
        items = [value] * length if length and fits(value) else value
        several = isinstance(items, list | tuple) and len(items) == (length or len(items))
        if not several or not 0 < len(items) <= MAX_LENGTH or not all(map(fits, items)):
            self.refuse(field, f"a list of {length or f'1 to {MAX_LENGTH}'} {what}")
        return list(items)


def read_config(directory: str | os.PathLike, what: str, parse: Callable[[Any], Any]) -> Any:
    """What `parse` makes of the config.json in a model's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or `parse` refuses it: it does not describe `what`.
    """
    path = Path(directory) / "config.json"
    values = read_object(path, "the config of a model")
    try:
        return parse(values)
    except ValueError as error:
        raise ValueError(f"{path} does not describe {what}: {brief(error)}.") from None


def known_fields(
    owner: str,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    idle: Collection[str],
    supported: str,
) -> Fields:
    """The fields of `defaults`, which holds what those stand for that `values` leaves out.

    Args:
        idle: further fields, which have no effect here.
        supported: whose fields are known, for the message.

    Raises:
        ValueError: there is another field, set to more than null or false. Names that start with
            "_" are notes: class, version, origin.
    """
    for field in sorted(set(values) - set(defaults) - set(idle)):
        if not field.startswith("_") and values[field] not in (None, False):
            raise ValueError(
                f"{owner} has an unknown field, {field} = {values[field]!r}; supported are those "
                f"of {supported}."
            )
    return Fields(owner, {field: values.get(field, value) for field, value in defaults.items()})
