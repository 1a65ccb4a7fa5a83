"""JSON objects in files; those that others wrote: strict, of limited size, faults named."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.codec import from_dict

# config.json is a few kB, the index of the largest models well below 1 MB, tokenizer.json 20 MB.
MAX_BYTES = 64 * 2**20


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has {twice!r} twice")
    return values


def _constant(name: str) -> float:
    if name == "-Infinity":  # diffusers writes it: lambda_min_clipped of DPM-Solver
        return -math.inf
    raise ValueError(f"it has {name}, which is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {digits[:40]}, which is too large")
    return value


def parse_object(content: bytes) -> dict[str, Any]:
    """A JSON object from bytes; a ValueError says what is wrong with them, in words to follow a
    colon.
    """
    try:
        values = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}, not an object")
    return values


def read_object(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        kind: what the file ought to be, for the message: "an index of safetensors".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, damaged, or holds something else; NaN, Infinity and names that
            occur twice are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} is not {kind}: it has {size} bytes, more than {MAX_BYTES}.")
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not {kind}: {error}.") from None


def read_dataclass(path: str | os.PathLike, kind: str, cls: type) -> Any:
    """The JSON object in a file as the dataclass `cls`: `read_object`, then `from_dict`."""
    values = read_object(path, kind)
    try:
        return from_dict(cls, values)
    except ValueError as error:
        raise ValueError(f"{path} is not {kind}: {error}.") from error


def write_object(path: str | os.PathLike, values: dict[str, Any]) -> None:
    """Writes a JSON object as Hugging Face's libraries do, whole or not at all."""
    content = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    with written_whole(path) as file:
        file.write_text(content + "\n", encoding="utf-8")
