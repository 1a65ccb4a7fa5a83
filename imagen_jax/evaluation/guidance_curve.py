"""Fidelity against alignment over guidance weights and augmentation levels (arXiv 2205.11487,
figures 4 and A.11): the points, which of them none beats, the table and the plot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.evaluation.html_report import NAMES, rows_of
from imagen_jax.evaluation.metrics import DISTANCES
from imagen_jax.images.image_file import SHEET

# What counts as alignment: the first of these that was measured. Higher is better.
ALIGNMENTS = ("clip", "r_precision")
# FID, KID and CMMD are of trained networks.
RANDOM_NAMES = {"fid": "Fréchet distance", "kid": "kernel distance", "cmmd": "Gaussian distance"}
Figure = tuple[str, str]  # metric, and of which network


@dataclass(frozen=True)
class CurvePoint:
    """A guidance weight (or one a stage) and a level of noise; None keeps the model's own."""

    guidance: float | tuple[float, ...] | None = None
    aug_level: float | tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """For files and tables: guidance_1.35-8_aug_level_0.1."""
        words = [f"{k}_{text(v, '-')}" for k, v in vars(self).items() if v is not None]
        return "_".join(words) or "own_settings"


def text(value: float | Sequence[float] | None, separator: str = ",") -> str:
    """1.35, or by stage 1.35,8; nothing for None."""
    values = [] if value is None else np.atleast_1d(value)
    return separator.join(f"{entry:g}" for entry in values)


def make_points(
    guidances: Sequence[float | tuple[float, ...]], aug_levels: Sequence[float | tuple[float, ...]]
) -> list[CurvePoint]:
    """Every weight with every level; one point of the model's own where neither is given."""
    points = [CurvePoint(g, a) for a in aug_levels or [None] for g in guidances or [None]]
    names = [point.name for point in points]
    if len(set(names)) != len(names):
        raise ValueError(f"A curve has two equal points: {', '.join(names)}.")
    return points


def measured(values: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[Figure]:
    """Every figure of these metrics that was measured at some point."""
    rows = [row for found in values for row in rows_of(found)]
    return list(dict.fromkeys((metric, name) for metric, name, _, _ in rows if metric in metrics))


def has_curve(values: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a distance and an alignment were measured, to be set against each other."""
    return bool(measured(values, DISTANCES) and measured(values, ALIGNMENTS))


def series(values: Sequence[Mapping[str, Any]], figure: Figure) -> np.ndarray:
    """float [points]: a figure at each point, NaN where it is missing."""
    each = [{(m, name): value for m, name, value, _ in rows_of(found)} for found in values]
    return np.asarray([found.get(figure, np.nan) for found in each])


def pareto(
    alignment: Sequence[float] | np.ndarray, distance: Sequence[float] | np.ndarray
) -> np.ndarray:
    """bool [points]: no other point has at least as much alignment and as little distance, and more
    of one or less of the other. A point that lacks either (NaN) is not among them.
    """
    up, down = np.asarray(alignment, float), np.asarray(distance, float)
    no_worse = (up[:, None] >= up) & (down[:, None] <= down)
    better = (up[:, None] > up) | (down[:, None] < down)
    return np.isfinite(up + down) & ~(no_worse & better).any(axis=0)


def table(points: Sequence[CurvePoint], values: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row a point: guidance, aug_level, every figure, and for each plot whether it is on the
    Pareto front.
    """
    distances, alignments = (measured(values, names) for names in (DISTANCES, ALIGNMENTS))
    columns = {
        "guidance": [text(point.guidance) for point in points],
        "aug_level": [text(point.aug_level) for point in points],
    }
    for figure in distances + alignments:
        columns[_label(figure)] = [f"{value:.6g}" for value in series(values, figure)]
    for distance in distances if alignments else ():
        front = pareto(series(values, alignments[0]), series(values, distance))
        columns[f"front: {_label(distance)}"] = [str(int(on_front)) for on_front in front]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _label(figure: Figure) -> str:
    metric, network = figure
    names = NAMES | {"r_precision": "r_precision"}
    names |= RANDOM_NAMES if "random" in network.lower() else {}
    return f"{names[metric]}, {network}"


def plot(points: Sequence[CurvePoint], values: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG: distance over alignment, a line for each augmentation level, the front ringed.

    Needs matplotlib, a distance and an alignment.
    """
    from matplotlib.figure import Figure as Drawing

    distances, alignment = measured(values, DISTANCES), measured(values, ALIGNMENTS)[0]
    drawing = Drawing(figsize=(6.2 * len(distances), 4.6), layout="constrained", dpi=110)
    places = drawing.subplots(1, len(distances), squeeze=False)[0]
    for place, distance in zip(places, distances, strict=True):
        _draw(place, points, series(values, alignment), series(values, distance))
        place.set_xlabel(f"{_label(alignment)} (higher is better)", fontsize=9)
        label = f"{_label(distance)}\n(lower is better)".replace(", ", "\n", 1)
        place.set_ylabel(label, fontsize=9)
    drawing.savefig(path, format="png", metadata=SHEET)


def _draw(place: Any, points: Sequence[CurvePoint], across: np.ndarray, up: np.ndarray) -> None:
    for level in dict.fromkeys(point.aug_level for point in points):
        rows = [row for row, point in enumerate(points) if point.aug_level == level]
        label = None if level is None else f"aug_level {text(level)}"
        place.plot(across[rows], up[rows], "o-", markersize=4, linewidth=1, label=label)
    for point, *at in zip(points, across, up, strict=True):
        label = text(point.guidance)
        place.annotate(label, at, textcoords="offset points", xytext=(5, 4), fontsize=8)
    front = pareto(across, up)
    ring = {"markersize": 9, "fillstyle": "none", "color": "black", "label": "Pareto front"}
    place.plot(across[front], up[front], "o", **ring)
    place.set_title("numbers at the points: guidance", fontsize=9)
    place.grid(alpha=0.3)
    place.legend(fontsize=8)
