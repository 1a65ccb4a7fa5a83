"""What one visitor may ask for: values from outside are checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.diffusion.overrides import is_number


@dataclass(frozen=True)
class Limits:
    """The most of each.

    images: of one request. steps: of a stage's sampler, or as many as the model was saved with.
    characters: of a prompt. upload_bytes: of one request's files. pixels: of an image that was
    uploaded. waiting: requests in the queue. kept_bytes: of all visitors' files.
    """

    images: int = 8
    steps: int = 250
    characters: int = 1000
    upload_bytes: int = 20 * 2**20
    pixels: int = 2**24
    waiting: int = 20
    kept_bytes: int = 4 * 2**30


def check_text(name: str, value: Any, limits: Limits) -> str:
    """The text without surrounding spaces, "" for None; ValueError for all else, or too much."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"The {name} must be text.")
    if len(value) > limits.characters:
        raise ValueError(
            f"The {name} has {len(value):,} characters; {limits.characters:,} are the most here."
        )
    if any(character < " " and character not in "\t\n\r" for character in value):
        raise ValueError(f"The {name} has control characters in it.")
    return value.strip()


def check_most(name: str, value: Any, most: int) -> Any:
    """The value, of which the pipeline checks more; ValueError where it is no number or beyond."""
    if value is None:
        return None
    if isinstance(value, bool) or not is_number(value):
        raise ValueError(f"{name} must be a number.")
    if abs(value) > most:
        raise ValueError(f"{name} is {value:g}; {most:,} is the most here.")
    return value


def check_sampling(entries: Any, most: int) -> None:
    """ValueError where settings from outside, a list of stages', ask for too many steps."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError("The settings' sampling must be a list, with an entry for each stage.")
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError("An entry of the settings' sampling must be an object.")
        check_most("steps", entry.get("steps"), most)
        times = entry.get("spacing")
        if isinstance(times, list) and len(times) > most:
            raise ValueError(f"The spacing has {len(times):,} times; {most:,} is the most here.")
