"""A sweep from the request to the table: what each trial tries, its run, what is kept of it."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from imagen_jax.storage.codec import require, to_dict
from imagen_jax.storage.disk import disk_refusal
from imagen_jax.storage.json_file import read_object, write_object
from imagen_jax.storage.lock import LOCK_FILE, wait_until_free
from imagen_jax.storage.trees import first_difference
from imagen_jax.sweeps import report, space, trial
from imagen_jax.sweeps.space import Space, Values
from imagen_jax.sweeps.study import PRUNERS, SEARCHES, Study, best
from imagen_jax.sweeps.trial import COMPLETE, FAILED, LOSS, STOPPED, Trial, folder_name
from imagen_jax.training.metrics import METRICS_FILE, read_losses
from imagen_jax.training.run_config import RunConfig, read_config
from imagen_jax.training.start import read_raw

SWEEP_FILE = "sweep.json"
HIGHER_IS_BETTER = ("scores/clip/",)
SHORTAGE = ("out of memory", "killed by")  # of a trial by itself, before its first step


@dataclass(frozen=True)
class Sweep:
    """What is asked of a sweep.

    fixed: keys of every trial; space: those that are swept. trials: how many; None for a grid,
    which has as many as it has points. metric: "loss" or a score that the runs log. command: begins
    that of a trial's process, options of imagen-jax train follow.

    Raises ValueError for what does not go together.
    """

    config: Path
    folder: Path
    fixed: Values
    space: Space
    command: tuple[str, ...]
    search: str = "grid"
    trials: int | None = None
    seed: int = 0
    metric: str = LOSS
    pruner: str = "median"
    wandb: str | None = None

    def __post_init__(self):
        grid = self.search == "grid"
        require(
            (self.search in SEARCHES, f"--search is {self.search!r}, not one of {SEARCHES}"),
            (self.pruner in PRUNERS, f"--prune is {self.pruner!r}, not one of {PRUNERS}"),
            (
                grid == (self.trials is None),
                "--trials is for --search random and tpe: a grid has as many trials as points"
                if grid
                else f"--search {self.search} needs --trials N",
            ),
            (
                self.metric == LOSS or self.metric.startswith("scores/"),
                f"--metric is {self.metric!r}: give loss, or a score of the config's section "
                "evaluate, such as scores/fid/NETWORK",
            ),
        )
        space.check_comparable(self.space, self.metric)

    @property
    def maximize(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric.startswith(HIGHER_IS_BETTER)

    def config_of(self, values: Values) -> RunConfig:
        """The config of a trial. ValueError: a key is unknown or has a bad value."""
        return read_config(read_raw(self.config, {**self.fixed, **values}))

    def describe(self) -> dict[str, Any]:
        """What decides the trials, JSON: two sweeps never share a folder."""
        first = space.samples(self.space)[0]
        return {
            "config": to_dict(read_raw(self.config, {**self.fixed, **first})),
            "space": [{"key": key, **vars(values)} for key, values in self.space.items()],
            "search": self.search,
            "seed": self.seed,
            "metric": self.metric,
            "prune": self.pruner,
        }

    def trial_command(self, number: int, values: Values) -> list[str]:
        """The command line of a trial's training."""
        keys = [f"--config.{key}={text}" for key, text in {**self.fixed, **values}.items()]
        wandb = [] if self.wandb is None else [f"--wandb={self.wandb}"]
        workdir = f"--workdir={self.folder / folder_name(number)}"
        return [*self.command, f"--config={self.config}", workdir, *wandb, *keys]


def check(sweep: Sweep) -> list[Values] | None:
    """The points of a grid, None of a search, once all that can be checked is right.

    Raises:
        ValueError: a key is unknown, a value does not fit, the config has no such score; the
            folder holds something else.
    """
    points = space.grid(sweep.space) if sweep.search == "grid" else None
    for values in points or space.samples(sweep.space):
        config = sweep.config_of(values)
        if sweep.metric != LOSS and config.evaluate is None:
            raise ValueError(f"--metric {sweep.metric}: the config has no section evaluate")
    path = sweep.folder / SWEEP_FILE
    if path.is_file():
        found = read_object(path, "a sweep")
        if difference := first_difference(found, sweep.describe()):
            name, was, wanted = difference
            raise ValueError(
                f"--workdir {sweep.folder} holds a sweep with {name} = {was!r}, not {wanted!r}; "
                "give another --workdir"
            )
    elif sweep.folder.is_dir():
        names = sorted(entry.name for entry in sweep.folder.iterdir())
        others = [name for name in names if name != LOCK_FILE and not name.startswith(".")]
        if others:
            raise ValueError(
                f"--workdir {sweep.folder} holds no sweep, but {others[0]}: give another --workdir"
            )
    return points


