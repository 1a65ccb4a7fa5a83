"""The share of a word's map that lies on the thing: of maps whose share is known."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from tiny_cascade import CASCADE, ENCODER

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands.benchmark_icons import main
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import icon_benchmark
from imagen_jax.evaluation.attention_share import choose, excess, thing_mask, with_interval
from imagen_jax.evaluation.icon_set import read_icons
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.images.image_file import SETTINGS_KEY, GeneratedImage
from imagen_jax.pipeline.explanation import Explanation
from imagen_jax.pipeline.pipeline import Pipeline


def test_the_share_of_known_maps(rng):
    image = np.full((32, 32, 3), 255, np.uint8)
    image[8:24, 4:20] = (200, 30, 255)
    mask = thing_mask(image)
    assert mask.sum() == 256
    assert excess(np.ones((8, 8)), mask) == pytest.approx(0)
    there = mask.astype(np.float32)
    assert excess(there, mask) == pytest.approx(0.75)
    assert excess(1 - there, mask) == pytest.approx(-0.25)
    noise = np.mean([excess(rng.random((32, 32)), mask) for _ in range(200)])
    assert abs(noise) < 0.005


def test_the_interval_is_students(rng):
    values = rng.normal(0.1, 0.3, 50)
    found = with_interval(values.tolist())
    test = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((test.low, test.high))
    assert found["mean"] == pytest.approx(values.mean())
    cover = 0
    for _ in range(300):
        each = with_interval(rng.normal(0.1, 0.3, 20).tolist())
        cover += each["low"] < 0.1 < each["high"]
    assert 0.9 < cover / 300 < 0.99


class Known(Pipeline):
    """Its images are squares; its "up" layer sees the thing there, and "down" all but it."""

    def explain(self, prompts, **options):
        assert (options["size"], options["layers"]) == (4, "all")
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[4:12, 4:12] = 0
        mask = (pixels[..., 0] == 0).astype(np.float32)
        found = []
        for prompt in prompts:
            image = GeneratedImage.of(Image.fromarray(pixels))
            image.info[SETTINGS_KEY] = {"prompt": prompt, "index": len(found)}
            thing, style = prompt.split(", ")[0], prompt.split(", ")[1].split()[0]
            maps = {"up0": np.stack([mask, 1 - mask]), "down0": np.stack([1 - mask, mask])}
            steps = np.stack([maps["up0"] + 1e-9, maps["down0"] + 1e-9])
            given = (thing, style), steps, np.array([1.0, 0.5]), maps, "base"
            found.append(Explanation(image, *given))
        return found


def test_the_benchmark_measures_it(icons, tmp_path, monkeypatch, capsys):
    with np.load(icons / "icons64.npz") as arrays:  # "thing 3" is two words
        letters = [f"thing{chr(97 + int(name.split()[1]))}" for name in arrays["name_en"]]
        np.savez(tmp_path / "icons64.npz", **{**arrays, "name_en": letters})
    cascade = Cascade(CASCADE.stages[:1], CASCADE.sampling[:1], ENCODER)
    known = Known(cascade, {}, name="known")
    model = EvaluatedModel(known, (Sampling(),), {"name": "known"})
    monkeypatch.setattr(icon_benchmark, "read_model", lambda request: model)
    main(["--data", str(tmp_path), "--out", str(tmp_path), "--parts", "attention", "--num", "5"])
    found = json.loads((tmp_path / "benchmark.json").read_text())["attention"]
    asked = choose(read_icons(tmp_path), 5)
    assert found["n"] == len(asked) > 1
    assert all(word in prompt and style in prompt for prompt, word, style in asked)
    means = {name: value["mean"] for name, value in found["excess"].items()}
    for name in ("layers up", "layer up0", "step 1"):
        assert means[name] == pytest.approx(0.75)
    for name in ("layers down", "layer down0", "step 2"):
        assert means[name] == pytest.approx(-0.25)
    assert means["layers up, the style's word"] == pytest.approx(-0.25)
    assert means["all layers"] == pytest.approx(0, abs=1e-6)
    assert "| layers up | +75.0 points (+75.0 to +75.0) |" in capsys.readouterr().out
    assert (tmp_path / "attention.png").is_file()
