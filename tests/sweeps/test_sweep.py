"""imagen-jax sweep: what it tries, how trials end, kills, mistakes."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from imagen_jax.commands import sweep
from imagen_jax.sweeps import report
from imagen_jax.sweeps.space import Choices, Range, grid, split_commas, split_space
from imagen_jax.sweeps.study import Study
from imagen_jax.sweeps.trial import COMPLETE, FAILED, STOPPED, Trial, read_reports
from imagen_jax.training.metrics import read_losses
from tests.commands.in_process import call

pytest.importorskip("optuna", reason="optuna is not installed (extra sweep)")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "training" / "tiny_config.py"
STAND_IN = Path(__file__).with_name("stand_in_training.py")
# The command, whose trials are stand-ins.
WRAPPED = f"""
from imagen_jax.commands import sweep
from imagen_jax.sweeps import report
report.plot = lambda *given: None  # half a second
sweep.TRIAL = "import runpy; runpy.run_path({str(STAND_IN)!r})"
sweep.main()
"""
RATES = "--config.optimizer.learning_rate=0.003,0.01,0.03"
HEADS = "--config.stage.network.num_heads=1,2"


@pytest.fixture
def quick(monkeypatch):
    """Trials are stand-ins."""
    monkeypatch.setattr(sweep, "TRIAL", f"import runpy; runpy.run_path({str(STAND_IN)!r})")


@pytest.fixture
def without_plot(monkeypatch):
    """A plot takes half a second."""
    monkeypatch.setattr(report, "plot", lambda *given: None)


def options(folder: Path, *more: str) -> list[str]:
    return [f"--config={CONFIG}", f"--workdir={folder}", "--config.num_steps=20",
            "--config.log_every=2", *more]  # fmt: skip


def ended(folder: Path) -> list[dict[str, str]]:
    """The table, without the time that trials took."""
    with open(folder / "sweep.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# -------------------------------------------------------------------------------- the options


def test_commas_separate_but_not_within_brackets_or_quotes():
    assert split_commas("1e-4, 3e-4") == ["1e-4", "3e-4"]
    assert split_commas("[1,2],(3,4)") == ["[1,2]", "(3,4)"]
    assert split_commas("'a,b',it's") == ["'a,b'", "it's"]
    assert split_commas("{'a': [1, 2]},None") == ["{'a': [1, 2]}", "None"]
    for wrong in ("1,,2", "1,", "[1,2", "'a,b"):
        with pytest.raises(ValueError, match=r"missing|nothing before"):
            split_commas(wrong)


def test_lists_ranges_and_fixed_keys():
    fixed, space = split_space(
        {"a": "[1,2]", "b": "1,2", "c[0].d": "1e-5:1e-3:log", "e": "16:64:16", "f": "0:1", "g": "x"}
    )
    assert fixed == {"a": "[1,2]", "g": "x"}
    assert space == {
        "b": Choices(("1", "2")),
        "c.0.d": Range(1e-5, 1e-3, None, True),
        "e": Range(16, 64, 16),
        "f": Range(0, 1),
    }
    assert space["b"].values == [1, 2]
    points = grid({"a": Choices(("1", "2")), "b": Choices(("x", "y", "z"))})
    assert points[:2] == [{"a": "1", "b": "x"}, {"a": "1", "b": "y"}]
    assert len({tuple(point.items()) for point in points}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batch_size=16"], "nothing is swept"),
        (["--config.batch_size=8,8.0,8"], "a value twice"),
        (["--config.optimizer.learning_rate=3:1"], "first end must be below"),
        (["--config.optimizer.learning_rate=0:1:log"], "begins above 0"),
        (["--config.optimizer.learning_rate=1:2:lag"], "did you mean 'log'"),
        (["--config.optimizer.learning_rate=1:2,3:4"], "a range stands alone"),
        (["--config.optimizer.learning_rate=1e-4:1e-3"], "of which a grid has no points"),
        (["--config.optimizer.learning_rte=1,2"], "learning_rte.*did you mean"),
        (["--config.optimizer.learning_rate=1e-3,fast"], "it must be of type float"),
        (["--config.batch_size=8,16", "--config.batch_size=8"], "given twice"),
        (["--config.optimizer={}", "--config.optimizer.b1=0.8,0.9"], "set the same key"),
        (["--config.stage.prediction=v,eps"], "changes what the training loss measures"),
        (["--config.ema_decay=0.9,0.99"], "does not change the training loss"),
        ([RATES, "--search=random"], "needs --trials N"),
        ([RATES, "--trials=3"], "a grid has as many trials as points"),
        ([RATES, "--search=best"], "--search is 'best'"),
        ([RATES, "--metric=accuracy"], "--metric is 'accuracy'"),
        ([RATES, "--metric=scores/fid/inception"], "no section evaluate"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(arguments, message, tmp_path):
    end, _ = call(sweep, *options(tmp_path / "runs", *arguments))
    assert isinstance(end, str)
    assert "\n" not in end
    assert re.search(message, end), end
    assert not (tmp_path / "runs").exists()


def test_folders_of_another_sweep_or_of_a_run_are_refused(tmp_path, quick, without_plot):
    rate = "--config.optimizer.learning_rate=0.01"
    end, _ = call(sweep, *options(tmp_path / "runs", "--config.batch_size=4,8", rate))
    assert end is None
    end, _ = call(sweep, *options(tmp_path / "runs", "--config.batch_size=4,16", rate))
    assert "space.0.texts.1 = '8', not '16'" in end
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    end, _ = call(sweep, *options(tmp_path / "run", RATES))
    assert "holds no sweep, but checkpoints" in end


# ---------------------------------------------------------------------------------- the trials


def test_trials_leave_a_table_a_plot_and_hparams(tmp_path, quick):
    rates = "--config.optimizer.learning_rate=0.003,0.01"
    end, said = call(sweep, *options(tmp_path, rates, HEADS, "--prune=none"))
    assert end is None
    rows = ended(tmp_path)
    assert [row["state"] for row in rows] == [COMPLETE] * 4
    # The mean of the last two of 20 losses.
    expected = 10 * 0.007 + 0.1 + (1 / 19 + 1 / 20) / 2
    assert float(rows[0]["loss"]) == pytest.approx(expected, rel=1e-6)
    best = min(rows, key=lambda row: float(row["loss"]))
    assert (best["optimizer.learning_rate"], best["stage.network.num_heads"]) == ("0.01", "1")
    assert "best 0.1513, trial_002; " in said
    assert "trial_003, 4 of 4: optimizer.learning_rate=0.01 stage.network.num_heads=2" in said
    assert "importance: optimizer.learning_rate " in said
    with Image.open(tmp_path / "sweep.png") as plot:
        assert plot.width > plot.height
    for number, row in enumerate(rows):
        values, metrics = read_hparams(tmp_path / f"trial_{number:03d}")
        assert values["optimizer.learning_rate"] == float(row["optimizer.learning_rate"])
        assert metrics == {"sweep/loss": pytest.approx(float(row["loss"]), rel=1e-6)}


def read_hparams(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """(values, metrics) of a trial, read from TensorBoard's file."""
    values, metrics = {}, {}
    for path in folder.glob("events.out.tfevents.*"):
        data, start = path.read_bytes(), 0
        while start < len(data):
            size = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + size])
            start += size + 16
            for value in event.summary.value:
                content = value.metadata.plugin_data.content
                if value.metadata.plugin_data.plugin_name == "hparams":
                    found = HParamsPluginData.FromString(content).session_start_info.hparams
                    values |= {k: v.number_value for k, v in found.items()}
                elif value.tag.startswith("sweep/"):
                    metrics[value.tag] = value.simple_value
    return values, metrics


