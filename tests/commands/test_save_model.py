"""scripts/save_model.py: runs to a model directory that load_model reads, with their curves."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import BASE, BASE_SETTINGS, ENCODER, SR, SR_SETTINGS, random_params, tiny_pipeline

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands.save_model import main
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.training.metrics import Curve, MetricLog, split


def write_run(folder, stage, settings, first_loss):
    """A model directory of one stage with the metrics of a run."""
    cascade = Cascade((stage,), (settings,), ENCODER)
    params = random_params(tiny_pipeline().cascade)
    Pipeline(cascade, params, name=folder.name).save_pretrained(folder)
    log = MetricLog(folder)
    for step in (1, 2):
        loss = np.float32(first_loss / step)
        tenths = {"loss_by_t": np.full(10, loss), "count_by_t": np.ones(10, np.float32)}
        log.step(step, split({"loss": loss, **tenths}))
        log.report(step, {})
    log.close()


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "one", BASE, BASE_SETTINGS, 2.0)
    write_run(tmp_path / "two", SR, SR_SETTINGS, 8.0)
    return f"{tmp_path / 'one'},{tmp_path / 'two'}"


def test_runs_become_a_model_with_settings_curves_and_an_image(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the image of the loss needs matplotlib")
    out = tmp_path / "models" / "mine"
    settings = (
        "--sampler ddim,dpmpp_2m --steps 3,1 --guidance 2 --threshold static --aug_level 0,.4"
    )
    main(["--model", runs, "--out", str(out), *settings.split()])
    pipeline = load_model(out)
    assert pipeline.name == "mine"
    assert pipeline.sizes == (4, 8)
    first, second = pipeline.cascade.sampling
    assert (first.sampler, first.steps, first.guidance, first.threshold) == ("ddim", 3, 2, "static")
    assert (second.sampler, second.steps, second.guidance) == ("dpmpp_2m", 1, SR_SETTINGS.guidance)
    assert (second.threshold, second.aug_level) == ("static", 0.4)
    bias = random_params(tiny_pipeline().cascade)["sr"]["conv_in"]["bias"]
    np.testing.assert_allclose(pipeline.params["sr"]["conv_in"]["bias"], bias, rtol=1e-2)
    assert Curve.read(out / "base_curve.json").loss == [2.0, 1.0]
    assert Curve.read(out / "sr_curve.json").at(2) == (4.0, [4.0] * 10)
    with Image.open(out / "loss.png") as image:
        assert image.width > 2 * image.height
    assert str(out) in capsys.readouterr().out


def test_a_name_is_given_and_other_files_stay(runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("card")
    image = tmp_path / "docs" / "loss.png"
    arguments = ["--out", str(tmp_path / "out"), "--name", "icons", "--image", str(image)]
    main(["--model", runs, *arguments])
    assert json.loads((tmp_path / "out" / "model.json").read_text())["name"] == "icons"
    assert (tmp_path / "out" / "README.md").read_text() == "card"
    assert not (tmp_path / "out" / "loss.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "none"], "There is no folder none, nor a shipped model"),
        (["--threshold", "static,static,none"], "threshold has 3 entries; the model has 2 stages"),
        (["--threshold", "soft"], "Unknown threshold 'soft'"),
        (["--steps", "0"], "steps must be"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(runs, tmp_path, arguments, said):
    with pytest.raises(SystemExit) as caught:
        main(["--model", runs, "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.code.startswith("error: ")
    assert said in caught.value.code
    assert not (tmp_path / "out").exists()
