"""Dataclasses from and to plain dicts.

Fields are the keys that a dict may have, so an unknown key, a missing one or a value of the wrong
type is an error that names it.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

Section = ConfigDict | Mapping[str, Any]  # a ConfigDict is no Mapping


# Fields that `read_config` makes out of keys of the section above.
MERGED = ("sampling", "options")


def nearest(name: str, known: Iterable[str]) -> str:
    """For error messages: "; did you mean 'x'?", or the known names."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def as_dict(section: Any) -> Any:
    """A ConfigDict as plain dicts, lists and scalars, ready for JSON."""
    if isinstance(section, (ConfigDict, Mapping)):
        return {key: as_dict(value) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [as_dict(value) for value in section]
    return section


def typed(cls: type, section: Section, path: str, kinds: Mapping[str, Mapping[str, type]]) -> Any:
    """Makes the dataclass `cls` from a section; its fields are the known keys.

    Args:
        path: where the section stands, for messages: "stage.network".
        kinds: for fields that may be one of several dataclasses: {field: {kind: dataclass}}; the
            section's key `kind` chooses.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in section:
        if name not in known:
            raise ValueError(f"unknown config key {_join(path, name)!r}{nearest(name, known)}")
    for name, field in known.items():
        default = field.default, field.default_factory
        if name not in section and default == (dataclasses.MISSING,) * 2:
            raise ValueError(f"the config has no {_join(path, name)!r}, which is needed")
    values = {
        name: _convert(value, hints[name], _join(path, name), kinds)
        for name, value in section.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"config section {path!r}: {error}" if path else str(error)) from error


def _join(path: str, name: str) -> str:
    """The path of a key as a user writes it."""
    return ".".join(part for part in (path, name) if part and part not in MERGED)


def _convert(value: Any, hint: Any, path: str, kinds: Mapping[str, Mapping[str, type]]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert_union(value, arguments, path, kinds)
    if dataclasses.is_dataclass(hint):
        return _convert_section(value, [hint], path, kinds)
    if origin is typing.Literal:
        if value not in arguments:
            choices = ", ".join(repr(choice) for choice in arguments)
            raise ValueError(f"config key {path!r} is {value!r}; it must be one of {choices}")
        return value
    if origin is tuple or hint is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"config key {path!r} is {value!r}; it must be a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if arguments and len(arguments) != len(value):
            raise ValueError(f"config key {path!r} has {len(value)} entries, not {len(arguments)}")
        wanted = arguments or (Any,) * len(value)
        return tuple(
            _convert(item, item_hint, f"{path}.{i}", kinds)
            for i, (item, item_hint) in enumerate(zip(value, wanted, strict=True))
        )
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5 is a natural way to write a number of steps
    plain = hint in (int, float, bool, str)
    if plain and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        quoted = f"""; on the command line quote it twice: --config.{path}='"{value}"'"""
        raise ValueError(
            f"config key {path!r} is {value!r}; it must be of type {hint.__name__}"
            + (quoted if hint is str and isinstance(value, (int, float)) else "")
        )
    if isinstance(hint, type) and not isinstance(value, hint):  # a number that is an array
        raise ValueError(f"config key {path!r} is {value!r}; it must be of type {hint.__name__}")
    return as_dict(value)


def _convert_union(value: Any, arguments: tuple, path: str, kinds: Mapping) -> Any:
    classes = [argument for argument in arguments if dataclasses.is_dataclass(argument)]
    if classes and isinstance(value, (Mapping, ConfigDict)):
        return _convert_section(value, classes, path, kinds)
    errors = []
    for argument in arguments:
        if argument is type(None) or argument in classes:
            continue
        try:
            return _convert(value, argument, path, kinds)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[0] if errors else f"config key {path!r} must be a section or None")


def _convert_section(value: Any, classes: list[type], path: str, kinds: Mapping) -> Any:
    if not isinstance(value, (Mapping, ConfigDict)):
        raise ValueError(f"config key {path!r} is {value!r}; it must be a section of keys")
    section = dict(value.items())
    table = kinds.get(path.rsplit(".", 1)[-1])
    if table is None:
        return typed(classes[0], section, path, kinds)
    kind = section.pop("kind", None)
    if kind not in table:
        hint = nearest(str(kind), table) if kind is not None else f"; known: {', '.join(table)}"
        raise ValueError(f"config key {path + '.kind'!r} is {kind!r}{hint}")
    return typed(table[kind], section, path, kinds)
