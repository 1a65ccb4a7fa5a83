"""Folders of images beside each other in one short command; mistakes told before the work; and what
was measured is never lost.
"""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import evaluate
from imagen_jax.evaluation import generation, networks, run
from imagen_jax.evaluation.distances import frechet_distance, statistics_of
from imagen_jax.evaluation.request import EvaluationRequest


def fill(folder, rng, count, size=(8, 8), mode="RGB"):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{size[0]}_{i}.png")
    return folder


@pytest.fixture
def folders(tmp_path, rng):
    return fill(tmp_path / "a", rng, 8), fill(tmp_path / "b", rng, 9)


def call(*arguments):
    evaluate.main([str(argument) for argument in arguments])


def refused(*arguments):
    with pytest.raises(SystemExit) as error:
        call(*arguments)
    return str(error.value)


def pixels(folder):
    files = sorted(folder.glob("*.png"), key=lambda file: int(file.stem.partition("_")[2]))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_fid_of_two_folders(folders, networks, tmp_path, capsys, monkeypatch):
    """Printed alone; with --out in a report, too, and from features that are kept."""
    monkeypatch.chdir(tmp_path)
    call("a", "b", "--features", "inception")
    stand = networks["inception"]
    both = [statistics_of(stand.images(pixels(folder))) for folder in folders]
    value = frechet_distance(*both)
    assert f"FID  {value:.5g}  random-inception  images 8; references 9" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    call("--images", "a", "--reference", "b", "--features", "inception", "--out", "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["fid"]["random-inception"]["value"] == pytest.approx(value, rel=1e-9)
    assert report["reference"]["source"]["path"] == "b"
    stand.seen.clear()
    call("a", "b", "--features", "inception", "--metrics", "fid,kid", "--out", "out")
    assert not stand.seen
    earlier = json.loads(next((tmp_path / "out").glob("report_*.json")).read_text())
    assert earlier == report  # another report took its place and did not overwrite it
    (tmp_path / "out" / "report.json").write_text('{"fid": 3}')
    call("a", "b", "--features", "inception", "--out", "out")
    assert (tmp_path / "out" / "report_earlier.json").read_text() == '{"fid": 3}'


def test_where_weights_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = EvaluationRequest(metrics=("fid", "clip"))
    with pytest.raises(ValueError, match=r"pt_inception-2015-12-05-6726825d\.pth") as error:
        networks.with_features(request)
    assert "classify_image_graph_def.pb" in str(error.value)
    assert "--to imagen_jax --out models/inception" in str(error.value)
    (tmp_path / "models" / "inception").mkdir(parents=True)
    with pytest.raises(ValueError, match="clip needs the network CLIP"):
        networks.with_features(request)
    (tmp_path / "models" / "clip").mkdir()
    assert networks.with_features(request).features == ("models/inception", "models/clip")
    with pytest.raises(
        ValueError, match=r"fd_dinov2 needs the network DINOv2.*\n.*\n.*dinov2-large"
    ):
        networks.with_features(EvaluationRequest(metrics=("fd_dinov2",)))
    named = EvaluationRequest(metrics=("fid",), features=("mine",))
    with pytest.raises(FileNotFoundError, match="mine, where a feature network should be"):
        networks.with_features(named)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "features.json").touch()
    assert networks.with_features(named) == named