def test_a_trial_that_fails_does_not_end_the_sweep(tmp_path, quick, without_plot):
    rates = "--config.optimizer.learning_rate=0.25,0.01,0.5"
    end, said = call(sweep, *options(tmp_path, rates))
    assert end is None
    assert [row["state"] for row in ended(tmp_path)] == [FAILED, COMPLETE, FAILED]
    assert "failed: killed by SIGKILL (out of memory?)" in said
    # Only the error, without the advice that follows it.
    assert ended(tmp_path)[2]["why"] == "the loss is nan at step 6"
    # TensorBoard shows the metric that the first of all runs names.
    (path,) = (tmp_path / "trial_000").glob("events.out.tfevents.*")
    assert b"sweep/loss" in path.read_bytes()


def test_bad_trials_are_stopped_early(tmp_path, quick, without_plot, monkeypatch):
    """By the median of those before: the rate makes a trial bad from its first step on."""
    monkeypatch.setenv("STEP_SECONDS", "0.02")
    rates = "--config.optimizer.learning_rate=0.01,0.011,0.012,0.013,0.2,0.009"
    assert call(sweep, *options(tmp_path, rates))[0] is None
    rows = ended(tmp_path)
    assert [row["state"] for row in rows] == [COMPLETE] * 4 + [STOPPED, COMPLETE]
    assert int(rows[4]["step"]) == 6  # a quarter of 20 steps is never stopped
    assert max(read_losses(tmp_path / "trial_004")) < 20


