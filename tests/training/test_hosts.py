"""Runs of several real processes: the same losses as one, whatever dies on the way."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.training.checkpoint import Checkpoints
from imagen_jax.training.metrics import read_losses

ROOT = Path(__file__).resolve().parents[2]
TOY = [str(ROOT / "tests" / "training" / "toy.py")]
STEPS = 15
# Each process has one CPU device, and computes as the tests' own process does.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "JAX_PLATFORMS": "cpu",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], count: int, flags=("--address", "--processes", "--process")):
    """`count` processes of one run on this machine."""
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, *command]
            + [f"{flag}={value}" for flag, value in zip(flags, (address, count, i), strict=True)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        for i in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """What each process printed, once all have ended well."""
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
    return said


def wait_for_step(workdir: Path, step: int, processes: list[subprocess.Popen]) -> None:
    file = workdir / "metrics.jsonl"
    while not file.exists() or max(read_losses(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)


def toy(workdir: Path, count: int, **options) -> list[subprocess.Popen]:
    given = [f"--{name}={value}" for name, value in options.items()]
    return start([*TOY, str(workdir), *given], count)


def assert_losses(workdir: Path, expected: dict[int, float], steps: int) -> None:
    losses = read_losses(workdir)
    assert list(losses) == list(range(1, steps + 1))
    wanted = [expected[step] for step in losses]
    np.testing.assert_allclose(list(losses.values()), wanted, rtol=1e-5)


def written(workdir: Path) -> list[tuple[int, float]]:
    """Every (step, loss), repeated steps too."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, float]:
    """The losses of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    command = [sys.executable, *TOY, str(workdir), f"--steps={STEPS}"]
    subprocess.run(command, check=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    return read_losses(workdir)


def test_four_processes_compute_what_one_does(tmp_path, alone):
    said = finish(toy(tmp_path, 4, steps=5, fsdp=2))
    assert_losses(tmp_path, alone, 5)
    # The first host alone reports.
    assert ["finished" in text for text in said] == [True, False, False, False]


def test_a_run_goes_from_two_processes_to_one_to_four(tmp_path, alone):
    finish(toy(tmp_path, 2, steps=5))
    assert_losses(tmp_path, alone, 5)
    subprocess.run(
        [sys.executable, *TOY, str(tmp_path), "--steps=9"], check=True, cwd=ROOT, env=ENVIRONMENT
    )
    (said, *_) = finish(toy(tmp_path, 4, steps=STEPS, fsdp=4))
    assert "resumed at step 9" in said
    assert_losses(tmp_path, alone, STEPS)


def kill_one(workdir: Path, steps: int, at: int, rng: random.Random) -> None:
    """Starts or goes on with a run of two and kills one of them some time after step `at`."""
    every = 5
    processes = toy(workdir, 2, steps=steps, every=every, delay=0.05)
    try:
        wait_for_step(workdir, at, processes)
        time.sleep(rng.uniform(0, 0.3))
        victim = rng.randrange(2)
        processes[victim].send_signal(signal.SIGKILL)
        # The other is stuck in a sum over both, and ends by itself.
        assert processes[1 - victim].wait(timeout=90) != 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    saved = Checkpoints(workdir / "checkpoints", read_only=True).steps()
    reached = max(read_losses(workdir))
    # The newest may still have been in the making.
    assert max(saved, default=0) >= reached // every * every - every


def check_kills(workdir: Path, kills: int, steps: int) -> None:
    rng = random.Random(kills)
    for at in sorted(rng.sample(range(1, steps - 8), kills)):
        newest = max(Checkpoints(workdir / "checkpoints").steps(), default=0)
        before = len(written(workdir)) if (workdir / "metrics.jsonl").exists() else 0
        kill_one(workdir, steps, at, rng)
        resumed = written(workdir)[before:]
        assert not resumed or resumed[0][0] == newest + 1  # only steps since then are repeated
    finish(toy(workdir, 2, steps=steps, every=5))
    losses = read_losses(workdir)
    assert all(losses[step] == loss for step, loss in written(workdir))


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(tmp_path, alone):
    check_kills(tmp_path, kills=3, steps=STEPS)
    assert_losses(tmp_path, alone, STEPS)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    steps = 80
    finish(toy(tmp_path / "whole", 2, steps=steps, every=5))
    check_kills(tmp_path / "killed", kills=20, steps=steps)
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "whole")


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_of_one_process_saves_on_all(tmp_path, alone, told):
    processes = toy(tmp_path, 2, steps=1000, every=1000, delay=0.05)
    wait_for_step(tmp_path, 3, processes)
    processes[told].send_signal(signal.SIGTERM)
    assert "stopped by a signal" in finish(processes)[0]
    (saved,) = Checkpoints(tmp_path / "checkpoints", read_only=True).steps()
    assert saved == max(read_losses(tmp_path))


def test_the_train_script_runs_on_two_hosts(tmp_path):
    """The real step, a frozen encoder, samples and flags; one host, then two from its weights."""
