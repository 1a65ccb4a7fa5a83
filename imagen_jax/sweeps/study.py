"""Optuna, wrapped: what is tried next, which trials are stopped early, what matters.

The study's file, which Optuna's own tools read, gets each trial when it has ended, in one line.
What a trial tries depends on the seed, its number and the trials before it alone, so that a sweep
that was killed proposes what it would have proposed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.storage.disk import disk_errors
from imagen_jax.storage.lines import LineFile
from imagen_jax.sweeps.space import Choices, Space, Values
from imagen_jax.sweeps.trial import COMPLETE, FAILED, STOPPED, Trial
from imagen_jax.training.config import read_value

STUDY_FILE, STUDY_NAME = "optuna.jsonl", "sweep"
SEARCHES = ("grid", "random", "tpe")
PRUNERS = ("median", "halving", "none")
STARTUP = 4  # trials that end before the median of them stops another
WARMUP = 4  # part of a run, a quarter, that is never stopped


def import_optuna() -> Any:
    """Optuna, which says only warnings. ImportError: it is not installed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distributions(space: Space) -> dict[str, Any]:
    """The keys of a space as Optuna has them."""
    from optuna import distributions as kinds

    found = {}
    for key, values in space.items():
        if isinstance(values, Choices):
            found[key] = kinds.CategoricalDistribution([_scalar(text) for text in values.texts])
        elif isinstance(values.low, int):
            step = values.step or 1
            found[key] = kinds.IntDistribution(values.low, values.high, values.log, step)
        else:
            found[key] = kinds.FloatDistribution(values.low, values.high, values.log, values.step)
    return found


def _scalar(text: str) -> Any:
    """A choice as Optuna's file keeps it: a number, a word; what is none of these as its text."""
    value = read_value(text)
    return value if value is None or isinstance(value, bool | int | float | str) else text


class Study:
    """The trials of a sweep that have ended, in a file of Optuna's."""

    def __init__(self, folder: Path, space: Space, maximize: bool = False):
        """Opens or begins the file in a folder that no other process writes into.

        Raises:
            ImportError: Optuna is not installed.
            ValueError: the file cannot be read.
        """
        self.optuna, self.space, path = import_optuna(), space, folder / STUDY_FILE
        self.distributions = distributions(space)
        self.direction = "maximize" if maximize else "minimize"
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # of a process that was killed
        self.path = path
        with disk_errors(path):
            if path.exists():
                LineFile(path).close()  # cuts off half a line
            journal = self.optuna.storages.journal
            lock = journal.JournalFileOpenLock(str(path))
            storage = journal.JournalStorage(journal.JournalFileBackend(str(path), lock))
            self.study = self._create(storage=storage, study_name=STUDY_NAME, load_if_exists=True)

    def _create(self, **options: Any) -> Any:
        return self.optuna.create_study(direction=self.direction, **options)

    def _in_memory(self, **options: Any) -> Any:
        study = self._create(**options)
        study.add_trials(self.study.get_trials(deepcopy=False))
        return study

    @property
    def trials(self) -> list[Trial]:
        """Those that have ended, in their order."""
        return [Trial(**trial.user_attrs["trial"]) for trial in map(_whole, self.study.trials)]

    def propose(self, search: str, seed: int, number: int) -> Values:
        """What trial `number` tries, by "random" or "tpe"."""
        kinds, state = self.optuna.samplers, np.random.SeedSequence([seed, number])
        kind = {"random": kinds.RandomSampler, "tpe": kinds.TPESampler}[search]
        study = self._in_memory(sampler=kind(seed=int(state.generate_state(1)[0])))
        params = study.ask(self.distributions).params
        return {key: self._text(key, params[key]) for key in self.space}

    def _text(self, key: str, value: Any) -> str:
        values = self.space[key]
        if not isinstance(values, Choices):
            return repr(value)
        return values.texts[self.distributions[key].choices.index(value)]

    def _params(self, values: Values) -> dict[str, Any]:
        return {
            key: _scalar(text) if isinstance(self.space[key], Choices) else read_value(text)
            for key, text in values.items()
        }

    def watch(self, values: Values, pruner: str, num_steps: int) -> "Watched":
        """A trial that begins, to be told by its reports when it should stop."""
        kinds = self.optuna.pruners
        rule = {
            "none": kinds.NopPruner,
            "median": lambda: kinds.MedianPruner(STARTUP, num_steps // WARMUP),
            "halving": lambda: kinds.SuccessiveHalvingPruner(max(1, num_steps // 16)),
        }[pruner]()
        study = self._in_memory(pruner=rule)
        study.enqueue_trial(self._params(values))
        return Watched(study, study.ask(self.distributions))

    def add(self, trial: Trial) -> None:
        """Keeps a trial that has ended."""
        state = self.optuna.trial.TrialState
        states = {COMPLETE: state.COMPLETE, STOPPED: state.PRUNED, FAILED: state.FAIL}
        kept = self.optuna.trial.create_trial(
            state=states[trial.state],
            value=trial.value,
            params=self._params(trial.values),
            distributions=self.distributions,
            user_attrs={"trial": vars(trial) | {"reports": {}, "notes": {}}},
            system_attrs=dict(trial.notes),
            intermediate_values=dict(trial.reports),
        )
        with disk_errors(self.path):
            self.study.add_trial(kept)

    def importance(self) -> dict[str, float]:
        """How much each key matters for the metric, 1 in all (PED-ANOVA, arXiv 2304.10255); empty
        where too few trials are complete, or nothing differs.
        """
        trials = [trial for trial in self.trials if trial.state == COMPLETE]
        if len(trials) < 3 or len({trial.value for trial in trials}) < 2:
            return {}
        importance = self.optuna.importance
        found = importance.get_param_importances(
            self.study, evaluator=importance.PedAnovaImportanceEvaluator()
        )
        return {key: found[key] for key in self.space if key in found}


def _whole(kept: Any) -> Any:
    attributes = kept.user_attrs["trial"]
    attributes["reports"], attributes["notes"] = kept.intermediate_values, kept.system_attrs
    return kept


class Watched:
    """A trial that runs, as its pruner sees it."""

    def __init__(self, study: Any, trial: Any):
        self.study, self.trial = study, trial
        self.reports: dict[int, float] = {}

    def should_stop(self, step: int, value: float) -> bool:
        """Whether to stop after this report; each step is reported once, in their order."""
        self.reports[step] = value
        self.trial.report(value, step)
        return bool(self.trial.should_prune())

    @property
    def notes(self) -> dict[str, Any]:
        """What the pruner has to remember of this trial."""
        return dict(self.study.get_trials(deepcopy=False)[self.trial.number].system_attrs)


def best(trials: Sequence[Trial], maximize: bool) -> Trial | None:
    """The complete trial of the best value; the first of equal ones."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    order = -1 if maximize else 1
    return min(complete, key=lambda trial: order * trial.value, default=None)
