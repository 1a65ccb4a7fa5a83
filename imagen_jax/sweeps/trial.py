"""One trial of a sweep: an ordinary training run in a folder and a process of its own."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.storage.disk import disk_errors
from imagen_jax.sweeps.space import Values
from imagen_jax.training.metrics import METRICS_FILE, read_losses, read_scores

COMPLETE, STOPPED, FAILED = "complete", "stopped early", "failed"
LOG_FILE = "train.log"
LOSS = "loss"
ERROR = "error: "  # begins the line that says why the training ended
SMOOTHED = 10  # the loss of a step is the mean over this part of the run, a tenth, up to it
LINE_SECONDS = 30.0  # between a trial's lines on the screen


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    values: of the swept keys, as texts. state: COMPLETE, STOPPED or FAILED. value: of the metric,
    after `step`; None where it failed. reports: the metric by step. why: it failed. notes: of the
    pruner, JSON.
    """

    number: int
    values: Values
    state: str
    value: float | None
    step: int
    seconds: float
    why: str = ""
    reports: Mapping[int, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def folder_name(number: int) -> str:
    """The workdir of a trial: trial_007."""
    return f"trial_{number:03d}"


def read_reports(folder: Path, metric: str, num_steps: int, every: int) -> dict[int, float]:
    """{step: metric} of a run, as far as it is: of the loss, the mean of the last tenth of the run,
    every `every` steps and at the end; of a score, wherever it was measured.
    """
    if not (folder / METRICS_FILE).is_file():
        return {}
    if metric != LOSS:
        scores = read_scores(folder)
        return {step: found[metric] for step, found in sorted(scores.items()) if metric in found}
    losses, width = read_losses(folder), max(1, num_steps // SMOOTHED)
    steps = sorted(losses)
    values, starts = np.array([losses[s] for s in steps]), np.array(steps) - width
    first = np.searchsorted(steps, starts, side="right")
    return {
        step: float(values[first[place] : place + 1].mean())
        for place, step in enumerate(steps)
        if step % every == 0 or step == num_steps
    }


@contextlib.contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen, Iterator[str]]]:
    """Runs a command; yields its process and its lines, which go into a log, too.

    It ends with this process: its standard input closes then. What ends the block stops it by
    SIGTERM, and waits for it.
    """
    with disk_errors(log), open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the sweep, which asks it to end
        )

        def lines() -> Iterator[str]:
            for line in process.stdout:
                file.write(line)
                file.flush()
                yield line.rstrip("\n")

        try:
            yield process, lines()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            for _ in lines():  # what it says as it ends
                pass
            process.wait()
            process.stdin.close()


def run(
    command: Sequence[str],
    folder: Path,
    reported: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[int, str]:
    """(status, its error or else its last line) of a trial's process, which is stopped when
    `reported()` says so. That is asked after its lines, in at most about a tenth of the time: it
    takes longer the longer the run.
    """
    spoken, last, stopping, due = time.monotonic(), "", False, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with started(command, folder / LOG_FILE) as (process, lines):
        for line in lines:
            if line and not last.startswith(ERROR):  # advice may follow an error
                last = line
            if line.startswith("step ") and time.monotonic() - spoken > LINE_SECONDS:
                spoken = time.monotonic()
                say(f"{folder.name}: {line}")
            if not stopping and (asked := time.monotonic()) >= due:
                if stopping := reported():
                    process.send_signal(signal.SIGTERM)
                due = asked + 10 * (time.monotonic() - asked)
        status = process.wait()
    return status, last


def reason(status: int, last: str) -> str:
    """Why a trial's process failed, in a line."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + " (out of memory?)" * (-status == signal.SIGKILL)
    return last.removeprefix(ERROR) or f"status {status}"
