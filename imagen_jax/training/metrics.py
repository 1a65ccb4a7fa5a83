"""What a run reports: metrics.jsonl, TensorBoard, a progress line, and a curve to compare with."""

import contextlib
import json
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.disk import disk_errors
from imagen_jax.storage.lines import LineFile, read_lines

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
        return cls(**json.loads(Path(path).read_text()))

    def at(self, step: int) -> tuple[float, list[float]] | None:
        """(loss, loss by t) at a step, interpolated; None outside the curve."""
        if not self.step or not self.step[0] <= step <= self.step[-1]:
            return None
        columns = [self.loss, *zip(*self.loss_by_t, strict=True)]
        loss, *by_t = (float(np.interp(step, self.step, column)) for column in columns)
        return loss, by_t

    def write(self, path: str | Path) -> None:
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


class EventFile:
    """TensorBoard's event file of a run, written by the calling thread: a full disk is an OSError
    here.

    tensorboardX's SummaryWriter writes in a thread. Once that has died of such an error, the next
    calls wait for it forever.
    """

    def __init__(self, folder: str | Path, first_step: int | None = None):
        """`first_step`: of a resumed run; TensorBoard hides what was written from there on."""
        self.folder = Path(folder)
        with disk_errors(self.folder):
            self.writer = EventsWriter(str(self.folder / "events"))
        if first_step is not None:
            self._write(Event(step=first_step, file_version="brain.Event:2"))
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self.folder):
            for name, value in values.items():
                self._write(Event(step=step, summary=summary.scalar(name, value)))
            self.writer.flush()

    def image(self, step: int, name: str, image: Image.Image) -> None:
        pixels = np.asarray(image.convert("RGB"))
        with disk_errors(self.folder):
            self._write(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))
            self.writer.flush()

    def close(self) -> None:
        with disk_errors(self.folder):
            self.writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.writer.write_event(event)


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
        window: Sums | None = None,
        reference: Curve | None = None,
        write: bool = True,
    ):
        self.folder = Path(workdir)
        # Sums since the last report. Checkpoints keep them, so that a report is the same when the
        # run was resumed in between.
        self.window = window
        self.reference = reference
        self.lines, self.writer = None, None
        if write:
            self.lines = LineFile(self.folder / METRICS_FILE)
            self.writer = EventFile(self.folder, start_step + 1 if start_step else None)

    def step(self, step: int, values: Sums) -> None:
        """Records one step's metrics (see `split`)."""
        if jax.tree.structure(self.window) == jax.tree.structure(values):
            self.window = jax.tree.map(operator.add, self.window, values)
        else:
            self.window = values
        self._write({"step": step, **values["sums"]})

    def report(self, step: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Writes the means since the last report and starts new sums. Returns the means, with
        reference/loss where there is a reference.
        """
        window, self.window = self.window, None
        steps, bins = window["steps"], zip(window["t_sums"], window["t_counts"], strict=True)
        means = {name: value / steps for name, value in window["sums"].items()}
        by_t = [total / count if count else None for total, count in bins]
        line = {"step": step, "window": steps, "mean": dict(means), "loss_by_t": by_t}
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
        """Scores of generated images: a line {"step", "scores"} and TensorBoard."""
        self._write({"step": step, "scores": dict(values)}, values)

    def images(self, step: int, grid: Image.Image) -> None:
        """An image into samples/samples_NNNNNNN.png and TensorBoard."""
        if self.writer is None:
            return
        folder = self.folder / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        grid.save(folder / f"samples_{step:07d}.png")
        self.writer.image(step, "samples", grid)

    def close(self) -> None:
        if self.lines is not None:
            self.lines.close()
            self.writer.close()

    def _write(self, line: Mapping[str, Any], scalars: Mapping[str, float] | None = None) -> None:
        if self.lines is None:
            return
        self.lines.append(json.dumps(line))
        if scalars is not None:
            self.writer.scalars(line["step"], scalars)


def _records(workdir: str | Path) -> Iterator[dict[str, Any]]:
    for line in read_lines(Path(workdir) / METRICS_FILE):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # earlier versions went on in half a line after a kill
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
    means = (
        [np.mean(column[i : i + size], axis=0).tolist() for i in range(0, len(reports), size)]
        for column in columns
    )
    return Curve(*means)


@dataclass
class Progress:
    """Speed since the last report, without pauses.

    step: where the run starts. flops_per_step: of the model, over all devices; None when unknown.
    peak: FLOP/s of all devices together; None when unknown.
    """

    num_steps: int
    batch_size: int
    step: int = 0
    flops_per_step: float | None = None
    peak: float | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self):
        self.since = self.clock()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what runs inside, sampling and saving, out of the speed."""
        began = self.clock()
        yield
        self.since += self.clock() - began

    def report(self, step: int) -> dict[str, float]:
        """images_per_second, gflops_per_second, mfu where the peak is known, and eta_seconds, since
        the last report.
        """
        seconds = max(self.clock() - self.since, 1e-9)
        steps_per_second = (step - self.step) / seconds
        speed = {"images_per_second": steps_per_second * self.batch_size}
        if self.flops_per_step:
            speed["gflops_per_second"] = steps_per_second * self.flops_per_step / 1e9
            if self.peak:
                speed["mfu"] = steps_per_second * self.flops_per_step / self.peak
        speed["eta_seconds"] = (self.num_steps - step) / max(steps_per_second, 1e-9)
        self.since, self.step = self.clock(), step
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
