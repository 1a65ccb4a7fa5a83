"""From a config file to typed values: reading it, overriding keys, and checking every key.

Each section of the ConfigDict becomes a frozen dataclass whose fields are the keys it may have, so
an unknown key, a missing one or a value of the wrong type is an error that names it.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

Section = ConfigDict | Mapping[str, Any]  # a ConfigDict is no Mapping


def load_config(path: str | Path) -> ConfigDict:
    """Calls `get_config()` of a Python file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no config file {path}{_nearest_file(path)}")
    spec = importlib.util.spec_from_file_location("imagen_jax_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no function get_config()")
    return ConfigDict(module.get_config(), convert_dict=True)


def _nearest_file(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    return f"; {path.parent} has {', '.join(sorted(names))}" if names else ""


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.key=value` (or `--config.key value`) out of a command line.

    Returns the other arguments and {key: value}.
    """
    rest, overrides, waiting = [], {}, None
    for argument in arguments:
        if waiting is not None:
            overrides[waiting], waiting = argument, None
        elif argument.startswith(("--config.", "-config.")):
            key, equals, value = argument.lstrip("-").removeprefix("config.").partition("=")
            if equals:
                overrides[key] = value
            else:
                waiting = key
        else:
            rest.append(argument)
    if waiting is not None:
        raise ValueError(f"--config.{waiting} needs a value: --config.{waiting}=...")
    return rest, overrides


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets keys such as "optimizer.learning_rate" or "stage.network.levels.0.channels".

    A value is read as a Python literal, and as a plain string where it is none. Whether the key
    exists and the type fits is checked when the section is made typed (`build`).
    """
    for key, text in overrides.items():
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
        *parents, last = key.replace("[", ".").replace("]", "").split(".")
        node: Any = config
        for i, name in enumerate(parents):
            child = _child(node, name)
            if isinstance(child, tuple):  # lists of levels: tuples cannot be changed in place
                child = list(child)
                _set(node, name, child)
            if not isinstance(child, (Mapping, ConfigDict, list)):
                path = ".".join(parents[: i + 1])
                known = node.keys() if isinstance(node, (Mapping, ConfigDict)) else ()
                raise ValueError(
                    f"--config.{key}: {path!r} is no section of the config{nearest(name, known)}"
                )
            node = child
        _set(node, last, value)


def _child(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return node[int(name)] if name.isdigit() and int(name) < len(node) else None
    return node.get(name)


def _set(node: Any, name: str, value: Any) -> None:
    if isinstance(node, list):
        if not name.isdigit() or int(name) >= len(node):
            raise ValueError(f"{name!r} is no index of a list of {len(node)}")
        node[int(name)] = value
    elif isinstance(node, ConfigDict):
        with node.unlocked(), node.ignore_type():
            node[name] = value
    else:
        node[name] = value


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
        where = f"config section {path!r}" if path else "the config"
        raise ValueError(f"{where}: {error}") from error


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


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


def keywords(function: Any, taken: Iterable[str]) -> list[str]:
    """The names of a function's parameters but for those `taken`."""
    return [name for name in inspect.signature(function).parameters if name not in set(taken)]
