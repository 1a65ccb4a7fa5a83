"""From a config file to typed values: reading it, overriding keys, and checking every key.

Each section of the ConfigDict becomes a frozen dataclass whose fields are the keys it may have, so
an unknown key, a missing one or a value of the wrong type is an error that names it.
"""

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagen_jax.storage.codec import nearest


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
