"""Runs of several real processes: the same losses as one, whatever dies on the way."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from training.test_config import tiny

from imagen_jax.commands import train
from imagen_jax.devices.hosts import Launch, check_shared, gather_json, join_hosts, launched
from imagen_jax.models import t5
from imagen_jax.pipeline.encoder_files import write_encoder
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.training.metrics import read_losses
from imagen_jax.training.run_config import read_config
from tests.commands.in_process import call
from tests.training.toy import run

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
            + [
                f"{flag}={value}"
                for flag, value in zip(flags, (address, count, i), strict=bool(flags))
            ],
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
    run(workdir, steps=STEPS, order=[0])
    return read_losses(workdir)


def test_four_processes_compute_what_one_does(tmp_path, alone):
    said = finish(toy(tmp_path, 4, steps=5, fsdp=2))
    assert_losses(tmp_path, alone, 5)
    # The first host alone reports.
    assert ["finished" in text for text in said] == [True, False, False, False]


def test_a_batch_is_the_same_however_hosts_lie_in_the_mesh(tmp_path, alone):
    """On a torus hosts are not in the mesh's order, and `tensor` may go over several."""
    finish(toy(tmp_path, 4, steps=5, order=[2, 0, 3, 1], tensor=2))
    assert_losses(tmp_path, alone, 5)


def test_a_run_goes_from_two_processes_to_one_to_four(tmp_path, alone):
    finish(toy(tmp_path, 2, steps=5))
    assert_losses(tmp_path, alone, 5)
    run(tmp_path, steps=9, order=[0])
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


@pytest.mark.slow
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(tmp_path, alone):
    check_kills(tmp_path, kills=3, steps=STEPS)
    assert_losses(tmp_path, alone, STEPS)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    steps = 80
    finish(toy(tmp_path / "whole", 2, steps=steps, every=5))
    check_kills(tmp_path / "killed", kills=20, steps=steps)
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "whole")


