"""scripts/evaluate.py with feature networks: figures, resuming, shares, curves, off-protocol notes.

The networks are stand-ins (tests/evaluation/stand_in.py); the real ones have tests of their own.
"""

import csv
import json
import re

import numpy as np
import pytest
import stand_in
from PIL import Image
from tiny_cascade import network, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.sample import run_steps, start_stage
from imagen_jax.cascade.stage import Stage
from imagen_jax.commands import evaluate
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import generation, guidance_curve, html_report, inputs, request
from imagen_jax.evaluation.distances import cmmd, cosines, frechet_distance, statistics_of
from imagen_jax.evaluation.reference import read_reference
from imagen_jax.evaluation.report import contact_sheet
from imagen_jax.images.provenance import COMPOSITE, TRAINED, source_of
from imagen_jax.images.verification import inspect
from imagen_jax.pipeline.pipeline import Pipeline

PROMPTS = [f"<b>ab</b>{i}" for i in range(10)]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture
def reference(tmp_path, networks, rng):
    """Features of a folder of 12 images of 8x8 pixels."""
    folder = tmp_path / "true"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    path = tmp_path / "reference.safetensors"
    arguments = f"--make_reference {folder} --features inception,clip --reference {path}"
    evaluate.main(arguments.split())
    return path


@pytest.fixture
def run(model, prompts, reference):
    """Runs the script on the tiny model, and gives its report."""

    def run(out, *more, metrics="fid,kid,cmmd,clip,r_precision", features="inception,clip"):
        command = f"--metrics {metrics} --reference {reference} --steps 2"
        command += f" --features {features}" if features else ""
        command += f" --model {model} --prompts {prompts} --batch_size 4 --out {out}"
        evaluate.main([*command.split(), *map(str, more)])
        path = out / "report.json"
        return json.loads(path.read_text()) if path.exists() else None

    return run