def run(sweep: Sweep, points: Sequence[Values] | None, say: Callable[[str], None]) -> bool:
    """Runs all trials that have not ended, in a folder of `workdir.held`; False where a signal
    ended one. The table, the plot and the study are written after each.

    Args:
        points: of `check`.

    Raises:
        ValueError: what every trial would fail for.
        OSError: the disk is full.
    """
    if not (sweep.folder / SWEEP_FILE).is_file():
        write_object(sweep.folder / SWEEP_FILE, sweep.describe())
    study = Study(sweep.folder, sweep.space, sweep.maximize)
    before, began = len(study.trials), time.monotonic()
    total = max(before, sweep.trials) if points is None else len(points)
    if before:
        say(f"{before} of {total} trials have ended")
        report.write(sweep.folder, study, sweep.metric, sweep.maximize)
    for number in range(before, total):
        values = (
            study.propose(sweep.search, sweep.seed, number) if points is None else points[number]
        )
        shown = " ".join(f"{key}={text}" for key, text in values.items())
        say(f"{folder_name(number)}, {number + 1} of {total}: {shown}")
        ended = run_trial(sweep, study, number, values, say)
        if ended is None:
            return False
        report.write_hparams(sweep.folder / folder_name(number), ended, sweep.metric)
        study.add(ended)
        report.write(sweep.folder, study, sweep.metric, sweep.maximize)
        say(
            progress(sweep, study.trials, total, (time.monotonic() - began) / (number + 1 - before))
        )
    return True


def progress(sweep: Sweep, trials: Sequence[Trial], total: int, seconds: float) -> str:
    """How the last trial ended, which is the best, and, at `seconds` a trial, how long the others
    take.
    """
    parts = [f"{folder_name(trials[-1].number)}: {report.outcome(trials[-1], sweep.metric)}"]
    if (found := best(trials, sweep.maximize)) is not None:
        parts.append(f"best {found.value:.4g}, {folder_name(found.number)}")
    if left := total - len(trials):
        text = timedelta(seconds=round(seconds * left))
        parts.append(f"{3600 / seconds:.1f} trials an hour, about {text} left")
    return "; ".join(parts)


def run_trial(
    sweep: Sweep, study: Study, number: int, values: Values, say: Callable[[str], None]
) -> Trial | None:
    """Trains one trial, from its newest checkpoint if it has one, until it ends or is no good; None
    where a signal ended it.
    """
    folder, began = sweep.folder / folder_name(number), time.monotonic()
    try:
        config = sweep.config_of(values)
    except ValueError as error:
        return Trial(number, values, FAILED, None, 0, 0.0, str(error))
    watched, stopped = study.watch(values, sweep.pruner, config.num_steps), []

    def no_good() -> bool:
        for step, value in read_reports(sweep, folder, config).items():
            # One that is no number ends the training, or the trial is a failed one.
            new = not stopped and step not in watched.reports and math.isfinite(value)
            if new and watched.should_stop(step, value) and step < config.num_steps:
                stopped.append(step)
        return bool(stopped)

    wait_until_free(folder)  # a process that outlived the sweep that was killed
    status, last = trial.run(sweep.trial_command(number, values), folder, no_good, say)
    no_good()
    seconds = round(time.monotonic() - began, 1)
    reports = watched.reports if stopped else read_reports(sweep, folder, config)
    step, value = list(reports.items())[-1] if reports else (0, None)
    ended = Trial(number, values, STOPPED, value, step, seconds, "", watched.reports, watched.notes)
    if stopped or status == os.EX_TEMPFAIL:
        return ended if stopped else None
    why = "" if status == 0 else trial.reason(status, last)
    if status == 0 and (value is None or not math.isfinite(value)):
        why = f"its {sweep.metric} is {value}"
    if why:
        check_shared(sweep, folder, why, study)
        value = None
    return Trial(**vars(ended) | {"state": FAILED if why else COMPLETE, "value": value, "why": why})


def read_reports(sweep: Sweep, folder: Path, config: RunConfig) -> Mapping[int, float]:
    """The metric of a trial as far as it is, by step."""
    return trial.read_reports(folder, sweep.metric, config.num_steps, config.log_every)


def check_shared(sweep: Sweep, folder: Path, why: str, study: Study) -> None:
    """Raises what the other trials would fail for, too: a full disk; and whatever keeps the first
    ones from their first step, but for a lack of memory.
    """
    if (full := disk_refusal(RuntimeError(why), folder)) is not None:
        raise full
    begun = (folder / METRICS_FILE).is_file() and read_losses(folder)
    if begun or any(other.step for other in study.trials) or any(s in why for s in SHORTAGE):
        return
    raise ValueError(f"{folder.name}: {why}. {folder / trial.LOG_FILE} has more")
