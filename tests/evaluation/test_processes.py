"""The work shared by two processes that run at the same time: the figures of one."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import evaluate
from imagen_jax.evaluation.feature_files import write_network
from imagen_jax.evaluation.features import FeatureNetwork
from imagen_jax.models import clip

ROOT = Path(__file__).parents[2]
CLIP = clip.ClipConfig(
    clip.TowerConfig(8, 2, 1, 12), clip.TowerConfig(8, 2, 1, 12), 6, 8, 4, 20, 7, 19
)
COUNT = 130  # two parts of the work


def test_two_processes_give_what_one_does(model, tmp_path, key, rng):
    network = FeatureNetwork("random CLIP", CLIP, jax.jit(lambda key: clip.init(CLIP, key))(key))
    write_network(tmp_path / "clip", network)
    (tmp_path / "true").mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "true" / f"{i}.png")
    (tmp_path / "mine.txt").write_text("\n".join(f"thing {i}" for i in range(COUNT)))
    common = f"--reference {tmp_path / 'reference'} --features {tmp_path / 'clip'}"
    evaluate.main(f"--make_reference {tmp_path / 'true'} {common}".split())
    common += f" --model {model} --prompts {tmp_path / 'mine.txt'} --metrics cmmd --steps 1"
    common += " --batch_size 16 --size 4"
    whole = report(common, tmp_path / "whole")

    out = tmp_path / "out"
    share = [*common.split(), "--out", str(out), "--share"]
    other = subprocess.Popen(
        [sys.executable, "scripts/evaluate.py", *share, "1/2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    evaluate.main([*share, "2/2"])
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors.decode()
    parts = sorted((out / "features").rglob("*.safetensors"))
    assert [file.stem for file in parts] == ["000000", "000128"]
    written = {file: file.stat().st_mtime_ns for file in parts}
    shared = report(common, out)
    assert shared["newly_generated"] == 0
    assert {file: file.stat().st_mtime_ns for file in parts} == written  # not made again
    a, b = (each["cmmd"]["random CLIP"] for each in (whole, shared))
    assert a["pictures"] == b["pictures"] == COUNT
    assert b["value"] == pytest.approx(a["value"], rel=1e-6)


def report(options: str, out: Path) -> dict:
    evaluate.main([*options.split(), "--out", str(out)])
    return json.loads((out / "report.json").read_text())