def test_folders_that_cannot_be_compared(folders, networks, tmp_path, rng, capsys):
    """All before any feature is computed."""
    a, b = folders
    with_network = ("--features", "inception")
    fill(tmp_path / "mixed", rng, 2)
    fill(tmp_path / "mixed", rng, 1, (16, 12), "L")
    assert "2 sizes (2 of 8x8, 1 of 16x12): give --size N" in refused(
        a, tmp_path / "mixed", *with_network
    )
    one = fill(tmp_path / "one", rng, 1)
    assert "fid needs 2 images or more, not 1" in refused(one, b, *with_network)
    assert "A reference needs 2 images" in refused(a, one, *with_network)
    assert "no file or folder" in refused(a, tmp_path / "none", *with_network)
    assert "is one too many" in refused(a, b, b)
    assert "is one too many" in refused(a, b, "--reference", b)
    assert "Say what to measure" in refused(a)
    assert "has ['fidd']; known are fid" in refused(a, b, "--metrics", "fidd")
    assert "--metrics takes a list with commas" in refused("--metrics", "fid", "kid")
    assert "fid,fid" in refused(a, b, "--metrics", "fid,fid").replace(", ", ",")
    assert "at least 11x11 pixels, not of 8" in refused("--images", a, "--truth", a)
    assert not networks["inception"].seen
    assert capsys.readouterr().out == ""
    call(a, fill(tmp_path / "large", rng, 3, (16, 16)), *with_network)
    said = capsys.readouterr().out
    assert "the images have 8 pixels and the reference 16" in said
    assert "fid of 3 images, no more than random-inception has features (6)" in said
    call(a, tmp_path / "large", "--features", "dinov2", "--metrics", "fd_dinov2,kd_dinov2")
    said = capsys.readouterr().out
    assert "fd_dinov2 of 3 images, no more than dinov2-large has features (6)" in said
    assert "kd_dinov2 is not biased so" in said
    call(a, tmp_path / "mixed", *with_network, "--size", 8)
    assert "have 8 pixels" not in capsys.readouterr().out
    (tmp_path / "plain").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "plain" / f"{i}.png")
    call(tmp_path / "plain", tmp_path / "plain", *with_network)
    said = capsys.readouterr()
    assert "the same folder" in said.out
    inner = fill(a / "made", rng, 3)
    for given in ((a, inner), (inner, a)):
        call(*given, *with_network)
        assert f"{inner} lies in {a}: its images count for both" in capsys.readouterr().out
    assert "all 3 images have the same features" in said.err
    assert "all 3 references have the same features" in said.err


def test_equal_folders(tmp_path, rng, capsys):
    folder = fill(tmp_path / "a", rng, 3, (12, 12))
    call("--images", folder, "--truth", folder)
    said = capsys.readouterr().out
    assert "PSNR in dB  inf  pairs  equal and left out 3" in said
    assert "SSIM        1    pairs  images 3\n" in said


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a\nb\nc\nd\n")
    return path


def test_a_metric_that_fails_costs_no_other(folders, networks, prompts, tmp_path):
    """Its features of one caption have no direction."""
    a, b = folders
    for file in list(a.iterdir())[4:]:
        file.unlink()
    real = networks["clip"].texts
    vars(networks["clip"])["texts"] = lambda texts: real(texts) * (len(texts) == 1)
    command = ("--features", "inception,clip", "--metrics", "fid,clip", "--prompts", prompts)
    said = refused(a, b, *command, "--out", tmp_path / "out")
    assert "not measured: clip, tiny-clip: The features of image 0 are zero" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["fid"]["random-inception"]["pictures"] == 4
    assert list(report["not_measured"]) == ["clip, tiny-clip"]
    assert "Not measured: clip, tiny-clip" in (tmp_path / "out" / "report.html").read_text()


def test_a_point_that_fails_costs_no_other(
    folders, networks, model, prompts, tmp_path, monkeypatch
):
    def generated(found, model, directory):
        if "guidance_2" in str(directory):
            raise ValueError("images are not finite")
        return sorted(folders[0].iterdir())[:4], 4

    monkeypatch.setattr(run, "_generated", generated)
    command = ("--model", model, "--prompts", prompts, "--steps", 1, "--metrics", "fid,clip")
    command += ("--features", "inception,clip", "--reference", folders[1])
    said = refused(*command, "--guidance", 1, 2, 3, "--out", tmp_path / "out")
    assert "not measured: guidance_2: images are not finite" in said
    rows = (tmp_path / "out" / "curve.csv").read_text().splitlines()
    assert [row.count("nan") for row in rows] == [0, 0, 2, 0]
    assert rows[2].endswith(",0")  # not on the front
    assert (tmp_path / "out" / "curve.png").is_file()


def test_a_run_stopped_before_its_first_image_binds_nothing(tmp_path):
    generation.open_directory(tmp_path, {"sampling": {"base": {"steps": 10}}})
    other = {"sampling": {"base": {"steps": 5}}}
    generation.open_directory(tmp_path, other)
    generation.image_file(tmp_path, 0).touch()
    generation.open_directory(tmp_path, other)
    with pytest.raises(ValueError, match=r"sampling\.base\.steps = 5, not 6"):
        generation.check_directory(tmp_path, {"sampling": {"base": {"steps": 6}}})
