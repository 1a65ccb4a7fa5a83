"""Files that version 0.1.0 wrote are read as they are.

fixtures/version_0_1_0.tar.xz holds a model, an image made by it, a workdir stopped at step 8 of 12,
an evaluation with its reference, an index of a tar, embeddings and a study, all of them tiny.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagen_jax
from imagen_jax.data import read_tar
from imagen_jax.images.image_file import read_settings

TINY = "tests/training/tiny_config.py"
DATA = ["--config.data.path=set.npz", "--config.data.split=all"]


@pytest.fixture(scope="module")
def files(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("earlier")
    with tarfile.open(repository / "tests/fixtures/version_0_1_0.tar.xz") as archive:
        archive.extractall(place, filter="data")
    return place / "before"


@pytest.fixture
def run(repository: Path, files: Path):
    def call(script: str, *arguments: str) -> str:
        command = [sys.executable, str(repository / "scripts" / f"{script}.py"), *arguments]
        done = subprocess.run(
            command,
            cwd=files,
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_image_is_made_again_by_its_model(files: Path):
    pipeline = imagen_jax.load_model(files / "model")
    settings = read_settings(files / "red_heart.png")
    assert settings["fingerprint"] == pipeline.fingerprint
    image = pipeline.generate_again(settings, progress=False)[0]
    with Image.open(files / "red_heart.png") as made:
        difference = np.asarray(image, int) - np.asarray(made, int)
    assert np.abs(difference).max() <= 1  # of 255: other processors round otherwise
    assert json.loads(json.dumps(image.info["imagen_jax"])) == settings


def test_a_run_goes_on_as_one_that_was_never_stopped(run, repository: Path, files: Path):
    def losses(workdir: str) -> dict[int, float]:
        lines = (files / workdir / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}

    config = [f"--config={repository / TINY}", *DATA]
    said = run("train", *config, "--workdir=workdir")
    assert re.search(r"step 12/12", said)
    assert not re.search(r"step 8/12", said)
    run("train", *config, "--workdir=whole")
    assert losses("workdir") == pytest.approx(losses("whole"), rel=1e-5)
    assert imagen_jax.load_model(files / "workdir").cascade.stages[0].name == "tiny"


def test_an_evaluation_goes_on(run, files: Path):
    before = json.loads((files / "evaluation/report.json").read_text())
    kept = stamps(files / "evaluation/features") | stamps(files / "evaluation/images")
    options = "--reference reference.safetensors --features clip --model model --metrics cmmd"
    options += " --prompts prompts.txt --steps 1 --size 4 --batch_size 4 --out evaluation"
    run("evaluate", *options.split())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = json.loads((files / "evaluation/report.json").read_text())
    assert after["newly_generated"] == 0
    value, expected = (each["cmmd"]["tiny CLIP"]["value"] for each in (after, before))
    assert value == pytest.approx(expected, rel=1e-6)
    assert after.keys() == before.keys()


def test_an_index_and_embeddings_are_not_made_again(run, repository: Path, files: Path):
    kept = stamps(files / "index") | stamps(files / "embedded")
    here = os.getcwd()
    os.chdir(files)  # an index is of a path as it was given
    try:
        filters = {"scores": {"rank": [0.1, 9]}}
        assert len(read_tar("shards", index_dir="index", filters=filters)) == 4
    finally:
        os.chdir(here)
    encoder = ["--config.text.trainable=False", "--config.text.init_from=encoder"]
    options = ["--out=embedded", "--batch_size=8", "--shard_size=40"]
    run("embed_text", f"--config={repository / TINY}", *DATA, *encoder, *options)
    after = stamps(files / "index") | stamps(files / "embedded")
    assert {path: after[path] for path in kept if path.suffix != ".json"} == {
        path: when for path, when in kept.items() if path.suffix != ".json"
    }


def test_a_study_is_read(run, files: Path):
    key = json.loads((files / "study/key.json").read_text())["key"]
    rows = []
    for trial, secret in key.items():
        right = secret["control"] or {"alignment": "left"}
        rows.append({"rater": "r", "trial": trial, "answers": {"quality": "left", **right}})
    (files / "study/answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "1 raters, 6 answers; left out: none" in run("human_eval", "analyse", "study")