def read(folder):
    files = sorted(folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_the_figures_are_those_of_the_images(run, tmp_path, networks, reference):
    """Against the functions on features of the images that were written."""
    report = run(tmp_path / "out")
    images = read(tmp_path / "out" / "images")
    assert images.shape == (10, 8, 8, 3)
    true = read_reference(reference)
    features = {name: stand.images(images) for name, stand in networks.items()}
    fid = frechet_distance(
        statistics_of(features["inception"]), statistics_of(true.features["random-inception"])
    )
    assert report["fid"]["random-inception"]["value"] == pytest.approx(fid, rel=1e-9)
    distance = cmmd(features["clip"], true.features["tiny-clip"])
    assert report["cmmd"]["tiny-clip"]["value"] == pytest.approx(distance, rel=1e-9)
    score = cosines(features["clip"], networks["clip"].texts(PROMPTS)).mean()
    assert report["clip"]["tiny-clip"]["value"] == pytest.approx(score, rel=1e-9)
    assert report["kid"]["random-inception"]["subset_size"] == 10
    assert report["r_precision"]["tiny-clip"]["negatives"] == 9
    assert 0 <= report["r_precision"]["tiny-clip"]["value"] <= 1


def test_prompts_that_are_cut_are_one_warning_of_all_batches_and_points(model, tmp_path, capsys):
    prompts = tmp_path / "long.txt"
    prompts.write_text("".join(f"{'long ' * 50}{i}\n" for i in range(3)) + "short\n")
    options = f"--metrics images --steps 1 --guidance 1 2 --batch_size 1 --out {tmp_path / 'out'}"
    evaluate.main([*options.split(), "--model", str(model), "--prompts", str(prompts)])
    said = re.findall("Warning: .*", capsys.readouterr().err)
    assert len(said) == 1
    assert re.search(r"Cut to \d+ tokens: 3 of 4 prompts \(75.0%\), the first 'long ", said[0])


def test_a_folder_is_at_no_distance_from_itself(tmp_path, networks, reference):
    out = tmp_path / "self"
    arguments = f"--images {tmp_path / 'true'} --metrics fid,cmmd --features inception,clip"
    evaluate.main(f"{arguments} --reference {reference} --out {out}".split())
    report = json.loads((out / "report.json").read_text())
    assert abs(report["fid"]["random-inception"]["value"]) < 1e-3
    assert abs(report["cmmd"]["tiny-clip"]["value"]) < 1e-3
    assert any("were given" in why for why in report["cmmd"]["tiny-clip"]["off_protocol"])


def test_eight_devices_generate_what_one_does(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "one", metrics="clip", features="clip")
    monkeypatch.setattr(inputs, "all_devices", lambda: make_mesh(MeshConfig()))
    report = run(tmp_path / "eight", metrics="clip", features="clip")
    assert report["settings"]["batch_size"] == 8  # four, rounded up to the devices
    np.testing.assert_allclose(
        read(tmp_path / "eight" / "images"), read(tmp_path / "one" / "images"), atol=1
    )
    value = whole["clip"]["tiny-clip"]["value"]
    assert report["clip"]["tiny-clip"]["value"] == pytest.approx(value, abs=1e-2)


def test_a_killed_run_goes_on(run, tmp_path, networks, monkeypatch):
    """Killed in the third batch, then while the second part's features are made."""
    whole = run(tmp_path / "whole")
    real, calls = generation.save_image, []

    def killed(image, path):
        calls.append(path)
        if len(calls) == 10:
            raise KeyboardInterrupt
        real(image, path)

    monkeypatch.setattr(generation, "save_image", killed)
    with pytest.raises(SystemExit, match="130"):
        run(tmp_path / "out")
    kept = list((tmp_path / "out" / "images").glob("*.png"))
    assert len(kept) == 9
    assert inspect(kept[0]).xmp["source"] == TRAINED
    monkeypatch.setattr(generation, "save_image", real)
    (tmp_path / "out" / "images" / ".000009.png.1.tmp").write_bytes(b"half")  # left by the killed
    report = run(tmp_path / "out")
    assert report["newly_generated"] == 2  # the batch of images 8 and 9
    np.testing.assert_array_equal(read(tmp_path / "out/images"), read(tmp_path / "whole/images"))
    assert figures(report) == figures(whole)

    parts = sorted((tmp_path / "out" / "features").rglob("*.safetensors"))
    assert len(parts) == 6  # three parts by two networks
    parts[1].unlink()
    parts[2].write_bytes(b"damaged")
    for stand in networks.values():
        stand.seen.clear()
    assert figures(run(tmp_path / "out")) == figures(whole)
    assert sum(map(sum, (stand.seen for stand in networks.values()))) == 6


def figures(report):
    return {metric: report[metric] for metric in ("fid", "kid", "cmmd", "clip", "r_precision")}


def test_shares_of_the_work_give_the_same(run, tmp_path, networks):
    whole = run(tmp_path / "whole")
    for share in ("2/2", "1/2"):
        assert run(tmp_path / "out", "--share", share) is None
    for stand in networks.values():
        stand.seen.clear()
    report = run(tmp_path / "out")
    assert report["newly_generated"] == 0
    assert not any(stand.seen for stand in networks.values())
    assert figures(report) == figures(whole)


def test_images_of_other_settings_never_mix(run, tmp_path, model, prompts):
    run(tmp_path / "out")
    for more, said in (
        (["--seed", "1"], "with seed = 0, not 1"),
        (["--steps", "3"], "with sampling.base.steps = 2, not 3"),
        (["--dtype", "bfloat16"], "with model.dtype = 'float32', not 'bfloat16'"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(tmp_path / "out", *more)


def test_a_curve_compiles_nothing_anew(run, tmp_path):
    run(tmp_path / "warm")
    compiled = run_steps._cache_size(), start_stage._cache_size()
    report = run(
        tmp_path / "out",
        "--guidance",
        "1",
        "2",
        "3,1.5",
        "--aug_level",
        "0",
        "0.3",
        metrics="fid,clip",
    )
    assert (run_steps._cache_size(), start_stage._cache_size()) == compiled
    assert [(p["guidance"], p["aug_level"]) for p in report["points"]] == [
        (1.0, 0.0), (2.0, 0.0), ([3.0, 1.5], 0.0), (1.0, 0.3), (2.0, 0.3), ([3.0, 1.5], 0.3),
    ]  # fmt: skip
    assert report["points"][2]["sampling"]["sr"]["guidance"] == 1.5
    assert report["points"][3]["sampling"]["sr"]["aug_level"] == 0.3
    with open(tmp_path / "out" / "curve.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["guidance"] for row in rows][:3] == ["1", "2", "3,1.5"]
    for row, point in zip(rows, report["points"], strict=True):
        value = point["fid"]["random-inception"]["value"]
        assert float(row["Fréchet distance, random-inception"]) == pytest.approx(value, rel=1e-5)
    assert any(row["front: Fréchet distance, random-inception"] == "1" for row in rows)
    with Image.open(tmp_path / "out" / "curve.png") as curve:
        assert min(curve.size) > 300
    check_page(tmp_path / "out" / "report.html")


def check_page(path):
    """The page needs no other file, and shows what came from outside as text."""
    page = path.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Off protocol." in page
    assert "10 images, not 30000" in page
    assert not re.search(r"<script|<b>ab|url\(|@import", page)


def test_common_seeds(run, tmp_path):
    """A point of a curve has the images of a run of its own."""
    run(tmp_path / "curve", "--guidance", "1", "2", metrics="fid,clip")
    run(tmp_path / "alone", "--guidance", "2", metrics="fid", features="inception")
    np.testing.assert_array_equal(
        read(tmp_path / "curve" / "points" / "guidance_2" / "images"),
        read(tmp_path / "alone" / "images"),
    )
    check_page(tmp_path / "alone" / "report.html")


def test_several_images_a_prompt(run, tmp_path):
    run(tmp_path / "out", "--num_images", 2, "--num", 3, metrics="images", features="")
    report = run(tmp_path / "out", "--num_images", 2, "--num", 3)
    assert report["newly_generated"] == 0
    assert report["clip"]["tiny-clip"]["pictures"] == 6
    assert "2 images a caption, not one" in report["fid"]["random-inception"]["off_protocol"]


def test_pairs_of_images(tmp_path, rng):
    """PSNR of one grey level more is 20 log10(255); equal images are left out."""
    for folder in ("made", "true"):
        (tmp_path / folder).mkdir()
    pixels = rng.integers(0, 255, (3, 16, 16, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "true" / f"{i}.bmp")
        Image.fromarray(image + np.uint8(i > 0)).save(tmp_path / "made" / f"{i}.png")
    folders = f"--images {tmp_path / 'made'} --truth {tmp_path / 'true'}"
    out = tmp_path / "out"
    evaluate.main(f"{folders} --metrics psnr,ssim --out {out}".split())
    report = json.loads((out / "report.json").read_text())
    assert report["psnr"]["pairs"]["model"] == pytest.approx(20 * np.log10(255))
    assert (report["psnr"]["pairs"]["n"], report["psnr"]["pairs"]["left_out_as_exact"]) == (2, 1)
    assert report["ssim"]["pairs"]["n"] == 3
    (tmp_path / "true" / "2.bmp").write_bytes(b"broken")
    with pytest.raises(SystemExit, match="leave no image out"):
        evaluate.main(f"{folders} --metrics psnr --skip_broken --out {out}".split())
    (tmp_path / "true" / "2.bmp").unlink()
    with pytest.raises(SystemExit, match="has no image for 1 of 3"):
        evaluate.main(f"{folders} --metrics psnr --out {out}".split())


def test_the_page_of_large_images_is_small(tmp_path):
    (tmp_path / "large").mkdir()
    for i in range(9):
        Image.new("RGB", (1200, 1000), (20 * i, 0, 0)).save(tmp_path / "large" / f"{i}.png")
    out = tmp_path / "out"
    command = f"--images {tmp_path / 'large'} --metrics images --out {out}"
    evaluate.main(command.split())
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"]["size"] == 1000
    with Image.open(out / "pictures.png") as sheet:
        assert 8 * 256 < sheet.width < 8 * 270
        assert "XML:com.adobe.xmp" not in sheet.text  # nobody says that a model made them
    wide = np.zeros((900, 900, 3), np.uint8)
    compared = contact_sheet([(wide, wide)], ["two"])
    assert compared.width < 2 * 270
    assert source_of(compared) == COMPOSITE


def test_a_model_of_classes(tmp_path, networks, reference):
    cascade = Cascade(
        (Stage("base", 8, network(num_classes=3), conditioning="label"),),
        (Sampling("ddim", steps=2),),
    )
    pipeline = Pipeline(cascade, random_params(cascade), name="classes")
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "labels.txt").write_text("0\n2\n1\n1\n")
    command = f"--model {tmp_path / 'model'} --prompts {tmp_path / 'labels.txt'} --metrics fid"
    command += f" --features inception --reference {reference} --out {tmp_path / 'out'}"
    evaluate.main(command.split())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["fid"]["random-inception"]["pictures"] == 4
    (tmp_path / "labels.txt").write_text("a cat\na dog\n")
    with pytest.raises(SystemExit, match="reads classes, not text"):
        evaluate.main(command.split())


def test_what_it_refuses(run, tmp_path, networks, model, prompts, reference):
    def refused(command):
        with pytest.raises(SystemExit) as error:
            evaluate.main(f"{command} --out {tmp_path / 'no'}".split())
        assert not (tmp_path / "no").exists()
        return str(error.value)

    ours = f"--model {model} --prompts {prompts}"
    assert "--metrics names others" in refused(ours)
    assert "fid needs true images" in refused(f"{ours} --metrics fid --features inception")
    assert "tiny-clip, whose features none of the metrics fid reads" in refused(
        f"{ours} --metrics fid --features inception,clip --reference {reference}"
    )
    assert "needs the captions" in refused(
        f"--images {tmp_path / 'true'} --metrics clip --features clip"
    )
    assert "12 images for 10 prompts" in refused(
        f"--images {tmp_path / 'true'} --prompts {prompts} --metrics clip --features clip"
    )
    clip = "--metrics clip --features clip"
    assert "several --guidance" in refused(
        f"--images {tmp_path / 'true'} --metrics images --guidance 1 2"
    )
    assert "two equal points" in refused(f"{ours} {clip} --guidance 1 1.0")
    assert "--aug_level changes nothing" in refused(f"{ours} {clip} --size 4 --aug_level 0 0.1")
    assert "--share is '3/2'" in refused(f"{ours} {clip} --share 3/2")
    assert "cocodataset" not in refused(f"{ours[:-5]} {clip}")
    assert "is not a reference" in refused(
        f"{ours} --metrics fid --features inception --reference {prompts}"
    )
    other = stand_in.StandIn("inception", "random-inception", "another")
    networks["inception"] = other
    assert "make it again" in refused(
        f"{ours} --metrics fid --features inception --reference {reference}"
    )


def test_mistakes_are_told_before_the_work(tmp_path, networks, model, prompts, reference):
    for stand in networks.values():
        stand.seen.clear()

    def refused(command):
        with pytest.raises(SystemExit) as error:
            evaluate.main(f"{command} --out {tmp_path / 'no'}".split())
        assert not any(stand.seen for stand in networks.values())
        return str(error.value)

    new = tmp_path / "new"
    making = f"--features inception --make_reference {tmp_path / 'true'} --reference {new}"
    ours = f"--model {model} --prompts {prompts}"
    assert "known are fid" in refused(f"{ours} {making} --metrics fidd")
    assert "There is no file" in refused(f"--model {model} --prompts no.txt {making} --metrics fid")
    assert "nobody" in refused(f"--model nobody --prompts {prompts} {making} --metrics fid")
    assert "is a folder" in refused(f"{ours} {making[: -len(str(new))]}{tmp_path} --metrics fid")
    assert not new.exists()


def test_a_reference_is_shared_and_goes_on(tmp_path, networks, reference):
    """Of two shares, one was killed and one part is damaged; the batch size changes nothing."""
    path, seen = tmp_path / "again.safetensors", networks["clip"].seen
    seen.clear()
    command = f"--make_reference {tmp_path / 'true'} --features inception,clip --reference {path}"
    evaluate.main(f"{command} --share 2/2".split())
    assert not path.exists()
    assert seen == [4]  # the middle one of three parts
    (part,) = (tmp_path / "again.safetensors.parts").glob("tiny-clip*/*")
    evaluate.main(f"{command} --batch_size 2".split())
    assert seen == [4, 4, 4]
    assert read_reference(path).fingerprint == read_reference(reference).fingerprint
    part.write_bytes(b"damaged")
    evaluate.main(command.split())
    assert seen == [4, 4, 4, 4]
    for name, features in read_reference(reference).features.items():
        np.testing.assert_array_equal(read_reference(path).features[name], features)


def test_a_share_needs_no_captions_features(run, tmp_path, networks, monkeypatch):
    def unwanted(self, texts):
        raise ValueError("texts are read")

    monkeypatch.setattr(stand_in.StandIn, "texts", unwanted)
    assert run(tmp_path / "out", "--share", "1/2") is None


def test_the_front_is_what_no_point_beats(rng):
    up, down = rng.integers(0, 6, (2, 40))
    front = guidance_curve.pareto(up, down)
    for i in range(40):
        beaten = any(
            up[j] >= up[i] and down[j] <= down[i] and (up[j] > up[i] or down[j] < down[i])
            for j in range(40)
        )
        assert front[i] == (not beaten)


def test_every_metric_has_a_name_in_the_page():
    assert set(html_report.NAMES) == set(request.KNOWN_METRICS) - {"images"}
