"""What a run reports: metrics.jsonl, TensorBoard, a progress line, and a curve to compare with."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.training.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class Curve:
    """A run's loss by step, overall and by tenths of t, to compare another run's loss with."""

    step: tuple[float, ...]
    loss: tuple[float, ...]
    loss_by_t: tuple[tuple[float, ...], ...]

    @classmethod
    def read(cls, path: str | Path) -> "Curve":
        values = json.loads(Path(path).read_text())
        rows = tuple(tuple(row) for row in values["loss_by_t"])
        return cls(tuple(values["step"]), tuple(values["loss"]), rows)

    def at(self, step: int) -> tuple[float, list[float]] | None:
        """(loss, loss by t) at a step, interpolated; None outside the curve."""
        if not self.step or not self.step[0] <= step <= self.step[-1]:
            return None
        columns = [self.loss, *zip(*self.loss_by_t, strict=True)]
        loss, *by_t = (float(np.interp(step, self.step, column)) for column in columns)
        return loss, by_t

    def write(self, path: str | Path) -> None:
        rounded = [[round(value, 5) for value in row] for row in self.loss_by_t]
        values = {"step": self.step, "loss": [round(x, 5) for x in self.loss], "loss_by_t": rounded}
        Path(path).write_text(json.dumps(values) + "\n")


@dataclass
class Window:
    """Sums of the metrics since the last report. Checkpoints keep them, so that a report is the
    same when the run was resumed in between.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    t_sums: list[float] = field(default_factory=list)
    t_counts: list[float] = field(default_factory=list)

    def add(self, scalars: Mapping[str, float], t_sums: Sequence[float], t_counts: Sequence[float]):
        self.steps += 1
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.t_sums = _added(self.t_sums, t_sums)
        self.t_counts = _added(self.t_counts, t_counts)

    def loss_by_t(self) -> list[float | None]:
        """Mean loss in each bin of t; None where nothing fell."""
        return [s / n if n else None for s, n in zip(self.t_sums, self.t_counts, strict=True)]


def _added(sums: Sequence[float], values: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip_longest(sums, values, fillvalue=0.0)]


def split(metrics: Mapping[str, Any]) -> tuple[dict[str, float], list[float], list[float]]:
    """A step's metrics on the host: (scalars, loss summed by bin of t, examples by bin of t)."""
    values = {name: np.asarray(value, np.float32).tolist() for name, value in metrics.items()}
    t_sums, t_counts = values.pop("loss_by_t", []), values.pop("count_by_t", [])
    return values, t_sums, t_counts


