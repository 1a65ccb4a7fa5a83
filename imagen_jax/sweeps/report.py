"""What a sweep leaves: sweep.csv, sweep.png, the trials in TensorBoard's HParams, and a table."""

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.images.image_file import SHEET
from imagen_jax.storage.atomic import written_whole
from imagen_jax.sweeps.space import Choices, Range
from imagen_jax.sweeps.study import Study, best
from imagen_jax.sweeps.trial import COMPLETE, FAILED, LOSS, STOPPED, Trial, folder_name
from imagen_jax.training.config import read_value
from imagen_jax.training.writers import EventFile

TABLE_FILE, PLOT_FILE = "sweep.csv", "sweep.png"
SHOWN = 10  # trials in the table on the screen
WIDE = 30  # times the smallest value: from here on an axis is logarithmic
LABELS = {LOSS: "training loss (mean of the last tenth)"}


def outcome(trial: Trial, metric: str) -> str:
    """ "loss 0.0123 after 700 steps, 41 s", or why it failed."""
    if trial.state == FAILED:
        return f"failed: {trial.why}"
    early = "stopped early: " if trial.state == STOPPED else ""
    return f"{early}{metric} {trial.value:.4g} after {trial.step:,} steps, {trial.seconds:.0f} s"


def rows(trials: Sequence[Trial], keys: Sequence[str], metric: str) -> list[list[str]]:
    """A row a trial under the names of the columns."""
    found = [["trial", "state", metric, "step", *keys, "seconds", "why"]]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.7g}"
        texts = [trial.values[key] for key in keys]
        name = folder_name(trial.number)
        found.append([name, trial.state, value, f"{trial.step}", *texts, f"{trial.seconds:.1f}"])
        found[-1].append(trial.why)
    return found


def write(folder: Path, study: Study, metric: str, maximize: bool) -> None:
    """Writes the table and the plot of the trials that have ended."""
    with (
        written_whole(folder / TABLE_FILE) as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(rows(study.trials, list(study.space), metric))
    with written_whole(folder / PLOT_FILE) as path:
        plot(study, metric, maximize, path)


def table(study: Study, metric: str, maximize: bool) -> str:
    """The best trials and how much each key matters, for the screen."""
    order = {COMPLETE: 0, STOPPED: 1, FAILED: 2}
    sign = -1 if maximize else 1
    trials = sorted(study.trials, key=lambda t: (order[t.state], sign * (t.value or 0), t.number))
    cells = rows(trials[:SHOWN], list(study.space), metric)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    if len(trials) > SHOWN:
        lines.append(f"and {len(trials) - SHOWN} more in {TABLE_FILE}")
    shares = [f"{key} {share:.0%}" for key, share in study.importance().items()]
    return "\n".join([*lines, *(["importance: " + ", ".join(shares)] if shares else [])])


def write_hparams(folder: Path, trial: Trial, metric: str) -> None:
    """Lists a trial in TensorBoard's tab HParams, with its values and the metric."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(EventFile(folder)) as file:
        values = {key: read_value(text) for key, text in trial.values.items()}
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in values.items()}
        file.hparams(trial.step, plain, f"sweep/{metric}", trial.value)


# ------------------------------------------------------------------------------------- the plot


def plot(study: Study, metric: str, maximize: bool, path: Path) -> None:
    """A PNG: the metric over each key's values, and how much each key matters. Needs matplotlib."""
    from matplotlib.figure import Figure

    trials, keys = [t for t in study.trials if t.value is not None], list(study.space)
    drawing = Figure(figsize=(3.4 * (len(keys) + 1), 3.4), layout="constrained", dpi=90)
    *places, last = drawing.subplots(1, len(keys) + 1, squeeze=False)[0]
    found = best(study.trials, maximize)
    for place, key in zip(places, keys, strict=True):
        across = positions(place, study.space[key], [t.values[key] for t in trials])
        up = np.array([trial.value for trial in trials])
        complete = np.array([trial.state == COMPLETE for trial in trials], bool)
        place.plot(across[complete], up[complete], "o", markersize=5, label="complete")
        if not complete.all():
            place.plot(across[~complete], up[~complete], "x", color="gray", label=STOPPED)
        if found is not None:
            at = trials.index(found)
            ring = {"markersize": 11, "fillstyle": "none", "color": "black", "label": "best"}
            place.plot(across[at], up[at], "o", **ring)
        if len(up) and up.min() > 0 and up.max() > WIDE / 3 * up.min():
            place.set_yscale("log")
        place.set_xlabel(key, fontsize=8)
        place.grid(alpha=0.3)
    places[0].set_ylabel(LABELS.get(metric, metric), fontsize=8)
    if trials:
        places[0].legend(fontsize=7)
    _draw_importance(last, study.importance())
    drawing.savefig(path, format="png", metadata=SHEET)


def positions(place: Any, values: Choices | Range, texts: Sequence[str]) -> np.ndarray:
    """float [trials]: where on a key's axis each trial lies; numbers by their size, others in the
    order in which they were given, with their names.
    """
    every = values.values if isinstance(values, Choices) else [values.low, values.high]
    if all(type(value) in (int, float) for value in every):
        if min(every) > 0 and max(every) >= WIDE * min(every):
            place.set_xscale("log")
        elif isinstance(values, Choices):
            place.set_xticks(every, [f"{value:g}" for value in every], fontsize=8)
        return np.array([read_value(text) for text in texts], float)
    place.set_xticks(range(len(values.texts)), values.texts, fontsize=8, rotation=20)
    place.set_xlim(-0.5, len(values.texts) - 0.5)
    return np.array([values.texts.index(text) for text in texts], float)


def _draw_importance(place: Any, shares: Mapping[str, float]) -> None:
    place.set_xlabel("importance (PED-ANOVA)", fontsize=8)
    if not shares:
        place.set_yticks([])
        place.text(0.5, 0.5, "after three complete trials", ha="center", fontsize=8)
        return
    names = sorted(shares, key=shares.get)
    place.barh([name.rpartition(".")[2] for name in names], [shares[name] for name in names])
    place.set_xlim(0, 1)
    place.tick_params(labelsize=8)
