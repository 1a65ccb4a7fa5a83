"""The paper's cascade in miniature, by its own configs: three stages trained from a webdataset with
a T5 of Hugging Face in the step, then images through all three.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import load_model
from imagen_jax.convert.t5 import save_huggingface
from imagen_jax.models import t5
from imagen_jax.pipeline.shipped import PRETRAINED
from tests.data.shard_files import add

ROOT = Path(__file__).resolve().parents[1]
STEPS = 100
COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 60, 220)}
# What is smaller than the paper's; all else is the config's.
SHRUNK = """
from configs import {config}

def get_config():
    config = {config}.get_config()
    config.stage.update({stage!r})
    config.stage.text_width = 32
    for level in config.stage.network.levels:
        level.update(channels=32, num_res_blocks=1)
    config.stage.network.update({network!r})
    config.text.update(init_from={t5!r}, tokenizer={t5!r} + "/spiece.model", max_length=16)
    config.text.encoder.update(vocab_size=8192, d_model=32, num_heads=2, head_dim=16, num_layers=2,
                               d_ff=64, dtype="float32")
    config.data = {{"source": "tar", "path": {data!r}, "split": "all"}}
    config.optimizer.update(learning_rate=2e-3, warmup_steps=10, decay_steps={steps})
    config.mesh.fsdp = 1
    config.sample = {{"prompts": ["red"], "steps": 4, "guidance": 2.0}}
    config.checkpoint.every = {steps}
    config.update(batch_size=8, num_steps={steps}, log_every=25, ema_decay=0.95)
    return config
"""
STAGES = {
    "imagen_base64": ({"resolution": 16}, {"head_channels": 8, "pooling_heads": 4}),
    "imagen_sr256": ({"resolution": 64, "low_resolution": 16}, {"num_heads": 4}),
    "imagen_sr1024": ({"resolution": 256, "low_resolution": 64, "crop": 64}, {"num_heads": 4}),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A T5 v1.1 of Hugging Face's layout, random, with the shipped model's SentencePiece model."""
    directory = tmp_path_factory.mktemp("t5")
    config = t5.T5Config(8192, 32, 2, 16, 2, 64)
    save_huggingface(directory, config, t5.init(config, jax.random.key(0)))
    shutil.copy(PRETRAINED / "icons" / "spiece.model", directory)
    return directory


@pytest.fixture(scope="module")
def webdataset(tmp_path_factory) -> Path:
    """Two tars as img2dataset writes them: plain colours, not square, larger than any stage."""
    directory = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        with tarfile.open(directory / f"{shard:05d}.tar", "w") as tar:
            for n in range(12):
                name, colour = list(COLOURS.items())[n % 3]
                data = io.BytesIO()
                Image.new("RGB", (300 + n, 280), colour).save(data, "JPEG")
                add(tar, f"{shard}{n:04d}.jpg", data.getvalue())
                add(tar, f"{shard}{n:04d}.txt", name.encode())
    return directory


def train(config: str, encoder: Path, webdataset: Path, place: Path) -> Path:
    """The workdir of a stage trained by the script."""
    stage, network = STAGES[config]
    text = SHRUNK.format(
        config=config,
        stage=stage,
        network=network | {"dtype": "float32"},
        t5=str(encoder),
        data=str(webdataset / "{00000..00001}.tar"),
        steps=STEPS,
    )
    (place / f"{config}.py").write_text(text)
    workdir = place / config
    command = [sys.executable, "scripts/train.py", f"--config={place / config}.py"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def losses(workdir: Path) -> np.ndarray:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([row["loss"] for row in map(json.loads, lines) if "loss" in row])


@pytest.mark.slow
def test_three_stages_train_from_a_webdataset_and_draw_together(encoder, webdataset, tmp_path):
    runs = [train(config, encoder, webdataset, tmp_path) for config in STAGES]
    for run in runs:
        assert losses(run)[-1] < 0.5 * losses(run)[0]
    model = load_model(runs)
    assert model.sizes == (16, 64, 256)
    assert model.cascade.stages[2].crop == 64
    how = {"num_images": 1, "steps": [16, 8, 4], "seed": 0, "progress": False}
    made = model.generate_images(list(COLOURS), **how)
    small = model.generate_images(list(COLOURS), size=16, **how)
    for image, base in zip(made, small, strict=True):
        assert image.size == (256, 256)
        # Enlarged twice, its colour is still that of the base model.
        means = [np.asarray(each, float).mean((0, 1)) for each in (image, base)]
        assert np.abs(means[0] - means[1]).max() < 60
    assert len({image.tobytes() for image in made}) == len(COLOURS)