def test_sigterm_of_one_process_saves_on_all(tmp_path):
    processes = toy(tmp_path, 2, steps=1000, every=1000, delay=0.05)
    wait_for_step(tmp_path, 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert "stopped by a signal" in finish(processes)[0]
    (saved,) = Checkpoints(tmp_path / "checkpoints", read_only=True).steps()
    assert saved == max(read_losses(tmp_path))


SMALL = [
    f"--config={ROOT / 'tests' / 'training' / 'tiny_config.py'}",
    "--config.num_steps=5",
    "--config.text.trainable=False",
    "--config.stage.network.levels=[{'channels': 8, 'num_res_blocks': 1, 'stride': 2}]",
    "--config.sample={'prompts': ['no 1', 'no 2'], 'steps': 1}",
]
FLAGS = ("--coordinator_address", "--num_processes", "--process_id")


def test_the_train_script_runs_on_two_hosts(tmp_path):
    """The real step with a frozen encoder, and samples drawn by both."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    captions = np.asarray([f"no {i}" for i in range(40)])
    np.savez(tmp_path / "set.npz", image=images, captions=captions)
    config = read_config(tiny()).text.encoder
    write_encoder(tmp_path / "encoder", config, t5.init(config, jax.random.key(1)))
    options = [
        *SMALL,
        f"--config.data.path={tmp_path / 'set.npz'}",
        f"--config.text.init_from={tmp_path / 'encoder'}",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    ended, _ = call(train, *options, f"--workdir={one}")
    assert not ended
    script = str(ROOT / "scripts" / "train.py")
    finish(start([script, *options, f"--workdir={two}"], 2, FLAGS))
    assert_losses(two, read_losses(one), 5)
    images = [plt.imread(path / "samples" / "samples_0000005.png") for path in (one, two)]
    np.testing.assert_allclose(*images, atol=2 / 255)
    names = [
        sorted(p.name for p in path.iterdir() if "events" not in p.name) for path in (one, two)
    ]
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize(("first_count", "second_count"), [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_a_second_run_in_a_workdir_leaves_the_first_one_as_it_is(
    tmp_path, first_count, second_count
):
    """Processes of one host, and of two over jax.distributed."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    captions = np.asarray([f"no {i}" for i in range(40)])
    np.savez(tmp_path / "set.npz", image=images, captions=captions)
    script = [str(ROOT / "scripts" / "train.py"), *SMALL, f"--config.data.path={tmp_path}/set.npz"]
    script += ["--config.text.trainable=True", "--config.sample=None", "--config.log_every=1000"]
    script += ["--config.checkpoint.every=50"]

    def launch(name: str, count: int, steps: int) -> list[subprocess.Popen]:
        options = [f"--workdir={tmp_path / name}", f"--config.num_steps={steps}"]
        return start([*script, *options], count, FLAGS if count > 1 else ())

    workdir, first = tmp_path / "run", launch("run", first_count, 1_000_000)
    wait_for_step(workdir, 1, first)
    config = (workdir / "config.json").read_bytes()
    second = launch("run", second_count, 9)
    said = [process.communicate(timeout=120)[0] for process in second]
    for index, (process, text) in enumerate(zip(second, said, strict=True)):
        assert process.returncode == 1
        assert "Traceback" not in text
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert f"is in use by process {first[0].pid} on host" in line
        assert (f"error: process {index} of 2 (host " in line) == (second_count > 1)
    at = max(read_losses(workdir))
    wait_for_step(workdir, at + 5, first)  # it goes on
    first[-1].send_signal(signal.SIGTERM)
    ended = [process.communicate(timeout=120)[0] for process in first]
    assert [process.returncode for process in first] == [os.EX_TEMPFAIL] * first_count, ended
    assert (workdir / "config.json").read_bytes() == config
    assert not (workdir / "run.lock").exists()
    losses = written(workdir)
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
    assert Checkpoints(workdir / "checkpoints", read_only=True).steps()[-1] == len(losses)
    finish(launch("alone", 1, at))
    expected = list(read_losses(tmp_path / "alone").values())
    np.testing.assert_allclose([loss for _, loss in losses[:at]], expected, rtol=1e-5)


def test_a_launcher_is_recognized():
    assert launched({}) is None
    assert launched({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert launched({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}) == ("SLURM", 4, 3)
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    assert launched(mpi) == ("Open MPI", 2, 1)
    assert launched({"TPU_WORKER_HOSTNAMES": "a,b,c"}) == ("a TPU node pool", 3, None)
    assert launched({"TPU_WORKER_HOSTNAMES": "localhost"}) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coordinator_address": "host"}, "'host'; it must be HOST:PORT"),
        ({"num_processes": 0}, "num_processes must be 1 or more, not 0"),
        ({"process_id": -1}, "process_id must be 0 or more, not -1"),
        ({"num_processes": 2, "process_id": 2}, "and below num_processes 2, not 2"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds must be 1 or more, not 0"),
    ],
)
def test_what_contradicts_itself_is_named(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Launch(**values)


def train_fails(*flags: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *SMALL, "--workdir=/none", *flags],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_hosts_that_cannot_be_found_are_one_line():
    address = f"127.0.0.1:{free_port()}"
    flags = (f"--coordinator_address={address}", "--num_processes=2", "--process_id=1")
    said = train_fails(*flags, "--join_seconds=1")
    assert f"process 1 of 2 cannot reach process 0 at {address}: Connection refused" in said
    # Started by a launcher that does not say where the first process is.
    said = train_fails(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert "(Open MPI started 2 processes)" in said
    assert "--coordinator_address=HOST:PORT" in said


def test_a_pod_whose_hosts_are_not_joined_is_refused(monkeypatch):
    """Its TPUs count as those of one run, but nobody passes a signal on."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="one of 4 hosts of a TPU pod: give --distributed"):
        join_hosts(Launch())


def test_one_process_needs_nothing():
    assert jax.process_count() == 1
    join_hosts(Launch())
    assert gather_json({"a": [1]}) == [{"a": [1]}]
    check_shared(Path("/nowhere"), "--workdir")
