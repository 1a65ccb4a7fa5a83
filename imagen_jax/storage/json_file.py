"""JSON that others wrote, in files and out of them: strict, of limited size, faults named.

All foreign JSON is parsed here.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.codec import from_dict
from imagen_jax.storage.wrong_files import START, absent, brief, refusal, what_it_is

# config.json is a few kB, the index of the largest models well below 1 MB, tokenizer.json 20 MB.
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100  # far below where Python's own recursion ends
MAX_DIGITS = 308  # of a whole number: each can be made a float


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_distinct([name for name, _ in pairs])
    return dict(pairs)


def check_distinct(names: Sequence[str]) -> None:
    """ValueError for a name that comes twice."""
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise ValueError(f"it has {twice[:80]!r} twice")


def _constant(name: str) -> float:
    if name == "-Infinity":  # diffusers writes it: lambda_min_clipped of DPM-Solver
        return -math.inf
    raise ValueError(f"it has {name}, which is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {digits[:40]}, which is too large")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        shown = f"{digits[:12]}... of {len(digits):,} digits"
        raise ValueError(f"it has the number {shown}, which is too large")
    return int(digits)


STRICT = {"parse_constant": _constant, "parse_float": _finite}


def parse(content: bytes | str, lenient: bool = False) -> Any:
    """A JSON value; a ValueError says what is wrong with it, in words to follow a colon.

    Args:
        lenient: takes what image crawlers write: NaN, infinite numbers, and half a character in a
            string.
    """
    checks = {"object_pairs_hook": _object, "parse_int": _whole} | ({} if lenient else STRICT)
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        values = json.loads(text, **checks)
        _check_depth(values)
        if not lenient:
            text.encode()
            if "\\ud" in text.lower():  # perhaps half a character, which nothing can write
                json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        raise ValueError(f"it has half a character, {half}, in a string") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"it is not JSON ({error.msg}, {line}column {error.colno})") from None
    return values


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise RecursionError


def parse_object(content: bytes | str, lenient: bool = False) -> dict[str, Any]:
    """`parse`, where it must be an object."""
    values = parse(content, lenient)
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
        raise FileNotFoundError(absent(path))
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} is not {kind}: it has {size} bytes, more than {MAX_BYTES}.")
    content = path.read_bytes()
    try:
        values = parse_object(content)
    except ValueError as error:
        raise ValueError(refusal(path, kind, error, ("text",))) from None
    if found := what_it_is(content[:START], size, ("text",)):
        raise ValueError(f"{path} is not {kind}: it is {found}.")
    return values


def read_dataclass(path: str | os.PathLike, kind: str, cls: type) -> Any:
    """The JSON object in a file as the dataclass `cls`: `read_object`, then `from_dict`."""
    values = read_object(path, kind)
    try:
        return from_dict(cls, values)
    except ValueError as error:
        raise ValueError(f"{path} is not {kind}: {brief(error)}.") from error


def write_object(path: str | os.PathLike, values: dict[str, Any]) -> None:
    """Writes a JSON object as Hugging Face's libraries do, whole or not at all."""
    content = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    with written_whole(path) as file:
        file.write_text(content + "\n", encoding="utf-8")
