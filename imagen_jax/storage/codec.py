"""Dataclasses from and to plain dicts, as configs and JSON files hold them.

A dataclass's fields are the keys that its dict may have: an unknown key, a missing one and a value
of the wrong type are errors that name the key by its path. Our own and not cattrs, which converts
values where we check them, and gathers its errors in groups that no user wants to read.

A field may be a number, string, bool, Literal, tuple, Mapping of names, dataclass, Any, or a union
of these. This file knows no class of ours: `kinds` is {field: {kind: dataclass}} for fields that
may be one of several dataclasses, which the key `kind` tells apart. MERGED fields have no dict of
their own: their keys stand among the others.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

Section = ConfigDict | Mapping[str, Any]  # a ConfigDict is not a Mapping
Kinds = Mapping[str, Mapping[str, type]]

NO_KINDS: Kinds = types.MappingProxyType({})
MERGED = "merged"  # field(metadata={MERGED: True})


def nearest(name: str, known: Iterable[str]) -> str:
    """For error messages: "; did you mean 'x'?", or the known names."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def require(*rules: tuple[Any, str]) -> None:
    """ValueError with the message of the first rule (holds, message) that does not hold."""
    for holds, message in rules:
        if not holds:
            raise ValueError(message)


def to_dict(value: Any, kinds: Kinds = NO_KINDS) -> Any:
    """A dataclass, a ConfigDict or any mapping as dicts, lists and scalars, ready for JSON."""
    if isinstance(value, ConfigDict | Mapping):
        return {key: to_dict(item, kinds) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item, kinds) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    result = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        plain = to_dict(item, kinds)
        if field.name in kinds:
            kind = next(kind for kind, cls in kinds[field.name].items() if type(item) is cls)
            plain = {"kind": kind, **plain}
        result |= plain if MERGED in field.metadata else {field.name: plain}
    return result


def from_dict(cls: type, values: Any, path: str = "", kinds: Kinds = NO_KINDS) -> Any:
    """The dataclass `cls` of a dict: the inverse of `to_dict`.

    Args:
        path: where the dict stands, for messages: "stage.network".

    Raises:
        ValueError: a key is unknown or missing, or a value is not of its field's type, or is
            refused by the dataclass; the message names it.
    """
    rest, hints = dict(_section(values, path)), typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    own = [name for name, field in fields.items() if MERGED not in field.metadata]
    known, arguments = list(own), {}
    for name in fields.keys() - own:
        keys = [key for key in rest if key not in own]
        if dataclasses.is_dataclass(hints[name]):
            keys = [field.name for field in dataclasses.fields(hints[name])]
        known += keys
        section = {key: rest.pop(key) for key in keys if key in rest}
        arguments[name] = _convert(section, hints[name], path, kinds)
    for key, value in rest.items():
        if key not in own:
            raise ValueError(f"unknown key {_join(path, key)!r}{nearest(key, known)}")
        arguments[key] = _convert(value, hints[key], _join(path, key), kinds)
    for name, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in arguments:
            raise ValueError(f"there is no {_join(path, name)!r}, which is needed")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from error


def _section(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path!r} is {value!r}; it must be a section of keys")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(value: Any, hint: Any, path: str, kinds: Kinds) -> Any:
    """A value as the type of its field: see the module's docstring for what that may be."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _of_kind(value, hint, path, kinds)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, path, kinds)
    if origin is tuple:
        return _tuple(value, arguments, path, kinds)
    if origin is Mapping:
        items = _section(value, path).items()
        return {key: _convert(item, arguments[1], _join(path, key), kinds) for key, item in items}
    if origin is typing.Literal and value not in arguments:
        choices = ", ".join(map(repr, arguments))
        raise ValueError(f"{path!r} is {value!r}; it must be one of {choices}")
    return value if hint is Any or origin is typing.Literal else _scalar(value, hint, path)


def _of_kind(value: Any, cls: type, path: str, kinds: Kinds) -> Any:
    if dataclasses.is_dataclass(value):  # the caller has made it
        return value
    table = kinds.get(path.rpartition(".")[2])
    if table is None:
        return from_dict(cls, value, path, kinds)
    section = dict(_section(value, path))
    kind = section.pop("kind", None)
    if kind not in table:
        raise ValueError(f"{path + '.kind'!r} is {kind!r}{nearest(str(kind or ''), table)}")
    return from_dict(table[kind], section, path, kinds)


def _one_of(value: Any, hints: tuple, path: str, kinds: Kinds) -> Any:
    """A value of a union: as a dataclass, which `kinds` may choose, or as the first that fits."""
    if value is None and type(None) in hints:
        return None
    errors = []
    for hint in hints:
        try:
            return _convert(value, hint, path, kinds)
        except ValueError as error:
            if dataclasses.is_dataclass(hint):
                raise
            errors.append(error)
    raise errors[0]


def _tuple(value: Any, hints: tuple, path: str, kinds: Kinds) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path!r} is {value!r}; it must be a list")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{path!r} has {len(value)} entries, not {len(hints)}")
    items = enumerate(zip(value, hints, strict=True))
    return tuple(_convert(item, hint, f"{path}.{i}", kinds) for i, (item, hint) in items)


def _scalar(value: Any, cls: type, path: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (cls is float or (cls is int and value == value // 1)):
        return cls(value)  # 1e5 is a natural way to write a number of steps
    if type(value) is not cls:
        unquoted = cls is str and isinstance(value, int | float)
        hint = f"; on a command line, quote it twice: '\"{value}\"'" if unquoted else ""
        raise ValueError(f"{path!r} is {value!r}; it must be of type {cls.__name__}{hint}")
    return value
