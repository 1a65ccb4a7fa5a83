"""scripts/evaluate.py on a tiny random model and a tiny image set, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import CASCADE, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands.evaluate import main
from imagen_jax.evaluation.image_set import make_prompts, read_image_set
from imagen_jax.pipeline.pipeline import Pipeline


@pytest.fixture(scope="module")
def evaluated(data, model, tmp_path_factory):
    """Both metrics on the training split, four images at a time."""
    out = tmp_path_factory.mktemp("out") / "results"
    command = f"--metrics retrieval,psnr --split train --steps 2 --guidance 1.5 --data {data}"
    arguments = [*command.split(), "--model", str(model), "--batch_size", "4", "--out", str(out)]
    main(arguments)
    return out, json.loads((out / "report.json").read_text())


def test_the_report_counts_every_name(evaluated):
    retrieval = evaluated[1]["retrieval"]
    assert retrieval["n"] == 15  # 8 images, one without a Chinese name
    assert retrieval["candidates"] == 11
    assert retrieval["by_language"]["en"]["n"] == 8
    assert retrieval["by_language"]["zh"]["n"] == 7
    assert retrieval["variants"]["n"] + retrieval["not_variants"]["n"] == 15
    assert 0 <= retrieval["top1"] <= retrieval["top5"] <= 1


def test_the_report_says_what_decides_the_numbers(evaluated, model):
    report = evaluated[1]
    assert (
        report["model"]["fingerprint"]
        == json.loads((model / "model.json").read_text())["fingerprint"]
    )
    assert report["settings"]["sampling"]["base"]["guidance"] == 1.5
    assert report["settings"]["sampling"]["sr"]["steps"] == 2
    assert {"jax", "flax", "numpy", "imagen_jax"} <= set(report["versions"])
    assert set(report["seconds"]) == {"generation", "measurement", "super_resolution"}


def test_super_resolution_is_compared_with_bicubic(evaluated):
    value = evaluated[1]["psnr"]["sr"]
    assert value["n"] == 8
    assert value["gain"] == pytest.approx(value["model"] - value["bicubic"])
    assert value["gain"] < 0  # a random network
    assert 0 < value["bicubic"] < 60


def test_sheets_and_table_are_written(evaluated):
    out = evaluated[0]
    for name in ("retrieval.png", "sr.png"):
        with Image.open(out / name) as sheet:
            assert min(sheet.size) > 100
    lines = (out / "retrieval.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 16
    assert "物" in "".join(lines)


def test_a_sample_depends_on_its_index_alone(evaluated, data, model, tmp_path):
    """Fewer images, of which the last batch has one alone: the rows they share are the same."""
    command = f"--split train --num 3 --steps 2 --guidance 1.5 --data {data} --model {model}"
    main([*command.split(), "--batch_size", "4", "--out", str(tmp_path)])
    fewer = (tmp_path / "retrieval.csv").read_text(encoding="utf-8").splitlines()
    more = (evaluated[0] / "retrieval.csv").read_text(encoding="utf-8").splitlines()
    assert len(fewer) in (6, 7)
    assert more[: len(fewer)] == fewer


def test_all_of_heldout_and_a_fixed_choice_of_train(data):
    assert len(read_image_set(data, "heldout")) == 4
    assert len(read_image_set(data, "train")) == 8
    two, four = (make_prompts(read_image_set(data, "train", num)) for num in (2, 4))
    assert four[: len(two)] == two


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    return str(error.value)


def test_what_it_refuses_is_said_clearly(data, model, tmp_path):
    common = ("--model", model, "--out", tmp_path / "out", "--data")
    assert "known are fid, kid" in refused(*common, data, "--metrics", "fidd")
    assert "scripts/prepare_emoji.py --out" in refused(*common, tmp_path / "no.npz")
    assert "num must be a whole number, at least 1" in refused(*common, data, "--num", 0)
    assert "Unknown sampler" in refused(*common, data, "--sampler", "plms")
    assert "at least 11 pixels" in refused(*common, data, "--metrics", "ssim")
    assert "No stage" in refused(*common, data, "--size", 7)
    incomplete = tmp_path / "incomplete.npz"
    np.savez(incomplete, image=np.zeros((2, 8, 8, 3), np.uint8), label=np.arange(2))
    assert "has no split, name_en" in refused(*common, incomplete)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("--out", tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_psnr_needs_a_super_resolution_stage(data, tmp_path):
    base = Cascade(CASCADE.stages[:1], CASCADE.sampling[:1], CASCADE.encoder)
    Pipeline(base, random_params(base), name="lonely").save_pretrained(tmp_path / "lonely")
    error = refused(
        "--model", tmp_path / "lonely", "--metrics", "psnr", "--data", data, "--out", "out"
    )
    assert "need a super-resolution stage" in error
