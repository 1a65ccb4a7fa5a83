"""A config that leaves the network to the model of init_from, and scripts/train.py with one."""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import BASE, CASCADE, ENCODER, SR, random_params, tiny_pipeline

from imagen_jax import load_model
from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands import generate, train
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models.lora import merge_lora
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.training import build, inherit, start
from imagen_jax.training.run_config import read_config
from imagen_jax.training.state import NETWORK, TEXT_ENCODER
from tests.commands.in_process import call

OPEN = {
    "init_from": "models/tiny",
    "batch_size": 4,
    "num_steps": 2,
    "data": {"source": "memory"},
    "stage": {"name": "sr", "loss": {"weight": "min_snr"}, "network": {"dtype": "bfloat16"}},
    "text": {"dropout": 0.0},
    "sample": {"prompts": ["a"], "steps": 2},
}


def test_what_is_left_out_is_the_models():
    config = read_config(inherit.filled(OPEN, CASCADE))
    wanted = replace(
        SR, loss=replace(SR.loss, weight="min_snr"), network=replace(SR.network, dtype="bfloat16")
    )
    assert config.stage == wanted
    assert config.text.encoder == ENCODER.config
    assert (config.text.max_length, config.text.dropout) == (ENCODER.max_length, 0.0)
    assert config.text.init_from == "models/tiny"
    assert config.sample.sampling == replace(CASCADE.sampling[1], steps=2)
    assert build.make_text_encoder(config) == ENCODER


def test_the_only_stage_needs_no_name():
    alone = Cascade((BASE,), (Sampling("ddpm", steps=4),), ENCODER)
    for stage in (None, {}, {"name": None}):
        config = read_config(inherit.filled(OPEN | {"stage": stage}, alone))
        assert config.stage == BASE
    renamed = read_config(inherit.filled(OPEN | {"stage": {"name": "mine"}}, alone))
    assert renamed.stage == replace(BASE, name="mine")


def test_one_of_several_stages_must_be_named():
    with pytest.raises(ValueError, match="no stage 'big' in the model, only base, sr"):
        inherit.filled(OPEN | {"stage": {"name": "big"}}, CASCADE)


def test_a_config_with_a_network_is_whole():
    assert inherit.is_open(OPEN)
    assert not inherit.is_open({"stage": {"network": {"levels": [{"channels": 8}]}}})
    assert not inherit.is_open({"stage": {"network": {"kind": "transformer", "width": 8}}})


def test_a_stage_that_does_not_fit_is_told_what_does():
    config = read_config(inherit.filled(OPEN, CASCADE))
    assert start.fitting_stage(config, CASCADE) == "sr"
    told = r"models/tiny \(base, sr\) .*fine_tune --init_from models/tiny --config.stage.name="
    wider = replace(SR, network=replace(SR.network, embedding_width=24))
    with pytest.raises(ValueError, match=f"models/tiny do not fit the config: .*{told}sr"):
        start.fitting_stage(replace(config, stage=wider), CASCADE)
    with pytest.raises(ValueError, match=f"no stage 'mine' in the model.*{told}base"):
        start.fitting_stage(replace(config, stage=replace(BASE, name="mine")), CASCADE)


CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({config!r})
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model, images of a subject and of its class, and a config that trains an adapter."""
    place = tmp_path_factory.mktemp("dreambooth")
    tiny_pipeline().save_pretrained(place / "model", dtype="float32")
    rng = np.random.default_rng(0)
    for name, count in (("mine", 3), ("dogs", 5)):
        (place / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i}.png")
    prior = {"source": "folder", "path": str(place / "dogs"), "split": "all", "prompt": "a dog"}
    config = {
        "init_from": str(place / "model"),
        "batch_size": 4,
        "num_steps": 3,
        "log_every": 1,
        "ema_decay": None,
        "lora": {"rank": 2},
        "stage": {"name": "base", "network": {}},
        "text": {"dropout": 0.0},
        "data": {
            "source": "folder",
            "path": str(place / "mine"),
            "split": "all",
            "prompt": "a sks dog",
            "num_threads": 1,
            "prior": prior,
        },
        "optimizer": {"kind": "adam", "learning_rate": 0.1, "warmup_steps": 0},
        "sample": {"prompts": ["a sks dog"]},
    }
    (place / "config.py").write_text(CONFIG.format(config=config))
    return place


def test_an_adapter_from_the_command_line(places):
    workdir = places / "run"
    ended, _ = call(train, f"--config={places / 'config.py'}", f"--workdir={workdir}")
    assert not ended
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss_prior" in line]
    assert len(steps) == 3
    for line in steps:
        total = line["loss_instance"] + line["loss_prior"]
        np.testing.assert_allclose(line["loss"], total, rtol=1e-5)
    assert (workdir / "samples" / "samples_0000003.png").is_file()

    _, params, _ = Checkpoints(workdir / "checkpoints", read_only=True).read_parameters()
    assert set(params) == {"lora"}
    base, tuned = load_model(places / "model"), load_model(workdir)
    merged = merge_lora(base.params["base"], params["lora"])
    jax.tree.map(np.testing.assert_array_equal, tuned.params["base"], merged)
    base.load_lora(workdir / "lora.safetensors")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        base.params["base"],
        tuned.params["base"],
    )
    np.testing.assert_array_equal(
        base.params["sr"]["conv_in"]["kernel"], random_params(CASCADE)["sr"]["conv_in"]["kernel"]
    )


def test_images_with_an_adapter_from_the_command_line(places, tmp_path, monkeypatch, capsys):
    if not (places / "run" / "lora.safetensors").is_file():
        pytest.skip("the run before did not write its adapter")
    adapter = places / "run" / "lora.safetensors"
    command = ["generate.py", "a sks dog", "--model", str(places / "model"), "--num_images=1"]
    command += ["--seed=1", "--quiet", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [*command, f"--lora={adapter}", "--lora_scale=0.5"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command sets
    assert not generate.main()
    made = np.asarray(Image.open(next(tmp_path.glob("*.png")))).astype(int)
    pipeline = load_model(places / "model")
    wishes = {"num_images": 1, "seed": 1, "progress": False}
    without = pipeline.generate_images("a sks dog", **wishes)
    pipeline.load_lora(adapter, 0.5)
    adapted = pipeline.generate_images("a sks dog", **wishes)
    assert np.abs(made - np.asarray(adapted[0])).max() <= 1
    assert np.abs(made - np.asarray(without[0])).max() > 1
    monkeypatch.setattr(sys, "argv", [*command, "--overwrite", f"--lora={tmp_path / 'x'}"])
    with pytest.raises(SystemExit, match=f"There is no .*{tmp_path / 'x'}"):
        generate.main()


def test_the_config_for_fine_tuning_starts_from_a_stage_of_any_model(places):
    config = Path(__file__).parents[2] / "configs" / "fine_tune.py"
    given = {"init_from": places / "model", "stage.name": "base", "data.path": places / "mine"}
    given |= {"data.prompt": "a dog", "data.num_threads": 1}
    plan = start.read_plan(config, {name: str(value) for name, value in given.items()})
    run, model = start.open_run(plan, places / "tuned"), load_model(places / "model")
    assert plan.config.stage == BASE
    jax.tree.map(np.testing.assert_array_equal, run.weights[NETWORK], model.params["base"])
    jax.tree.map(np.testing.assert_array_equal, run.frozen.text_encoder, model.params[TEXT_ENCODER])


def test_a_mistake_is_one_line(places):
    arguments = [f"--config={places / 'config.py'}", f"--workdir={places / 'other'}"]
    error, _ = call(train, *arguments, "--config.init_from=None")
    assert error.endswith("give --init_from")
    error, _ = call(train, *arguments, "--config.lora.targets=['to_q']")
    assert "'to_q' finds no parameter" in error
    assert not (places / "other").exists()
