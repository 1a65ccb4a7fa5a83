"""What train.py prints first: the documented screen, what is odd in it, and too little memory."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_cascade import BASE, BASE_SETTINGS, CASCADE, ENCODER, random_params

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.commands import train
from imagen_jax.devices.memory import size_text
from imagen_jax.pipeline import encoder_files, shipped
from imagen_jax.pipeline.model_directory import write_model
from imagen_jax.training import banner, build, loop, samples, start
from imagen_jax.training.run_config import read_config
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "training" / "tiny_config.py"
# The documented run with a network of some thousand parameters.
SMALL = {
    "batch_size": "2",
    "num_steps": "12",
    "log_every": "2",
    "stage.network.levels": "[{'channels': 8, 'num_res_blocks': 1, 'stride': 1}]",
    "stage.network.embedding_width": "16",
    "stage.network.num_heads": "2",
    "stage.text_width": "8",
    "text.encoder.d_model": "8",
    "text.encoder.num_heads": "2",
    "text.encoder.head_dim": "4",
    "text.encoder.d_ff": "8",
}
FIGURE = re.compile(r"\d[\d.,:]*(e[+-]\d+)?")


def documented(heading: str) -> tuple[list[str], list[str]]:
    """(command, lines of its first screen) of a section of docs/first_day.md."""
    text = (ROOT / "docs" / "first_day.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    command = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ")
    return shlex.split(command), re.search(r"```text\n(.*?)```", section, re.DOTALL)[1].splitlines()


def pairs(arguments: list[str]) -> list[str]:
    """Each option with its value, as `--a b` or `--a=b`."""
    return re.findall(r"--\S+=\S+|--\S+ \S+", " ".join(arguments))


def write_images(path: Path, count: int, side: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    splits = ["heldout" if i % 5 == 4 else "train" for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = np.asarray([f"no {i}" for i in range(count)])
    np.savez(path, image=images, captions=captions, split=np.asarray(splits), weight=np.ones(count))
    return path


def write_shipped(folder: Path, name: str, config: str, overrides: dict[str, str]) -> str:
    """A model of a run's network, with random weights; where the run's images are."""
    read = read_config(start.read_raw(config, overrides | {"init_from": name}))
    cascade = build.make_cascade(read, build.make_text_encoder(read))
    write_model(folder / name, cascade, random_params(cascade), name=name)
    return read.data.path


def test_the_first_screen_is_the_documented_one(tmp_path, monkeypatch):
    (program, verb, *arguments), screen = documented("Training")
    assert (program, verb) == ("imagen-jax", "train")
    monkeypatch.chdir(tmp_path)
    tokenizer = tmp_path / "pretrained" / "icons" / "spiece.model"  # which the config names
    tokenizer.parent.mkdir(parents=True)
    shutil.copyfile(shipped.PRETRAINED / "icons" / "spiece.model", tokenizer)
    monkeypatch.setattr(shipped, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(samples, "make_sample_fn", lambda *rest: None)  # it takes seconds
    options = dict(re.split("[= ]", option, maxsplit=1) for option in pairs(arguments))
    config, name = options["--config"], options["--config.text.init_from"]
    images = write_shipped(tmp_path / "pretrained", name, config, SMALL)
    write_images(tmp_path / images, 20, 32)
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    ended, said = call(train, *arguments, *small)
    assert not ended
    # A network of some thousand parameters may wait for its images.
    said = re.sub(r"waiting for input \S+ \| ", "", said)
    printed = said.splitlines()[: len(screen)]
    assert [FIGURE.sub("N", line) for line in printed] == [FIGURE.sub("N", x) for x in screen]
    figures = dict(line.split(maxsplit=1) for line in printed[:8])
    assert figures["images"].startswith(f"16 of {images}; split train, 4 are held out;")
    assert figures["steps"] == "12 of 2 images: each image is seen 1.50 times on average"
    assert "| epoch 1.50 |" in said


def start_lines(tmp_path: Path, **overrides) -> list[str]:
    """The lines before a run of 40 images, of which 32 are trained on."""
    path = write_images(tmp_path / "set.npz", 40, 8)
    given = {name.replace("__", "."): repr(value) for name, value in overrides.items()}
    plan = start.read_plan(str(CONFIG), {"data.path": repr(str(path))} | given)
    source = banner.look_at_images(plan.config)
    return banner.start_banner(plan, source, tmp_path / "run").splitlines()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"num_steps": 8}, None),
        ({"num_steps": 3}, "3 steps see only 75% of the images"),
        ({"batch_size": 64}, "batch_size 64 is more than the 32 images"),
        ({"num_steps": 5000}, "each image is seen 1,250 times"),
    ],
)
def test_what_is_odd_about_the_number_of_images_is_told(tmp_path, overrides, told):
    warnings = [line for line in start_lines(tmp_path, **overrides) if "warning" in line]
    assert len(warnings) == (told is not None)
    assert all(told in line for line in warnings)


def test_a_run_that_resumes_does_not_say_that_it_starts(tmp_path):
    assert any(line.startswith("start ") for line in start_lines(tmp_path))
    (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
    first, *rest = start_lines(tmp_path)
    assert first.endswith("; resumes at step 20")
    assert not any(line.startswith("start ") for line in rest)


@pytest.mark.parametrize("free", [10**3, 10**12])
def test_the_size_of_the_snapshots_is_told_and_whether_the_disk_has_room(
    tmp_path, monkeypatch, free
):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(banner.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    lines = start_lines(tmp_path, ema={"widths": [0.05, 0.1], "every": 5}, num_steps=12)
    (parameters,) = [line for line in lines if line.startswith("parameters")]
    size = 2 * 4 * int(parameters.split()[1].replace(",", ""))
    (said,) = [line for line in lines if line.startswith("averages")]
    assert f"3 snapshots of {size_text(size)} in ema/, {size_text(3 * size)} in all" in said
    short = [line for line in lines if line.startswith("warning: the snapshots in ema/ need ")]
    assert len(short) == (free < 3 * size)


@pytest.mark.parametrize(("labels", "told"), [((2, 2, 2), True), ((2, 2, 0), False)])
def test_images_of_one_class_are_told(tmp_path, labels, told):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "set.npz", image=images, label=np.asarray(labels))
    given = {
        "stage.conditioning": "label",
        "stage.text_width": "None",
        "stage.network.num_classes": "4",
        "text": "None",
        "data": repr({"source": "npz", "path": str(tmp_path / "set.npz"), "split": "all"}),
    }
    plan = start.read_plan(str(CONFIG), given)
    said = banner.start_banner(plan, banner.look_at_images(plan.config))
    assert ("warning: all images have the label 2: " in said) == told


def test_a_prior_takes_its_rows_out_of_the_passes(tmp_path):
    prior = {"source": "npz", "path": str(tmp_path / "set.npz"), "share": 0.5}
    said = "\n".join(start_lines(tmp_path, data__prior=prior, num_steps=8))
    assert "8 of 8 images: each image is seen 1.00 times" in said
    assert f"4 of each 8 images are of {tmp_path / 'set.npz'}" in said


def test_images_that_cannot_be_read_do_not_stop_a_dry_run(tmp_path):
    lines = start_lines(tmp_path, data__path=str(tmp_path / "none.npz"))
    (line,) = [line for line in lines if line.startswith("images ")]
    assert line.startswith(f"images      cannot be read: there is no file {tmp_path}")


def test_too_little_memory_is_one_line_with_the_present_values(tmp_path, monkeypatch):
    path = write_images(tmp_path / "set.npz", 40, 8)
    asked = [f"--config={CONFIG}", f"--config.data.path={path}", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(loop, "train", lambda *run, **options: np.zeros(2**48))
    error, _ = call(train, *asked)
    assert error.startswith("error: out of memory on the host: Unable to allocate ")
    assert "\n" not in error
    assert "Now: batch_size 8, optimizer.accumulation 1, stage.network.remat False, " in error
    assert "--config.optimizer.accumulation=2, --config.stage.network.remat=True, " in error


def test_weights_to_start_from_are_looked_for_where_they_can_be(tmp_path):
    images = write_images(tmp_path / "set.npz", 40, 8)
    cascade = Cascade((BASE,), (BASE_SETTINGS,), None)
    write_model(tmp_path / "no_encoder", cascade, random_params(cascade), name="no_encoder")
    encoder_files.write_encoder(
        tmp_path / "t5", ENCODER.config, random_params(CASCADE)[TEXT_ENCODER]
    )
    for source, told in (
        ("no_encoder", "no_encoder holds no text encoder: say with text.init_from where one is"),
        ("t5", "t5 is a text encoder by itself: give it as text.init_from"),
    ):
        given = {"init_from": repr(str(tmp_path / source)), "text.trainable": "False"}
        given |= {"text.encoder": "None", "text.tokenizer": "bytes"} if source == "t5" else {}
        plan = start.read_plan(str(CONFIG), given | {"data.path": repr(str(images))})
        with pytest.raises(ValueError, match=told):
            start.open_run(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()