def test_what_fails_every_trial_is_told_at_once(tmp_path, quick):
    end, _ = call(sweep, *options(tmp_path, "--config.optimizer.learning_rate=0.75,0.01"))
    assert "trial_000: there is no folder" in end
    assert "\n" not in end
    assert not (tmp_path / "trial_001").exists()


@pytest.mark.slow
def test_what_fails_every_real_trial_is_told_at_once(tmp_path):
    end, _ = call(sweep, *options(tmp_path, RATES, "--config.data.path=/nowhere/set.npz"))
    assert "trial_000: " in end
    assert "/nowhere/set.npz" in end
    assert not (tmp_path / "trial_001").exists()


def random_trials(rng: np.random.Generator, space, count: int) -> list[Trial]:
    losses = rng.uniform(size=count)
    values = [
        {"a": repr(float(rng.uniform(1e-4, 1e-2))), "b": str(rng.integers(1, 9))} for _ in losses
    ]
    return [
        Trial(i, values[i], STOPPED if i % 4 == 3 else COMPLETE, float(loss), 8, 1.0,
              reports={4: float(loss) + 1, 8: float(loss)})
        for i, loss in enumerate(losses)
    ]  # fmt: skip


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_proposals_depend_on_seed_number_and_earlier_trials_alone(search, tmp_path, rng):
    space = {"a": Range(1e-4, 1e-2, None, True), "b": Range(1, 8), "c": Choices(("[1, 2]", "x"))}
    trials = [
        Trial(**vars(trial) | {"values": {**trial.values, "c": ("[1, 2]", "x")[trial.number % 2]}})
        for trial in random_trials(rng, space, 14)
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = Study(tmp_path / "one", space)
    proposed = []
    for trial in trials:
        proposed.append(one.propose(search, 5, trial.number))
        one.add(trial)
        again = Study(tmp_path / "one", space)
        assert again.trials == one.trials
        assert again.trials[-1] == trial
    two = Study(tmp_path / "two", space)
    for trial in trials:
        assert two.propose(search, 5, trial.number) == proposed[trial.number]
        two.add(trial)
    assert len({tuple(values.items()) for values in proposed}) == 14
    for values in proposed:
        assert 1e-4 <= float(values["a"]) <= 1e-2
        assert int(values["b"]) in range(1, 9)
        assert values["c"] in ("[1, 2]", "x")
    assert two.propose(search, 6, 14) != two.propose(search, 5, 14)


def test_half_a_line_of_the_study_is_cut_off(tmp_path, rng):
    space = {"a": Range(1e-4, 1e-2), "b": Range(1, 8)}
    study = Study(tmp_path, space)
    one, two = random_trials(rng, space, 2)
    study.add(one)
    with open(tmp_path / "optuna.jsonl", "a") as file:
        file.write('{"op_code":4,"half')
    (tmp_path / "optuna.jsonl.lock").touch()  # of the killed process
    with pytest.warns(UserWarning, match="half a line"):
        study = Study(tmp_path, space)
    study.add(two)
    assert Study(tmp_path, space).trials == [one, two]


def test_the_loss_is_smoothed_over_a_tenth(tmp_path, rng):
    losses = rng.uniform(size=40)
    lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = read_reports(tmp_path, "loss", 40, 7)
    assert list(found) == [7, 14, 21, 28, 35, 40]
    for step, value in found.items():
        assert value == pytest.approx(losses[step - 4 : step].mean())


# -------------------------------------------------------------------------------------- kills


def kill_when(
    command: list[str],
    folder: Path,
    lines: int,
    environment: dict[str, str],
    by: signal.Signals = signal.SIGKILL,
) -> None:
    """Starts a sweep and kills it once its trials have written so many lines in all."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        written = [path.read_bytes().count(b"\n") for path in folder.glob("*/metrics.jsonl")]
        if sum(written) >= lines:
            process.send_signal(by)
            break
        time.sleep(0.02)
    assert process.wait() == (os.EX_TEMPFAIL if by == signal.SIGTERM else -signal.SIGKILL)


def test_a_sweep_that_was_killed_ends_as_an_uninterrupted_one(tmp_path, quick, without_plot):
    more = ["--search=tpe", "--trials=6", "--config.optimizer.learning_rate=1e-4:1e-1:log", HEADS]
    assert call(sweep, *options(tmp_path / "whole", *more))[0] is None
    command = [sys.executable, "-c", WRAPPED, *options(tmp_path / "killed", *more)]
    slow = os.environ | {"PYTHONPATH": str(ROOT), "STEP_SECONDS": "0.02"}
    kill_when(command, tmp_path / "killed", random.randrange(25, 75), slow)
    end, said = call(sweep, *options(tmp_path / "killed", *more))
    assert end is None
    assert " of 6 trials have ended" in said
    rows = ended(tmp_path / "killed")
    assert rows == ended(tmp_path / "whole")
    assert len(rows) == 6
    end, said = call(sweep, *options(tmp_path / "killed", *more, "--trials=3"))
    assert end is None
    assert "6 of 6 trials have ended" in said
    for number, row in enumerate(rows):
        own, other = (
            read_losses(tmp_path / x / f"trial_{number:03d}") for x in ("whole", "killed")
        )
        shared = range(1, int(row["step"]) + 1)
        assert [own[step] for step in shared] == [other[step] for step in shared]


@pytest.mark.slow
def test_real_trials_killed_twice_end_as_uninterrupted_ones(tmp_path):
    images = np.random.default_rng().integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "set.npz", image=images, captions=np.asarray([f"{i}" for i in range(40)]))
    keys = [f"--config.data.path={tmp_path / 'set.npz'}", RATES, HEADS]
    commands = {
        name: [sys.executable, str(ROOT / "scripts" / "sweep.py"), *options(tmp_path / name, *keys)]
        for name in ("whole", "killed")
    }
    subprocess.run(commands["whole"], check=True)
    for lines, by in ((30, signal.SIGKILL), (55, signal.SIGTERM), (75, signal.SIGKILL)):
        kill_when(commands["killed"], tmp_path / "killed", lines, dict(os.environ), by)
    subprocess.run(commands["killed"], check=True)
    assert ended(tmp_path / "killed") == ended(tmp_path / "whole")
