"""Fidelity against alignment over guidance weights and augmentation levels (arXiv 2205.11487,
figures 4 and A.11): the points, which of them none beats, the table and the plot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation.measures import OF_REFERENCE

# What counts as alignment: the first of these that was measured. Higher is better.
ALIGNMENTS = ("clip", "r_precision", "retrieval")


@dataclass(frozen=True)
class Point:
    """A guidance weight (or one a stage) and a level of noise; None keeps the model's own."""

    guidance: float | tuple[float, ...] | None = None
    aug_level: float | tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """For files and tables: guidance_1.35-8_aug_level_0.1."""
        values = {"guidance": self.guidance, "aug_level": self.aug_level}
        words = [
            f"{name}_{text(value, '-')}" for name, value in values.items() if value is not None
        ]
        return "_".join(words) or "own_settings"


def text(value: float | tuple[float, ...] | list[float] | None, separator: str = ":") -> str:
    """1.35, or by stage 1.35:8; nothing for None."""
    if value is None:
        return ""
    values = value if isinstance(value, tuple | list) else (value,)
    return separator.join(f"{entry:g}" for entry in values)


@dataclass(frozen=True)
class Axes:
    """What a plot sets against each other: (metric, network), network None for retrieval."""

    distance: tuple[str, str | None]
    alignment: tuple[str, str | None]


def make_points(
    guidances: Sequence[float | tuple[float, ...]], aug_levels: Sequence[float | tuple[float, ...]]
) -> list[Point]:
    """Every weight with every level; one point of the model's own where neither is given."""
    points = [Point(g, a) for a in aug_levels or [None] for g in guidances or [None]]
    names = [point.name for point in points]
    if len(set(names)) != len(names):
        raise ValueError(f"A sweep has two equal points: {', '.join(names)}.")
    return points


def settings_at(settings: Sequence[Sampling], point: Point) -> tuple[Sampling, ...]:
    """The sampling of every stage at a point: only numbers differ, so nothing recompiles."""
    return with_overrides(settings, guidance=point.guidance, aug_level=point.aug_level)


def choose_axes(values: Mapping[str, Any]) -> list[Axes]:
    """A plot for each distance that was measured, against the first alignment; none where either
    is missing.
    """
    alignment = next((name for name in ALIGNMENTS if name in values), None)
    if alignment is None:
        return []
    network = None if alignment == "retrieval" else next(iter(values[alignment]))
    return [
        Axes((metric, name), (alignment, network))
        for metric in OF_REFERENCE
        for name in values.get(metric, {})
    ]


def figure(values: Mapping[str, Any], axis: tuple[str, str | None]) -> float:
    """The number on an axis."""
    metric, network = axis
    return values[metric]["top1"] if network is None else values[metric][network]["value"]


def pareto(
    alignment: Sequence[float] | np.ndarray, distance: Sequence[float] | np.ndarray
) -> np.ndarray:
    """bool [points]: no other point has at least as much alignment and as little distance, and more
    of one or less of the other.
    """
    up, down = np.asarray(alignment, float), np.asarray(distance, float)
    no_worse = (up[:, None] >= up) & (down[:, None] <= down)
    better = (up[:, None] > up) | (down[:, None] < down)
    return ~(no_worse & better).any(axis=0)


def table(points: Sequence[Point], values: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row a point: guidance, aug_level, every figure, and for each plot whether it is on the
    Pareto front.
    """
    axes = choose_axes(values[0])
    columns = _columns(values[0])
    fronts = [
        pareto(
            [figure(v, plot.alignment) for v in values], [figure(v, plot.distance) for v in values]
        )
        for plot in axes
    ]
    head = [_label(axis) for axis in columns]
    rows = [["guidance", "aug_level", *head, *(f"front: {_label(a.distance)}" for a in axes)]]
    for number, (point, found) in enumerate(zip(points, values, strict=True)):
        numbers = [f"{figure(found, axis):.6g}" for axis in columns]
        marks = [str(int(front[number])) for front in fronts]
        rows.append([text(point.guidance), text(point.aug_level), *numbers, *marks])
    return rows


def _columns(values: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    columns: list[tuple[str, str | None]] = []
    for metric in (*OF_REFERENCE, *ALIGNMENTS):
        if metric == "retrieval" and metric in values:
            columns.append((metric, None))
        elif metric in values:
            columns += [(metric, network) for network in values[metric]]
    return columns


def _label(axis: tuple[str, str | None]) -> str:
    metric, network = axis
    names = {"fid": "FID", "kid": "KID", "cmmd": "CMMD", "clip": "CLIP score"}
    if network is None:
        return "retrieval top-1"
    if "random" in network.lower():
        # No FID, KID or CMMD: those are of trained networks.
        names = {"fid": "Fréchet distance", "kid": "kernel distance", "cmmd": "Gaussian distance"}
    return f"{names.get(metric, metric)}, {network}"


def plot(points: Sequence[Point], values: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG: distance over alignment, a line for each augmentation level, the front ringed.

    Needs matplotlib. Raises ValueError where no distance or no alignment was measured.
    """
    from matplotlib.figure import Figure

    axes = choose_axes(values[0])
    if not axes:
        raise ValueError("A curve needs a distance and an alignment.")
    drawing = Figure(figsize=(6.2 * len(axes), 4.6), layout="constrained", dpi=110)
    for place, chosen in zip(drawing.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        _draw(place, points, values, chosen)
    drawing.savefig(path, format="png")


def _draw(place: Any, points: Sequence[Point], values: Sequence[Any], axes: Axes) -> None:
    across = np.asarray([figure(v, axes.alignment) for v in values])
    up = np.asarray([figure(v, axes.distance) for v in values])
    for level in dict.fromkeys(point.aug_level for point in points):
        rows = [row for row, point in enumerate(points) if point.aug_level == level]
        label = None if level is None else f"aug_level {text(level)}"
        place.plot(across[rows], up[rows], "o-", markersize=4, linewidth=1, label=label)
        for row in rows:
            label = text(points[row].guidance)
            place.annotate(
                label, (across[row], up[row]), textcoords="offset points", xytext=(5, 4), fontsize=8
            )
    front = pareto(across, up)
    place.plot(
        across[front], up[front], "o", markersize=9, fillstyle="none", color="black",
        label="Pareto front",
    )  # fmt: skip
    place.set_xlabel(f"{_label(axes.alignment)} (higher is better)", fontsize=9)
    place.set_ylabel(
        f"{_label(axes.distance)}\n(lower is better)".replace(", ", "\n", 1), fontsize=9
    )
    place.set_title("numbers at the points: guidance", fontsize=9)
    place.grid(alpha=0.3)
    place.legend(fontsize=8)
