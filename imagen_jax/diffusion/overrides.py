"""Sampling as files and callers give it: checked, and overridden stage by stage."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from numbers import Real
from typing import Any

from imagen_jax.diffusion.guidance import GUIDANCES
from imagen_jax.diffusion.samplers import SAMPLERS
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.thresholding import THRESHOLDS
from imagen_jax.diffusion.time_grids import (
    MAX_STEPS,
    SIGMA_SPACINGS,
    SPACINGS,
    STEP_LISTS,
    STEP_SPACINGS,
    fixed_steps,
)
from imagen_jax.storage.codec import from_dict

CHOICES = {
    "sampler": SAMPLERS,
    "guidance_kind": GUIDANCES,
    "threshold": THRESHOLDS,
    "spacing": (*SPACINGS, *SIGMA_SPACINGS, *STEP_SPACINGS, *STEP_LISTS),
}
OF_THE_FIRST = ("guidance", "guidance_kind")  # a single one is the first stage's
# Fields of Sampling that are written even where they are as ever.
FIRST_FIELDS = (
    *("sampler", "steps", "spacing", "steps_offset", "lambda_min", "guidance", "guidance_interval"),
    *("guidance_rescale", "threshold", "percentile", "cap", "gamma", "eta", "learned_variance"),
    "aug_level",
)
LARGEST = sys.float_info.max
# What a number must be: its type, the lowest and the highest, and how to say so.
NUMBERS = {
    "steps": (int, 1, MAX_STEPS, f"a whole number from 1 to {MAX_STEPS}"),
    "steps_offset": (int, 0, LARGEST, "a whole number, at least 0"),
    "lambda_min": (float, -LARGEST, LARGEST, "a finite number or None"),
    "sigma_min": (float, sys.float_info.min, LARGEST, "a positive number"),
    "sigma_max": (float, sys.float_info.min, LARGEST, "a positive number"),
    "guidance": (float, -LARGEST, LARGEST, "a finite number (1 is none)"),
    "guidance_rescale": (float, 0, 1, "in [0, 1]"),
    "guidance_eta": (float, 0, 1, "in [0, 1]"),
    "guidance_norm": (float, sys.float_info.min, inf, "above 0, or None"),
    "guidance_momentum": (float, -1, 1, "in [-1, 1]"),
    "zero_init_steps": (int, 0, MAX_STEPS, f"a whole number from 0 to {MAX_STEPS}"),
    "percentile": (float, sys.float_info.min, 100, "in (0, 100]"),
    "cap": (float, 1, inf, "at least 1, or None"),
    "gamma": (float, 0, 1, "in [0, 1]"),
    "eta": (float, 0, 1, "in [0, 1]"),
    "churn": (float, 0, LARGEST, "at least 0 (0 is none)"),
    "churn_noise": (float, 0, LARGEST, "at least 0"),
    "aug_level": (float, 0, 1, "in [0, 1]"),
}
INTERVALS = ("guidance_interval", "churn_interval")


def plain(value: Any) -> Any:
    """A number of NumPy or JAX, an array without dimensions too, as Python's; all else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def is_number(value: Any) -> bool:
    """Whether it is a real number, True and False left out."""
    return isinstance(plain(value), Real) and not isinstance(plain(value), bool)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; 24.0 is."""
    return is_number(value) and abs(plain(value)) < inf and plain(value) == int(value)


def check_sampling(sampling: Sampling) -> Sampling:
    """The same with plain numbers and with the number of steps that a list of time steps has.

    Raises:
        ValueError: a value that makes no sense, which it names.
    """
    spacing = sampling.spacing
    if isinstance(spacing, list):  # JSON has no tuples
        sampling = replace(sampling, spacing=tuple(spacing))
    for name, known in CHOICES.items():
        value = getattr(sampling, name)
        named = isinstance(value, str) and value in known
        if not (named or (name == "spacing" and isinstance(value, tuple))):
            raise ValueError(f"Unknown {name} {value!r}; choose one of {', '.join(known)}.")
    listed, steps = fixed_steps(spacing), sampling.steps
    if listed is not None and steps not in (Sampling.steps, len(listed)):
        raise ValueError(
            f"steps is {steps!r}, but spacing {spacing!r} has {len(listed)} steps; "
            "choose another spacing for another number."
        )
    numbers = {"steps": steps if listed is None else len(listed)}
    for name in NUMBERS:
        value = numbers.get(name, getattr(sampling, name))
        if value is not None or getattr(Sampling, name) is not None:
            numbers[name] = check_number(name, value)
    for name in INTERVALS:
        interval = getattr(sampling, name)
        times = tuple(interval) if isinstance(interval, Iterable) else ()
        inside = all(is_number(t) and 0 <= t <= 1 for t in times)
        if not (len(times) == 2 and inside and times[0] <= times[1]):
            raise ValueError(f"{name} must be two times in [0, 1], the lower first: {interval!r}.")
        numbers[name] = tuple(map(float, times))
    low, high = numbers["sigma_min"], numbers["sigma_max"]
    if not low < high:
        raise ValueError(f"sigma_min must be below sigma_max: {low!r} and {high!r}.")
    waits = sampling.guidance_kind == "cfg_zero" and numbers["guidance"] != 1
    if waits and numbers["zero_init_steps"] >= numbers["steps"]:
        raise ValueError(
            f"zero_init_steps is {numbers['zero_init_steps']}, in which cfg_zero moves nothing: of "
            f"{numbers['steps']} steps none is left to make an image."
        )
    return replace(sampling, **numbers)


def check_number(name: str, value: Any) -> int | float:
    """A field of Sampling as Python's number; ValueError, naming it, for what it cannot be."""
    value, (kind, lowest, highest, meaning) = plain(value), NUMBERS[name]
    fits = is_number(value) if kind is float else is_whole(value)
    if not (fits and lowest <= value <= highest):
        hint = ""
        if name == "aug_level" and is_number(value) and 1 < value < 1000:
            hint = f"; diffusers' noise_level {value:g} is {(value + 1) / 1000:g} here"
        raise ValueError(f"{name} must be {meaning}: {value!r}{hint}.")
    return kind(value)


