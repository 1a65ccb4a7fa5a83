"""Conversion as the command does it, and training with a text encoder that it wrote."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_cascade import tiny_pipeline

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.commands import generate, train
from imagen_jax.commands.convert import main
from imagen_jax.convert.t5 import load_huggingface, save_huggingface
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.models import UNetConfig, UNetLevel, t5
from imagen_jax.pipeline.encoder_files import read_encoder
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizers import SentencePieceTokenizer
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
SPIECE = ROOT / "imagen_jax" / "pretrained" / "icons" / "spiece.model"
SIZES = {"vocab_size": 6000, "d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 16}
ENCODER = TextEncoder(
    t5.T5Config(**SIZES, num_layers=1), SentencePieceTokenizer(str(SPIECE)), max_length=8
)
NETWORK = UNetConfig(
    (UNetLevel(8, 1, "cross"),), out_channels=6, head_channels=4, norm_groups=4,
    text_projection=32, text_norm="group", pooling_heads=2, mask_text=False,
)  # fmt: skip
STAGE = Stage("mine", 8, NETWORK, text_width=8, schedule=DiscreteBeta())
SETTINGS = Sampling(steps=20, spacing="leading", guidance=5.0)


def script(name: str, *arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def convert(*arguments) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main([str(argument) for argument in arguments])
    return said.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "model"
    params = {
        "mine": init_params(STAGE, jax.random.key(0)),
        TEXT_ENCODER: t5.init(ENCODER.config, jax.random.key(1)),
    }
    pipeline = Pipeline(Cascade((STAGE,), (SETTINGS,), ENCODER), params, name="mine")
    pipeline.save_pretrained(place, dtype="float32")
    return place


def test_there_and_back(model, tmp_path):
    said = convert("--model", model, "--to", "diffusers", "--out", tmp_path / "theirs")
    assert "num_inference_steps=20, guidance_scale=5.0" in said
    assert "note: the null text is zeros here" in said
    index = json.loads((tmp_path / "theirs" / "model_index.json").read_text())
    assert index["_class_name"] == "IFPipeline"
    back = ("--to", "imagen_jax", "--out", tmp_path / "back", "--dtype", "float32")
    convert("--model", tmp_path / "theirs", *back)
    first, second = load_model(model), load_model(tmp_path / "back")
    (stage,) = second.cascade.stages
    assert stage.network == STAGE.network
    assert stage.schedule == STAGE.schedule
    equal = np.testing.assert_array_equal
    jax.tree.map(equal, second.params[stage.name], first.params["mine"])
    jax.tree.map(equal, second.params[TEXT_ENCODER], first.params[TEXT_ENCODER])


def test_one_part_alone(model, tmp_path):
    convert(
        "--model", model, "--to", "diffusers", "--part", "unet", "--out", tmp_path / "unet",
        "--dtype", "float16", "--variant", "fp16",
    )  # fmt: skip
    files = {path.name for path in (tmp_path / "unet").iterdir()}
    assert files == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    convert(
        "--model", model, "--to", "diffusers", "--part", "text_encoder", "--out", tmp_path / "t5"
    )
    config, words = load_huggingface(tmp_path / "t5")
    assert config == ENCODER.config
    expected = load_model(model).params[TEXT_ENCODER]
    jax.tree.map(np.testing.assert_array_equal, words, expected)
    convert("--model", tmp_path / "t5", "--to", "imagen_jax", "--out", tmp_path / "ours")
    convert(
        "--model",
        model,
        "--to",
        "imagen_jax",
        "--part",
        "text_encoder",
        "--out",
        tmp_path / "alone",
    )
    written = {path.name for path in (tmp_path / "alone").iterdir()}
    assert written == {"text_encoder.json", "text_encoder.safetensors", "spiece.model"}
    for place in ("ours", "alone"):
        _, halved = read_encoder(tmp_path / place, dtype=None)
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, a.dtype)), halved, expected
        )


def test_a_mistake_is_one_line(model, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    out = ("--out", tmp_path / "out")
    for arguments, said in (
        (("--model", tmp_path / "none", "--to", "diffusers"), "none"),
        (
            ("--model", tmp_path / "tiny", "--to", "diffusers"),
            "has the stages base, sr: `stage` must",
        ),
        (("--model", tmp_path / "tiny", "--stage", "sr", "--to", "diffusers"), "'efficient_unet'"),
        (
            ("--model", "inception.pth", "--quantize", "int8", "--to", "imagen_jax"),
            "--quantize is not",
        ),
        (("--model", model, "--part", "unet", "--to", "imagen_jax"), "--part unet is for"),
        (("--model", model, "--stage", "mine", "--to", "imagen_jax"), "--stage is for"),
    ):
        with pytest.raises(SystemExit) as stopped:
            convert(*arguments, *out)
        assert stopped.value.code.startswith("error: ")
        assert len(stopped.value.code.splitlines()) == 1
        assert said in stopped.value.code
        assert not (tmp_path / "out").exists()


def test_a_mistake_ends_the_script_with_status_1(tmp_path):
    done = script("convert.py", "--model", "none", "--to", "diffusers", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(path, image=images, captions=np.asarray([f"no {i}" for i in range(8)]))
    return path


def check_images(workdir: Path, prompt: str, elsewhere: Path, monkeypatch) -> None:
    """A workdir needs nothing beside it, wherever it is read from."""
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command sets
    out = elsewhere / "out"
    options = ("--num_images=1", "--steps=1", "--no_grid", "--quiet", f"--out={out}")
    assert not generate.main([prompt, f"--model={workdir}", *options])
    assert len(list(out.glob("*.png"))) == 1


def test_training_on_an_encoder_of_hugging_face(dataset, tmp_path, monkeypatch):
    """Named by a relative path, left out of the config, and gone when the run is over."""
    place = tmp_path / "here"
    place.mkdir()
    words = t5.init(ENCODER.config, jax.random.key(1))
    save_huggingface(place / "t5", ENCODER.config, words)
    (place / "t5" / "spiece.model").write_bytes(SPIECE.read_bytes())
    config = f"""
