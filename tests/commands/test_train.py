"""scripts/train.py from the outside: what it prints, imports and survives."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import BASE, ENCODER, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands import evaluate, generate, pretrain_text, save_model, train
from imagen_jax.commands.train import parse_profile
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.model_directory import write_model
from imagen_jax.pipeline.snapshots import snapshot_steps, synthesize
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.storage.lock import Lock
from imagen_jax.storage.trees import flatten
from imagen_jax.training.metrics import Curve, read_losses
from imagen_jax.training.start import reference_curve
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "training" / "tiny_config.py"

AVERAGES = "{'every': 3}"  # of the section ema

# Runs the command in a process of its own and then says which of the heavy modules came in.
WRAPPED = """
import sys
sys.argv = sys.argv[1:]
try:
    from imagen_jax.commands.train import main
    main()
finally:
    heavy = ("tensorflow", "seqio", "tensorflow_datasets", "tensorflow_text", "wandb")
    print("IMPORTED", [name for name in heavy if name in sys.modules])
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(path, image=images, captions=np.asarray([f"no {i}" for i in range(40)]))
    return path


def arguments(workdir: Path, dataset: Path, **overrides) -> list[str]:
    keys = {"data.path": str(dataset), **{k.replace("__", "."): v for k, v in overrides.items()}}
    return [
        str(ROOT / "scripts" / "train.py"),
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]


def run(command: list[str], check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr
    return done


def losses_in_full(workdir: Path) -> list[tuple[int, float]]:
    """Every (step, loss) that was written, repeated steps too."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def kill_at(command: list[str], workdir: Path, step: int, delay: float) -> None:
    """Starts a run and kills it some seconds after it has written `step`."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
    )
    try:
        while process.poll() is None:
            if (workdir / "metrics.jsonl").exists() and max(
                read_losses(workdir), default=0
            ) >= step:
                time.sleep(delay)
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()


def check_kills(tmp_path: Path, dataset: Path, whole: Path, steps: int, kills: int) -> None:
    rng = random.Random(kills)
    command = arguments(tmp_path, dataset, num_steps=steps, ema=AVERAGES)
    for step in sorted(rng.sample(range(1, steps - 1), kills)):
        kill_at(command, tmp_path, step, rng.uniform(0.0, 0.3))
    run(command)
    expected = read_losses(whole)
    assert list(expected) == list(range(1, steps + 1))
    assert read_losses(tmp_path) == expected
    assert all(expected[step] == loss for step, loss in losses_in_full(tmp_path))
    assert snapshot_steps(tmp_path) == [*range(3, steps + 1, 3), *([steps] if steps % 3 else [])]
    assert files_of(tmp_path / "ema") == files_of(whole / "ema")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, dataset) -> tuple[Path, str]:
    """An uninterrupted run with samples: (workdir, what it printed)."""
    workdir = tmp_path_factory.mktemp("whole")
    sample = "{'prompts': ['no 1', 'no 2'], 'steps': 2, 'every': 10}"
    command = arguments(workdir, dataset, sample=sample, ema=AVERAGES)
    return workdir, run(["-c", WRAPPED, *command]).stdout


def test_a_run_reports_and_leaves_a_whole_workdir(whole_run):
    workdir, said = whole_run
    assert "step 12/12 | epoch 2.53 | loss " in said
    assert " images/s | " in said
    assert " left" in said
    assert "averages    of relative widths 0.05 and 0.1; 4 snapshots of " in said
    assert Checkpoints(workdir / "checkpoints", read_only=True).steps()[-1] == 12
    assert json.loads((workdir / "config.json").read_text())["stage"]["name"] == "tiny"
    assert list(workdir.glob("events.out.tfevents.*"))
    for step in (10, 12):
        with Image.open(workdir / "samples" / f"samples_{step:07d}.png") as image:
            assert image.width > image.height


