"""How a stage is sampled: its own settings, kept with the model, and a caller's wishes on top."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

import numpy as np

from imagen_jax.diffusion.denoiser import THRESHOLDS
from imagen_jax.diffusion.samplers import MAX_STEPS, SAMPLERS, SPACINGS, TimeGrid, traced_time_grid
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.time_steps import (
    STEP_LISTS,
    STEP_SPACINGS,
    fixed_steps,
    spaced_steps,
    step_grid,
)

Spacing = str | tuple[int, ...]


@dataclass(frozen=True)
class SamplingSettings:
    """How one stage is sampled when the caller says nothing else.

    sampler: a key of SAMPLERS. steps: their number. spacing: of the times, a key of SPACINGS; for
    schedules that count time steps also of STEP_SPACINGS or STEP_LISTS, or the time steps
    themselves (a list fixes `steps`). steps_offset, lambda_min: see `spaced_steps`.
    guidance: weight, 1 is none. guidance_interval: the times t where it acts. guidance_rescale: in
    [0, 1]. threshold: a key of THRESHOLDS. percentile, cap: of dynamic thresholding, cap None for
    none. gamma, eta: of ddpm and ddim. learned_variance: whether ddpm takes the network's own, if
    it has one, instead of gamma's. aug_level: noise on the low-resolution input, in [0, 1].
    """

    sampler: str = "ddpm"
    steps: int = 256
    spacing: Spacing = "time"
    steps_offset: int = 0
    lambda_min: float | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    threshold: str = "dynamic"
    percentile: float = 99.5
    cap: float | None = None
    gamma: float = 0.3
    eta: float = 0.0
    learned_variance: bool = True
    aug_level: float = 0.1

    def __post_init__(self):
        choices = [
            ("sampler", SAMPLERS),
            ("spacing", (*SPACINGS, *STEP_SPACINGS, *STEP_LISTS)),
            ("threshold", THRESHOLDS),
        ]
        if isinstance(self.spacing, list | tuple):
            object.__setattr__(self, "spacing", tuple(self.spacing))
            choices.pop(1)
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}; choose one of {', '.join(known)}."
                )
        self._fix_steps()
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps must be a whole number from 1 to {MAX_STEPS}: {self.steps!r}.")
        if not (is_number(self.guidance) and isfinite(self.guidance)):
            raise ValueError(f"guidance must be a finite number (1 is none): {self.guidance!r}.")
        if len(self.guidance_interval) != 2 or not all(map(_is_share, self.guidance_interval)):
            raise ValueError(
                f"guidance_interval must be two times in [0, 1]: {self.guidance_interval!r}."
            )
        for name in ("guidance_rescale", "gamma", "eta", "aug_level"):
            value = getattr(self, name)
            if not _is_share(value):
                hint = ""
                if name == "aug_level" and is_number(value) and 1 < value < 1000:
                    hint = f"; diffusers' noise_level {value:g} is {(value + 1) / 1000:g} here"
                raise ValueError(f"{name} is {value!r}; it lies in [0, 1]{hint}.")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100]: {self.percentile!r}.")
        if self.cap is not None and not self.cap >= 1:
            raise ValueError(f"cap must be at least 1, or None: {self.cap!r}.")
        if not isinstance(self.steps_offset, int) or self.steps_offset < 0:
            raise ValueError(f"steps_offset must be a whole number from 0: {self.steps_offset!r}.")
        if self.lambda_min is not None and not (
            is_number(self.lambda_min) and isfinite(self.lambda_min)
        ):
            raise ValueError(f"lambda_min must be a finite number or None: {self.lambda_min!r}.")

    def _fix_steps(self) -> None:
        """A list of time steps says how many there are; any other number for it is an error."""
        listed = fixed_steps(self.spacing)
        if listed is None:
            return
        default = next(field.default for field in fields(self) if field.name == "steps")
        if self.steps not in (default, len(listed)):
            raise ValueError(
                f"steps is {self.steps!r}, but spacing {self.spacing!r} has {len(listed)} steps; "
                "choose another spacing for another number."
            )
        object.__setattr__(self, "steps", len(listed))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def sampling_grid(schedule: Schedule, settings: SamplingSettings) -> TimeGrid:
    """The times that a sampler goes through.

    Raises:
        ValueError: the spacing counts time steps and the schedule has none, or too few.
    """
    if settings.spacing in SPACINGS:
        return traced_time_grid(schedule, np.int32(settings.steps), settings.spacing)
    steps = spaced_steps(
        schedule, settings.spacing, settings.steps, settings.steps_offset, settings.lambda_min
    )
    return step_grid(schedule, steps)


def with_overrides(
    settings: Sequence[SamplingSettings],
    *,
    guidance: float | Sequence[float | None] | None = None,
    steps: int | Sequence[int | None] | None = None,
    sampler: str | Sequence[str | None] | None = None,
    spacing: Spacing | Sequence[Spacing | None] | None = None,
    threshold: str | Sequence[str | None] | None = None,
    aug_level: float | Sequence[float | None] | None = None,
) -> tuple[SamplingSettings, ...]:
    """The settings of every stage after a caller's wishes.

    A sequence has one entry a stage, None where the stage keeps its own. A single value is for
    every stage; a single `guidance` for the first one, where the text decides. A spacing that is a
    list of time steps says how many there are, unless `steps` does.
    """
    wishes = {
        "guidance": guidance,
        "steps": steps,
        "sampler": sampler,
        "spacing": spacing,
        "threshold": threshold,
        "aug_level": aug_level,
    }
    columns = {
        name: by_stage(name, wish, len(settings), first_only=name == "guidance")
        for name, wish in wishes.items()
    }
    chosen = []
    for index, own in enumerate(settings):
        changes = {
            name: column[index] for name, column in columns.items() if column[index] is not None
        }
        if isinstance(changes.get("spacing"), str | list | tuple):
            listed = fixed_steps(changes["spacing"])
            changes = changes if listed is None else {"steps": len(listed), **changes}
        chosen.append(replace(own, **changes))
    return tuple(chosen)


def by_stage(name: str, value: Any, count: int, first_only: bool = False) -> list[Any]:
    """One entry a stage, None where nothing is said: a single value is all stages', or the first's.

    Raises:
        ValueError: a sequence that is empty or has more entries than there are stages.
    """
    if value is None or isinstance(value, str) or is_number(value):
        return [value] + [None if first_only else value] * (count - 1)
    values = list(value)
    if not 1 <= len(values) <= count:
        raise ValueError(
            f"{name} has {len(values)} entries; the model has {count} stages: {value!r}."
        )
    return values + [None] * (count - len(values))
