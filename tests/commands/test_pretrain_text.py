"""scripts/pretrain_text.py: what it learns, and that train.py goes on from it."""

import re
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.commands import pretrain_text, train
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.storage.trees import flatten
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "training" / "tiny_config.py"


def parameters(workdir: Path) -> dict:
    return Checkpoints(workdir / "checkpoints", read_only=True).read_parameters("params")[1]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("pretrain")
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
    images = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in colours.values()])
    np.savez(folder / "set.npz", image=images, captions=np.asarray(list(colours)))
    data = f"--config.data.path={folder / 'set.npz'}"
    workdir = folder / "text"
    ended, said = call(
        pretrain_text,
        f"--config={CONFIG}",
        data,
        f"--workdir={workdir}",
        "--config.stage.network.draft=True",
        "--steps=600",
        "--batch_size=4",
        "--learning_rate=1e-2",
    )
    assert not ended
    return workdir, data, said


def test_it_learns_which_word_has_which_colour(pretrained):
    errors = [float(value) for value in re.findall(r"loss ([\d.]+)", pretrained[2])]
    assert len(errors) == 3  # of the first step, and of every 500
    assert errors[-1] < 0.05, errors  # a mean image has about 0.8


def test_training_starts_from_the_draft_and_keeps_the_encoder(pretrained, tmp_path):
    workdir, data, _ = pretrained
    ended, _ = call(
        train,
        f"--config={CONFIG}",
        data,
        f"--workdir={tmp_path / 'run'}",
        "--config.stage.network.draft=True",
        f"--config.init_from={workdir}",
        "--config.text.trainable=False",
        f"--config.text.init_from={workdir}",
        "--config.batch_size=4",
        "--config.num_steps=1",
        "--config.optimizer.learning_rate=1e-9",
    )
    assert not ended
    before, after = parameters(workdir), parameters(tmp_path / "run")
    assert set(after) == {"network"}
    kernel = before["network"]["draft"]["out"]["kernel"]
    np.testing.assert_allclose(after["network"]["draft"]["out"]["kernel"], kernel, atol=1e-6)


def test_a_network_without_draft_gets_the_encoder_alone(pretrained, tmp_path):
    _, data, _ = pretrained
    ended, _ = call(
        pretrain_text,
        f"--config={CONFIG}",
        data,
        f"--workdir={tmp_path / 'text'}",
        "--config.stage.network.draft=False",
        "--steps=2",
    )
    assert not ended
    ended, _ = call(
        train,
        f"--config={CONFIG}",
        data,
        f"--workdir={tmp_path / 'run'}",
        f"--config.text.init_from={tmp_path / 'text'}",
        "--config.text.trainable=True",
        "--config.batch_size=4",
        "--config.num_steps=1",
        "--config.optimizer.learning_rate=1e-9",
    )
    assert not ended
    text, trained = parameters(tmp_path / "text"), parameters(tmp_path / "run")
    assert "draft" not in trained["network"]
    for name, found in flatten(trained["text_encoder"]).items():
        np.testing.assert_allclose(found, flatten(text["text_encoder"])[name], atol=1e-6)


def check_one_line(said: str, *arguments: str) -> None:
    error, printed = call(pretrain_text, f"--config={CONFIG}", *arguments)
    assert isinstance(error, str)
    assert error.startswith("error: ")
    assert "\n" not in error
    assert said in error
    assert "step 1" not in printed


def test_a_workdir_with_a_checkpoint_is_refused_before_training(pretrained):
    workdir, data, _ = pretrained
    draft = "--config.stage.network.draft=True"
    for more in ([], [f"--init_from={workdir}"]):
        said = "has a checkpoint already (step 600)"
        check_one_line(said, data, draft, f"--workdir={workdir}", *more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [f"--config={ROOT / 'configs' / 'icons_jit64.py'}"],
            "only an efficient_unet has the draft",
        ),
        ([], "there is no file none.npz"),
        (["--config.batchsize=3"], "did you mean 'batch_size'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, said):
    workdir = f"--workdir={tmp_path / 'run'}"
    check_one_line(said, workdir, "--config.data.path=none.npz", *arguments)
    assert not (tmp_path / "run").exists()