class MetricLog:
    """Writes a run's metrics into its workdir; on hosts other than the first it only sums them.

    metrics.jsonl has a line {"step", "loss", ...} for every step (float32 values in full, so that
    runs can be compared exactly), a line {"step", "window", "mean", "loss_by_t"} for every report,
    and a line {"step", "scores"} for every evaluation. A run that was killed and resumed repeats
    the steps after its checkpoint: the later line counts, and is equal. Writing raises OSError, on
    a full disk for example.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        start_step: int = 0,
        window: Mapping[str, Any] | None = None,
        reference: Curve | None = None,
        write: bool = True,
    ):
        self.folder = Path(workdir)
        self.window = Window(**window) if window else Window()
        self.reference = reference
        self.lines, self.writer = None, None
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Line by line, so that what was reported survives a kill.
            self.lines = open(self.folder / METRICS_FILE, "a", buffering=1)  # noqa: SIM115
            self.writer = EventFile(self.folder, start_step + 1 if start_step else None)

    def step(
        self, step: int, scalars: dict[str, float], t_sums: list[float], t_counts: list[float]
    ) -> None:
        """Records one step's metrics (see `split`)."""
        self.window.add(scalars, t_sums, t_counts)
        self._line({"step": step, **scalars})

    def report(self, step: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Writes the means since the last report and starts new sums. Returns the means, with
        reference/loss where there is a reference.
        """
        window, self.window = self.window, Window()
        means = {name: value / window.steps for name, value in window.sums.items()}
        by_t = window.loss_by_t()
        self._line({"step": step, "window": window.steps, "mean": means, "loss_by_t": by_t})
        reference = self.reference.at(step) if self.reference else None
        bins = {f"loss_by_t/{i:02d}": value for i, value in enumerate(by_t) if value is not None}
        if reference is not None:
            means["reference/loss"], curve = reference
            bins |= {f"reference/loss_by_t/{i:02d}": value for i, value in enumerate(curve)}
        if self.writer is not None:
            self.writer.scalars(step, {**means, **bins, **extra})
        return means

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Scores of generated images: a line {"step", "scores"} and TensorBoard."""
        self._line({"step": step, "scores": dict(values)})
        if self.writer is not None:
            self.writer.scalars(step, values)

    def images(self, step: int, grid: Image.Image, name: str = "samples") -> None:
        """An image into samples/NNNNNNN.png and TensorBoard."""
        if self.writer is None:
            return
        folder = self.folder / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        grid.save(folder / f"{name}_{step:07d}.png")
        self.writer.image(step, name, grid)

    def close(self) -> None:
        if self.lines is not None:
            self.lines.close()
            self.writer.close()

    def _line(self, values: Mapping[str, Any]) -> None:
        if self.lines is not None:
            self.lines.write(json.dumps(values) + "\n")


def _records(workdir: str | Path) -> Iterator[dict[str, Any]]:
    with open(Path(workdir) / METRICS_FILE) as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # half a line, of a run that was killed
                continue


def read_losses(workdir: str | Path) -> dict[int, float]:
    """{step: loss} of a run, from metrics.jsonl; of a repeated step the later one."""
    return {line["step"]: line["loss"] for line in _records(workdir) if "loss" in line}


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
    step, loss, by_t = (
        [np.mean(column[i : i + size], axis=0).tolist() for i in range(0, len(reports), size)]
        for column in columns
    )
    return Curve(tuple(step), tuple(loss), tuple(map(tuple, by_t)))


@dataclass
class Progress:
    """Speed since the last report, without pauses.

    flops_per_step: of the model, over all devices; None when unknown. peak: FLOP/s of all devices
    together; None when unknown.
    """

    num_steps: int
    batch_size: int
    flops_per_step: float | None = None
    peak: float | None = None
    clock: Callable[[], float] = time.monotonic
    since: float | None = None
    step: int = 0
    paused: float = 0.0

    def start(self, step: int) -> None:
        self.since, self.step, self.paused = self.clock(), step, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what runs inside, sampling and saving, out of the speed."""
        began = self.clock()
        yield
        self.paused += self.clock() - began

    def report(self, step: int) -> dict[str, float]:
        """images_per_second, gflops_per_second, mfu where the peak is known, and eta_seconds, since
        the last report.
        """
        seconds = max(self.clock() - self.since - self.paused, 1e-9)
        steps_per_second = (step - self.step) / seconds
        speed = {"images_per_second": steps_per_second * self.batch_size}
        if self.flops_per_step:
            speed["gflops_per_second"] = steps_per_second * self.flops_per_step / 1e9
            if self.peak:
                speed["mfu"] = steps_per_second * self.flops_per_step / self.peak
        speed["eta_seconds"] = (self.num_steps - step) / max(steps_per_second, 1e-9)
        self.start(step)
        return speed


def progress_line(
    step: int, num_steps: int, means: Mapping[str, float], speed: Mapping[str, float]
) -> str:
    """step 1,200/40,000 | loss 0.2134 (reference 0.2080) | grad 0.81 | 41.2 images/s | 123 GFLOP/s
    | 0:52:10 left
    """
    loss = f"loss {means['loss']:.4f}"
    if "reference/loss" in means:
        loss += f" (reference {means['reference/loss']:.4f})"
    parts = [f"step {step:,}/{num_steps:,}", loss]
    if "grad_norm" in means:
        parts.append(f"grad {means['grad_norm']:.3g}")
    parts.append(f"{speed['images_per_second']:.1f} images/s")
    if "mfu" in speed:
        parts.append(f"MFU {speed['mfu']:.1%}")
    elif "gflops_per_second" in speed:
        parts.append(f"{speed['gflops_per_second']:.0f} GFLOP/s")
    parts.append(f"{timedelta(seconds=round(speed['eta_seconds']))} left")
    return " | ".join(parts)
