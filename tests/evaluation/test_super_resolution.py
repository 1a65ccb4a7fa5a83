"""scripts/evaluate.py on super-resolution stages: PSNR beside bicubic, of any captioned set."""

import io
import json
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import CASCADE, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands.evaluate import main
from imagen_jax.diffusion.augmentation import downsample
from imagen_jax.evaluation.captioned_set import read_captioned
from imagen_jax.evaluation.image_quality import psnr
from imagen_jax.evaluation.super_resolution import bicubic
from imagen_jax.images.pixels import to_float
from imagen_jax.pipeline.pipeline import Pipeline


@pytest.fixture(scope="module")
def tar(captioned, tmp_path_factory):
    """The same images and captions as webdataset writes them."""
    path = tmp_path_factory.mktemp("tar") / "0.tar"
    with np.load(captioned) as arrays, tarfile.open(path, "w") as archive:
        for i, (image, text) in enumerate(zip(arrays["image"], arrays["captions"], strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            for name, content in ((f"{i}.png", file.getvalue()), (f"{i}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_a_stage_is_compared_with_bicubic(captioned, tar, model, tmp_path):
    """Of an npz file and of tars the same."""
    common = ["--metrics", "psnr", "--steps", "2", "--model", str(model), "--batch_size", "5"]
    values = {}
    for name, data in (("npz", captioned), ("tar", tar)):
        out = tmp_path / name
        main([*common, "--split", "all", "--data", str(data), "--out", str(out)])
        values[name] = json.loads((out / "report.json").read_text())
    value = values["npz"]["psnr"]["sr"]
    assert value["n"] == 12
    assert value["gain"] == pytest.approx(value["model"] - value["bicubic"])
    assert value["gain"] < 0  # a random network
    true = read_captioned(captioned, "all").at(8)
    low = downsample(to_float(jnp.asarray(true)), 4)
    assert value["bicubic"] == pytest.approx(psnr(bicubic(low, 8), true).mean())
    # The order is drawn by the keys, which are others in tars: only bicubic has no noise.
    assert values["tar"]["psnr"]["sr"]["bicubic"] == pytest.approx(value["bicubic"])
    assert values["npz"]["settings"]["sampling"]["sr"]["steps"] == 2
    with Image.open(tmp_path / "npz" / "sr.png") as sheet:
        assert min(sheet.size) > 100


def test_more_images_are_the_same_ones_and_others(captioned, tar):
    for path in (captioned, tar):
        two, four = (read_captioned(path, "all", num) for num in (2, 4))
        assert four.captions[:2] == two.captions
        assert set(four.captions) < set(read_captioned(path, "all").captions)
    assert len(read_captioned(captioned, "heldout")) == 4


def test_images_of_unwanted_keys_are_left_out(captioned, tar):
    for path, key in ((captioned, "3"), (tar, "3")):
        found = read_captioned(path, "all", left_out={key}).captions
        assert set(read_captioned(path, "all").captions) - set(found) == {"no 3"}


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    return str(error.value)


def test_what_it_refuses_is_said_clearly(captioned, model, tmp_path):
    common = ("--model", model, "--out", tmp_path / "out", "--metrics")
    assert "known are fid, kid" in refused(*common, "fidd", "--data", captioned)
    assert "give --data FILE" in refused(*common, "psnr")
    assert "no.npz" in refused(*common, "psnr", "--data", tmp_path / "no.npz")
    assert "num must be a whole number, at least 1" in refused(*common, "psnr", "--num", 0)
    assert "Unknown sampler" in refused(*common, "psnr", "--sampler", "plms", "--data", captioned)
    assert "at least 11 pixels" in refused(*common, "ssim", "--data", captioned)
    assert "with --prompts FILE what to generate" in refused(*common, "images")
    assert "a model also needs --prompts" in refused("--model", model, "--out", tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("--metrics", "psnr", "--out", tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_small_images_and_models_without_such_a_stage_are_refused(captioned, model, tmp_path):
    with np.load(captioned) as arrays:
        small = dict(arrays) | {"image": arrays["image"][:, :6, :6]}
    np.savez(tmp_path / "small.npz", **small)
    common = ("--metrics", "psnr", "--out", tmp_path / "out", "--data")
    error = refused(*common, tmp_path / "small.npz", "--model", model)
    assert "have only 6: nothing to compare them with" in error
    base = Cascade(CASCADE.stages[:1], CASCADE.sampling[:1], CASCADE.encoder)
    Pipeline(base, random_params(base), name="lonely").save_pretrained(tmp_path / "lonely")
    error = refused(*common, captioned, "--model", tmp_path / "lonely")
    assert "need a super-resolution stage" in error