def test_commands_take_the_width_of_an_average(whole_run, tmp_path, capsys):
    workdir, prompts = str(whole_run[0]), tmp_path / "prompts.txt"
    prompts.write_text("no 1\n")
    _, kept = synthesize(workdir, 0.1)
    save_model.main(["--model", workdir, "--ema", "0.1", "--out", str(tmp_path / "model")])
    model = load_model(tmp_path / "model")
    assert model.notes == {whole_run[0].name: {"step": 12, "ema": 0.1}}
    for path, leaf in flatten(model.params["tiny"]).items():
        np.testing.assert_allclose(leaf, flatten(kept["network"])[path], rtol=1e-2, atol=1e-6)
    options = [
        "--prompts",
        str(prompts),
        "--metrics",
        "images",
        "--steps",
        "1",
        "--batch_size",
        "1",
    ]
    evaluate.main(
        ["--model", workdir, "--ema", "0.1", *options, "--out", str(tmp_path / "figures")]
    )
    report = json.loads((tmp_path / "figures" / "report.json").read_text())
    assert report["model"]["notes"] == load_model(workdir, ema=0.1).notes
    images = ["no 1", "--num_images", "1", "--steps", "1"]
    with pytest.raises(SystemExit, match=r"snapshots up to step 12 are too few .* width 0\.02"):
        generate.main(["--model", workdir, "--ema", "0.02", *images, "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit, match="2"):
        generate.main(["--model", workdir, "--ema", "long", *images])
    assert (
        "'long' must be the width of an average, such as 0.07, or none" in capsys.readouterr().err
    )


def test_npz_needs_no_tensorflow(whole_run):
    assert "IMPORTED []" in whole_run[1]


def test_a_folder_needs_no_tensorflow(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"image {i}")
    options = {"data__source": "folder", "data__split": "all", "num_steps": 1}
    command = arguments(tmp_path / "run", tmp_path, **options)
    assert "IMPORTED []" in run(["-c", WRAPPED, *command]).stdout


def test_killed_runs_go_on_bit_for_bit(tmp_path, dataset, whole_run):
    check_kills(tmp_path, dataset, whole_run[0], steps=12, kills=3)


@pytest.mark.slow
def test_ten_kills_of_a_long_run(tmp_path, dataset):
    run(arguments(tmp_path / "whole", dataset, num_steps=200, ema=AVERAGES))
    check_kills(tmp_path / "killed", dataset, tmp_path / "whole", steps=200, kills=10)


def test_a_dry_run_prints_the_model_and_writes_nothing(tmp_path, dataset):
    ended, said = call(train, *arguments(tmp_path / "run", dataset)[1:], "--dry_run")
    assert not ended
    assert "trained parameters" in said
    assert "images      38 of " in said
    assert "GFLOP an image" in said
    assert "3x3x" in said
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_line(tmp_path, dataset):
    ended, _ = call(train, *arguments(tmp_path, dataset, batchsize=3)[1:])
    assert ended == "error: unknown key 'config.batchsize'; did you mean 'batch_size'?"
    assert not list(tmp_path.iterdir())


def check_one_line(done: subprocess.CompletedProcess, *said: str) -> None:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(part in line for part in said), line


def test_files_and_folders_that_will_not_do_are_one_line(tmp_path, dataset):
    file = tmp_path / "file"
    file.write_text("mine")

    def check(workdir: Path, path: Path, *said: str) -> None:
        error, _ = call(train, *arguments(workdir, path)[1:])
        assert isinstance(error, str)
        assert error.startswith("error: ")
        assert all(part in error for part in said), error

    check(file, dataset, "--workdir", "is a file")
    check(Path("/proc/none"), dataset, "/proc/none cannot be")
    none = tmp_path / "none.npz"
    check(tmp_path / "run", none, "there is no file", "none")
    np.savez(none, image=np.uint8(3), captions=np.asarray(["a"]))
    check(tmp_path / "run", none, "uint8 [N, H, W, 3]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("package", "source"), [("grain", "npz"), ("seqio", "seqio")])
def test_a_missing_package_is_one_line(tmp_path, dataset, package, source):
    without = WRAPPED.replace("import sys", f"import sys\nsys.modules[{package!r}] = None", 1)
    command = arguments(tmp_path / "run", dataset, data__source=source)
    check_one_line(run(["-c", without, *command], check=False), package, "pip install 'imagen_jax[")


def test_a_full_disk_while_training_is_one_line(tmp_path, dataset):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    error, _ = call(train, *arguments(tmp_path, dataset)[1:])
    assert error.startswith("error: ")
    assert "No space left on device" in error


def shipped(tmp_path: Path, stage) -> Path:
    """A folder of models, one of them of this stage, with its loss curve."""
    cascade = Cascade((stage,), (Sampling(),), ENCODER)
    write_model(tmp_path / "model", cascade, random_params(cascade), name="model")
    Curve((1.0, 9.0), (2.0, 1.0), ((1.0,), (1.0,))).write(tmp_path / "model/base_curve.json")
    return tmp_path


def test_a_loss_is_held_against_a_stage_of_the_same_configuration_alone(tmp_path):
    models = shipped(tmp_path, BASE)
    assert reference_curve(BASE, models).loss == [2.0, 1.0]
    in_bfloat16 = replace(BASE, network=replace(BASE.network, dtype="bfloat16", remat=True))
    assert reference_curve(in_bfloat16, models).loss == [2.0, 1.0]
    for change in (
        {"prediction": "v"},
        {"loss": replace(BASE.loss, weight="v")},
        {"schedule": replace(BASE.schedule, shift=1.0)},
        {"network": replace(BASE.network, embedding_width=16)},
        {"name": "another"},
    ):
        assert reference_curve(replace(BASE, **change), models) is None


def test_another_config_in_the_same_workdir_is_refused(whole_run, dataset):
    workdir, options = whole_run[0], {"stage__network__levels__0__channels": 24, "num_steps": 20}
    before = files_of(workdir)
    error, _ = call(train, *arguments(workdir, dataset, **options)[1:])
    assert "does not fit the config" in error
    assert "Of its params, " in error
    assert "network/" in error
    assert files_of(workdir) == before


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("command", [train, pretrain_text])
def test_a_workdir_in_use_is_refused_and_left_alone(whole_run, dataset, command):
    workdir = whole_run[0]
    given = arguments(workdir, dataset, stage__network__draft=True)[1:]
    held = Lock(workdir, "--workdir")
    # As another run writes it just now; opening the folder of checkpoints would remove it.
    half = workdir / "checkpoints" / "99.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "file").touch()
    before = files_of(workdir)
    error, said = call(command, *given)
    assert error.startswith(f"error: --workdir {workdir} is in use by process {os.getpid()} on ")
    assert not said
    assert files_of(workdir) == before
    shutil.rmtree(half)
    held.release()


def test_a_model_is_read_from_the_checkpoint_before_a_damaged_one(tmp_path, whole_run):
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    *_, before, newest = Checkpoints(workdir / "checkpoints", read_only=True).steps()

    def damage(step: int) -> None:
        for path in (workdir / "checkpoints" / str(step)).rglob("d/*"):
            os.truncate(path, 10)

    damage(newest)
    with pytest.warns(UserWarning, match=f"checkpoint {newest} .* {before} is read instead"):
        assert load_model(workdir).notes == {"step": before}
    options = ("--model", str(workdir), "--out", str(tmp_path / "out"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_model.main([*options, "--steps", "1"])
    for step in Checkpoints(workdir / "checkpoints", read_only=True).steps():
        damage(step)
    prompts = ("--prompts", str(tmp_path / "prompts.txt"), "--metrics", "images")
    (tmp_path / "prompts.txt").write_text("cat\n")
    for command, more in ((generate, ["cat"]), (save_model, []), (evaluate, prompts)):
        with pytest.raises(SystemExit, match=r"error: all checkpoints in .* are damaged") as caught:
            command.main([*more, *options])
        assert "\n" not in str(caught.value)


def test_sigterm_saves(tmp_path, dataset):
    command = arguments(tmp_path, dataset, num_steps=100_000, checkpoint__every=100_000)
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    while process.poll() is None and not (
        (tmp_path / "metrics.jsonl").exists() and read_losses(tmp_path)
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL  # there is more to do
    assert "stopped by a signal" in said
    steps = Checkpoints(tmp_path / "checkpoints", read_only=True).steps()
    assert steps == [max(read_losses(tmp_path))]


def test_a_trace_has_a_first_and_a_last_step():
    assert parse_profile("10:15") == (10, 15)
    assert parse_profile(None) is None
    for wrong in ("5:2", "0:3", "5", "a:b"):
        with pytest.raises(ValueError, match=f"--profile is '{wrong}'"):
            parse_profile(wrong)