from ml_collections import ConfigDict
def get_config():
    spec = __import__("importlib.util").util.spec_from_file_location(
        "tiny", {str(ROOT / "tests/training/tiny_config.py")!r})
    module = __import__("importlib.util").util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.text = {{"max_length": 8, "trainable": False, "init_from": "t5"}}
    config.frozen_dtype = "bfloat16"
    return config
"""
    (place / "config.py").write_text(config)
    monkeypatch.chdir(place)
    command = ("--config=config.py", f"--config.data.path={dataset}")
    ended, _ = call(train, *command, "--workdir=run", "--config.num_steps=1")
    assert not ended
    (place / "t5").rename(place / "moved")
    pipeline = load_model(place / "run")
    assert pipeline.cascade.encoder.config == ENCODER.config
    jax.tree.map(
        lambda kept, leaf: np.testing.assert_array_equal(kept, leaf.astype("bfloat16")),
        pipeline.params[TEXT_ENCODER],
        words,
    )
    check_images(place / "run", "no 1", tmp_path, monkeypatch)
    monkeypatch.chdir(place)
    sizes = "--config.text.encoder={'d_model': 8, 'd_ff': 99}"
    error, _ = call(train, *command, "--workdir=other", "--config.text.init_from=moved", sizes)
    assert "d_ff 99 (there 16)" in error


@pytest.mark.slow
def test_going_on_from_the_shipped_model_in_a_fresh_clone(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended, _ = call(
        train, f"--config={ROOT / 'configs' / 'icons_base64.py'}", "--workdir=run",
        "--config.init_from=icons", f"--config.data.path={dataset}", "--config.batch_size=2",
        "--config.data.weights=False", "--config.data.on_device=False",
        "--config.stage.network.dtype=float32", "--config.text.trainable=False",
        "--config.text.init_from=None",
        "--config.num_steps=1", "--config.sample=None",
    )  # fmt: skip
    assert not ended
    assert (tmp_path / "run" / "text_encoder.safetensors").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    check_images(tmp_path / "run", "red heart", elsewhere, monkeypatch)
    kept, shipped = load_model(tmp_path / "run"), load_model("icons")
    jax.tree.map(
        np.testing.assert_array_equal, kept.params[TEXT_ENCODER], shipped.params[TEXT_ENCODER]
    )
