"""Dataclasses from and to plain dicts, as configs and JSON files hold them.

A dataclass's fields are the keys that its dict may have: an unknown key, a missing one and a value
of the wrong type are errors that name the key by its path. Our own and not cattrs, which converts
values where we check them, and gathers its errors in groups that no user wants to read.

Three things are told by tables and by a field's metadata, for this file knows no class of ours:
`kinds` is {field: {kind: dataclass}} for fields that may be one of several dataclasses, which the
key `kind` tells apart. MERGED fields have no dict of their own: their keys stand among the others.
NONE is the value of a field that a dict has as None.
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
NONE = "none"  # field(metadata={NONE: math.inf})


def nearest(name: str, known: Iterable[str]) -> str:
    """For error messages: "; did you mean 'x'?", or the known names."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


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
        plain = to_dict(None if item == field.metadata.get(NONE) else item, kinds)
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
    values = _section(values, path)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    own = [name for name, field in fields.items() if MERGED not in field.metadata]
    merged = {name: _keys(hints[name], values, own) for name in fields if name not in own}
    known = [*own, *(key for keys in merged.values() for key in keys)]
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {_join(path, key)!r}{nearest(key, known)}")
    given = {name: {key: values[key] for key in merged[name] if key in values} for name in merged}
    given |= {key: value for key, value in values.items() if key in own}
    arguments = {}
    for name, field in fields.items():
        where = path if name in merged else _join(path, name)
        if name in given:
            value = field.metadata.get(NONE) if given[name] is None else given[name]
            arguments[name] = _convert(value, hints[name], where, kinds)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"there is no {where!r}, which is needed")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from error


def _keys(hint: Any, values: Mapping[str, Any], taken: list[str]) -> list[str]:
    """The keys of a merged field: a dataclass's, or for a mapping all that no other field has."""
    if dataclasses.is_dataclass(hint):
        return [field.name for field in dataclasses.fields(hint)]
    return [key for key in values if key not in taken]


def _section(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path!r} is {value!r}; it must be a section of keys")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(value: Any, hint: Any, path: str, kinds: Kinds) -> Any:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _of_kind(value, hint, path, kinds)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, path, kinds)
    if origin is typing.Literal:
        if value not in arguments:
            choices = ", ".join(map(repr, arguments))
            raise ValueError(f"{path!r} is {value!r}; it must be one of {choices}")
        return value
    if origin is tuple:
        return _tuple(value, arguments, path, kinds)
    if origin is Mapping:
        items = _section(value, path).items()
        return {key: _convert(item, arguments[1], _join(path, key), kinds) for key, item in items}
    return _scalar(value, hint, path) if hint in (int, float, bool, str) else value


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
    """A value of a union: as a dataclass, which `kinds` may choose, or the first that it fits."""
    if value is None and type(None) in hints:
        return None
    hints = [hint for hint in hints if hint is not type(None)]
    if dataclasses.is_dataclass(hints[0]):
        return _of_kind(value, hints[0], path, kinds)
    errors = []
    for hint in hints:
        try:
            return _convert(value, hint, path, kinds)
        except ValueError as error:
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
        quoted = f"; on a command line, quote it twice: '\"{value}\"'"
        hint = quoted if cls is str and isinstance(value, int | float) else ""
        raise ValueError(f"{path!r} is {value!r}; it must be of type {cls.__name__}{hint}")
    return value
