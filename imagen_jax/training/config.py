"""A config file, and the keys that a command line overrides.

Not ml_collections' own `config_flags`, which cannot override None and refuses list indices, and 1e5
for an int.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from imagen_jax.storage.codec import nearest, to_dict
from imagen_jax.storage.folders import expand_home, user_path

# Keys of a config, and how others name them, in the same section or one around it.
OTHER_KEYS = {
    "batch_size": "bs batch train_batch_size per_device_train_batch_size",
    "num_steps": "steps max_train_steps max_steps train_steps iterations epochs num_epochs "
    "num_train_epochs",
    "optimizer.learning_rate": "learning_rate lr base_lr",
    "optimizer.accumulation": "gradient_accumulation_steps grad_accum accumulate",
    "data.path": "data train_data_dir instance_data_dir data_dir data_path dataset dataset_name "
    "image_folder",
    "stage.resolution": "resolution image_size size",
    "stage.network.remat": "gradient_checkpointing use_checkpoint",
    "stage.network.dtype": "mixed_precision dtype fp16 bf16 use_fp16",
    "sample.prompts": "validation_prompt validation_prompts sample_prompts",
    "checkpoint.every": "checkpointing_steps save_steps save_interval save_every_n_steps",
    "log_every": "log_interval logging_steps",
}


PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs"
if not CONFIGS.is_dir():  # in a clone they are beside the package
    CONFIGS = PACKAGE.parent / "configs"
FOLDER = "imagen_jax_config"  # the package that a config is a module of while it is executed


def config_names() -> list[str]:
    """The configs that come with the package; each is a value of `--config`."""
    return sorted(file.stem for file in CONFIGS.glob("*.py"))


def config_file(name: str | Path) -> Path:
    """A config's file: a path as it is, or that of a config that comes with the package by its
    name.

    Raises:
        ValueError: there is neither; the message has what there is.
    """
    path = user_path(name)
    if path.is_file():
        return path
    names = config_names()
    if str(name) in names:
        return CONFIGS / f"{name}.py"
    if path.stem in names:
        said = f"; the one that comes with the package is --config {path.stem}"
    elif path.parent == Path():
        close = nearest(path.stem, names)
        said = close if "did you mean" in close or path.suffix != ".py" else ""
    else:
        folder = path if path.is_dir() else path.parent
        others = ", ".join(sorted(file.name for file in folder.glob("*.py")))
        said = f"; {folder} has {others}" if others else ""
    raise ValueError(f"there is no config file {path}{said}")


def load_module(name: str | Path, function: str = "get_config") -> ModuleType:
    """A config's file executed, as a module of a package: `from . import folder_64` is the config
    of that name beside it, or else the one that comes with the package.

    Raises:
        ValueError: there is no such config (`config_file`), or it lacks the function.
    """
    path = config_file(name)
    for loaded in [key for key in sys.modules if key.partition(".")[0] == FOLDER]:
        del sys.modules[loaded]  # of another folder, or edited since
    sys.modules[FOLDER] = folder = ModuleType(FOLDER)
    folder.__path__ = [str(path.parent), str(CONFIGS)]
    spec = importlib.util.spec_from_file_location(f"{FOLDER}.{path.stem}", path)
    if spec is None:
        raise ValueError(f"{path} is no config: a config is a Python file (.py) with {function}()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ValueError(f"{path} has no function {function}()")
    return module


def load_config(name: str | Path) -> ConfigDict:
    """What `get_config()` of a config returns: one that comes with the package by its name, such as
    "folder_64", or a Python file's.

    Raises:
        ValueError: there is no such config; the message has what there is.
    """
    return ConfigDict(load_module(name).get_config(), convert_dict=True)


def with_homes(value: Any) -> Any:
    """A config's value, and all within it, with ~/... and ~name/... expanded: only paths begin so.

    Raises:
        ValueError: there is no such home.
    """
    if isinstance(value, dict):
        return {key: with_homes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_homes(item) for item in value]
    is_path = isinstance(value, str) and re.fullmatch(r"~[\w.-]*(/.*)?", value)
    return expand_home(value) if is_path else value


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.key=value` (or `--config.key value`) out of a command line.

    Returns the other arguments and {key: value}.
    """
    rest, overrides, remaining = [], {}, iter(arguments)
    for argument in remaining:
        if not argument.startswith(("--config.", "-config.")):
            rest.append(argument)
            continue
        key, equals, value = argument.lstrip("-").removeprefix("config.").partition("=")
        overrides[key] = value if equals else next(remaining, None)
        if overrides[key] is None or overrides[key].startswith("--"):
            raise ValueError(f"--config.{key} needs a value: --config.{key}=...")
    return rest, overrides


def plain_key(key: str) -> str:
    """stage.network.levels[0].channels -> stage.network.levels.0.channels."""
    return key.replace("[", ".").replace("]", "")


def read_value(text: str) -> Any:
    """What the text of an override means: a Python literal, and a plain string where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets keys such as "optimizer.learning_rate" or "stage.network.levels.0.channels".

    A value is read as a Python literal, and as a plain string where it is none. Whether the key
    exists and the type fits is checked when the config is read (`read_config`).
    """
    values = to_dict(config)
    for key, text in overrides.items():
        value = read_value(text)
        path = plain_key(key).split(".")
        node = values
        for i, name in enumerate(path[:-1], start=1):
            child = _entries(node).get(name)
            if not isinstance(child, dict | list):
                raise ValueError(
                    f"--config.{key}: {'.'.join(path[:i])!r} is not a section of the config"
                    f"{nearest(name, _entries(node))}"
                )
            node = child
        last = path[-1]
        if last not in _entries(node):
            for ours, others in OTHER_KEYS.items():
                other = last in others.split() and ours != key
                if other and ours.startswith(".".join(path[:-1])):
                    raise ValueError(f"unknown key --config.{key}; here it is --config.{ours}")
        if isinstance(node, list) and last not in _entries(node):
            raise ValueError(f"--config.{key}: the list has {len(node)} entries")
        node[int(last) if isinstance(node, list) else last] = value
    with config.unlocked(), config.ignore_type():
        for name, value in values.items():
            config[name] = value


def _entries(node: dict | list) -> dict[str, Any]:
    """What a key may go on with: the keys of a section, the indices of a list."""
    return node if isinstance(node, dict) else {str(i): item for i, item in enumerate(node)}