def sampling_from_dict(values: Mapping[str, Any]) -> Sampling:
    """Sampling of JSON values, checked; an unknown key is an error."""
    return check_sampling(from_dict(Sampling, values, "sampling"))


def sampling_to_dict(sampling: Sampling) -> dict[str, Any]:
    """Its fields by name, those outside FIRST_FIELDS only where they differ from their defaults, so
    that files written before there were such fields say the same.
    """
    values = asdict(sampling)
    return {
        name: value
        for name, value in values.items()
        if name in FIRST_FIELDS or value != getattr(Sampling, name)
    }


def with_overrides(sampling: Sequence[Sampling], **overrides: Any) -> tuple[Sampling, ...]:
    """The sampling of every stage with a caller's own values for some fields, checked.

    A sequence has one entry a stage, None where the stage keeps its own. A single value is for
    every stage; a single `guidance` or `guidance_kind` for the first one, where the text decides. A
    spacing that is a list of time steps says how many there are, unless `steps` does.
    """
    columns = {
        name: by_stage(name, value, len(sampling), first_only=name in OF_THE_FIRST)
        for name, value in overrides.items()
    }
    chosen = []
    for index, own in enumerate(sampling):
        changes = {name: column[index] for name, column in columns.items()}
        changes = {name: value for name, value in changes.items() if value is not None}
        numbers = {name: check_number(name, changes[name]) for name in changes.keys() & NUMBERS}
        changes |= numbers
        listed = fixed_steps(changes.get("spacing"))
        if listed is not None:
            changes.setdefault("steps", len(listed))
        chosen.append(check_sampling(replace(own, **changes)))
    return tuple(chosen)


def by_stage(name: str, value: Any, count: int, first_only: bool = False) -> list[Any]:
    """One entry a stage, None where nothing is said: a single value is all stages', or the first's.

    Raises:
        ValueError: a sequence that is empty or has more entries than there are stages.
    """
    value = plain(value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value] + [None if first_only else value] * (count - 1)
    values = [plain(entry) for entry in value]
    if not 1 <= len(values) <= count:
        raise ValueError(
            f"{name} has {len(values)} entries; the model has {count} stages: {value!r}."
        )
    return values + [None] * (count - len(values))
