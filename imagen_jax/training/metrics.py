"""What a run reports: metrics.jsonl, the writers' scalars, and a curve to compare with."""

import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax.images.image_file import save_image
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.lines import LineFile, read_lines
from imagen_jax.training.writers import EventFile, Writer

METRICS_FILE = "metrics.jsonl"
SAMPLES_FOLDER = "samples"
Sums = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A run's loss by step, overall and by tenths of t, to compare another run's loss with."""

    step: Sequence[int | float]
    loss: Sequence[float]
    loss_by_t: Sequence[Sequence[float]]

    @classmethod
    def read(cls, path: str | Path) -> "Curve":
        """From a file of `write`."""
        return cls(**json.loads(Path(path).read_text()))

    def at(self, step: int) -> tuple[float, list[float]] | None:
        """(loss, loss by t) at a step, interpolated; None outside the curve."""
        if not self.step or not self.step[0] <= step <= self.step[-1]:
            return None
        columns = [self.loss, *zip(*self.loss_by_t, strict=True)]
        loss, *by_t = (float(np.interp(step, self.step, column)) for column in columns)
        return loss, by_t

    def write(self, path: str | Path) -> None:
        """Into a JSON file, rounded to five digits after the point."""
        rounded = {name: np.round(values, 5).tolist() for name, values in vars(self).items()}
        with written_whole(path) as file:
            file.write_text(json.dumps(rounded) + "\n")


def split(metrics: Mapping[str, Any]) -> Sums:
    """A step's metrics on the host: {"steps": 1, "sums": scalars, "t_sums": loss by bin of t,
    "t_counts": examples by bin of t}, which are summed from step to step.
    """
    sums = {name: np.asarray(value, np.float32).tolist() for name, value in metrics.items()}
    t_sums, t_counts = sums.pop("loss_by_t", []), sums.pop("count_by_t", [])
    return {"steps": 1, "sums": sums, "t_sums": t_sums, "t_counts": t_counts}


class MetricLog:
    """Writes a run's metrics into its workdir; on hosts other than the first it only sums them.

    metrics.jsonl has a line {"step", "loss", ...} for every step (float32 values in full, so that
    runs can be compared exactly), a line {"step", "window", "mean", "loss_by_t", "learning_rate",
    "epoch"} for every report, and a line {"step", "scores"} for every evaluation. A run that was
    killed and resumed repeats the steps after its checkpoint: the later line counts, and is equal.
    Writing raises OSError, on a full disk for example.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        start_step: int = 0,
        window: Sums | None = None,
        reference: Curve | None = None,
        write: bool = True,
        writers: Sequence[Writer] = (),
    ):
        """`writers`: those beside TensorBoard's, which whoever opened them closes."""
        self.folder = Path(workdir)
        # Sums since the last report. Checkpoints keep them, so that a report is the same when the
        # run was resumed in between.
        self.window = window
        self.reference = reference
        self.lines, self.events, self.writers = None, None, []
        if write:
            self.lines = LineFile(self.folder / METRICS_FILE)
            self.events = EventFile(self.folder, start_step + 1 if start_step else None)
            self.writers = [self.events, *writers]

    def step(self, step: int, values: Sums) -> None:
        """Records one step's metrics (see `split`)."""
        if jax.tree.structure(self.window) == jax.tree.structure(values):
            self.window = jax.tree.map(operator.add, self.window, values)
        else:
            self.window = values
        self._write({"step": step, **values["sums"]})

    def means(self) -> dict[str, float]:
        """The means since the last report."""
        return {name: value / self.window["steps"] for name, value in self.window["sums"].items()}

    def report(
        self, step: int, extra: Mapping[str, float], position: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Writes the means since the last report and starts new sums. Returns the means, with
        reference/loss where there is a reference, and `position`.

        Args:
            extra: for the writers alone, such as the speed, which no other run has.
            position: what the step itself tells: learning rate, epoch.
        """
        means, window, self.window = self.means(), self.window, None
        bins = zip(window["t_sums"], window["t_counts"], strict=True)
        by_t = [total / count if count else None for total, count in bins]
        line = {"step": step, "window": window["steps"], "mean": dict(means), "loss_by_t": by_t}
        line |= position or {}
        means |= position or {}
        curves = {"loss_by_t": by_t}
        reference = self.reference.at(step) if self.reference else None
        if reference is not None:
            means["reference/loss"], curves["reference/loss_by_t"] = reference
        tenths = {
            f"{name}/{i:02d}": value
            for name, curve in curves.items()
            for i, value in enumerate(curve)
            if value is not None
        }
        self._write(line, {**means, **tenths, **extra})
        return means

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Scores of generated images: a line {"step", "scores"} and the writers."""
        self._write({"step": step, "scores": dict(values)}, values)

    def images(self, step: int, grid: Image.Image) -> Path | None:
        """An image into samples/samples_NNNNNNN.png and the writers; returns its path."""
        if self.lines is None:
            return None
        folder = self.folder / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"samples_{step:07d}.png"
        save_image(grid, path)
        for writer in self.writers:
            writer.image(step, "samples", grid)
        return path

    def close(self) -> None:
        """Closes metrics.jsonl and TensorBoard's file."""
        if self.lines is not None:
            self.lines.close()
            self.events.close()

    def _write(self, line: Mapping[str, Any], scalars: Mapping[str, float] | None = None) -> None:
        if self.lines is None:
            return
        self.lines.append(json.dumps(line))
        if scalars is not None:
            for writer in self.writers:
                writer.scalars(line["step"], scalars)


def _records(workdir: str | Path) -> Iterator[dict[str, Any]]:
    for line in read_lines(Path(workdir) / METRICS_FILE):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # earlier versions went on in half a line after a kill
            continue


def read_losses(workdir: str | Path) -> dict[int, float]:
    """{step: loss} of a run, from metrics.jsonl; of a repeated step the later one."""
    return {line["step"]: line["loss"] for line in _records(workdir) if "loss" in line}


def read_scores(workdir: str | Path) -> dict[int, dict[str, float]]:
    """{step: scores by name} of a run, from metrics.jsonl; of a repeated step the later ones."""
    return {line["step"]: line["scores"] for line in _records(workdir) if "scores" in line}


def read_curve(workdir: str | Path, points: int = 200) -> Curve:
    """A run's loss curve in at most `points` points, each the mean of the reports around it."""
    reports = {line["step"]: line for line in _records(workdir) if "window" in line}
    reports = [reports[step] for step in sorted(reports) if None not in reports[step]["loss_by_t"]]
    size = max(1, math.ceil(len(reports) / points))
    columns = [
        [line["step"] for line in reports],
        [line["mean"]["loss"] for line in reports],
        [line["loss_by_t"] for line in reports],
    ]
    means = (
        [np.mean(column[i : i + size], axis=0).tolist() for i in range(0, len(reports), size)]
        for column in columns
    )
    return Curve(*means)
