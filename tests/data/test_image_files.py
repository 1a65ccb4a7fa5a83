"""Which files of a folder count as its images, and what is said of the others."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import save_model
from imagen_jax.data import SOURCES, BrokenExample, Loader
from imagen_jax.data.counts import TooManyBroken
from imagen_jax.data.folder import read_folder
from imagen_jax.data.image_files import find_images
from imagen_jax.evaluation.image_folder import list_images
from imagen_jax.evaluation.report import Report
from imagen_jax.images.grid import image_grid
from imagen_jax.images.image_file import is_sheet, save_image
from imagen_jax.images.image_list import ImageList
from imagen_jax.training.metrics import Curve, MetricLog

GREY = Image.new("RGB", (8, 8), (90, 90, 90))


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def generated(number: int) -> Image.Image:
    image = GREY.copy()
    image.info["imagen_jax"] = {"prompt": f"no {number}", "index": number}
    return image


def make_samples(folder):
    ImageList([generated(0), generated(1)]).save(folder)


def train_samples(folder):
    log = MetricLog(folder / "run")
    log.images(100, image_grid([GREY]))
    log.close()


def evaluate_pages(folder):
    Report(sheets=dict.fromkeys(("pictures.png", "base.png"), image_grid([GREY]))).write(folder)


def plot_loss(folder):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra train)")
    save_model.plot({"base": Curve((1, 2), (2.0, 1.0), ([1.0] * 10, [1.0] * 10))}, folder / "l.png")


@pytest.mark.parametrize(
    ("make", "sheets", "images"),
    [
        (make_samples, {"grid.png"}, 2),
        (train_samples, {"samples_0000100.png"}, 0),
        (evaluate_pages, {"pictures.png", "base.png"}, 0),
        (plot_loss, {"l.png"}, 0),
    ],
)
def test_what_our_commands_draw_is_no_image_of_a_set(tmp_path, caplog, make, sheets, images):
    make(tmp_path)
    assert {path.name for path in tmp_path.rglob("*.png") if is_sheet(path)} == sheets
    GREY.save(tmp_path / "mine.png")
    for path in list(tmp_path.rglob("*.png")):  # under other names, too
        shutil.copy(path, tmp_path / f"copy_of_{path.name}")
    found = {path.name.removeprefix("copy_of_") for path in list_images(tmp_path)}
    assert not found & sheets
    assert len(read_folder(tmp_path, conditioning=None)) == 2 * (images + 1) == 2 * len(found)
    (line,) = caplog.messages
    assert f"left out {2 * len(sheets)} grids or plots of ours (" in line
    assert f"; {2 * (images + 1)} images stay" in line


def test_sheets_without_a_mark_are_told_by_what_lies_beside_them(tmp_path):
    ours = ["a/grid.png", "run/samples/samples_0001000.png", "model/loss.png", "e/pictures.png"]
    ours.append("study/sheets/0123456789ab-1.png")
    theirs = ["b/grid.png", "c/samples_0001000.png", "d/loss.png", "f/strip.png"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        GREY.save(tmp_path / name)
    save_image(generated(0), tmp_path / "a/0000_red_heart.png")
    GREY.save(tmp_path / "b/0000_red_heart.png")  # of somebody else
    write(tmp_path, "run/metrics.jsonl", "model/model.json", "e/report.json")
    write(tmp_path, "study/trials.json")
    images = find_images(tmp_path).images
    assert images == tuple(sorted([*theirs, "a/0000_red_heart.png", "b/0000_red_heart.png"]))


def test_one_warning_says_what_was_left_out(tmp_path, caplog):
    GREY.save(tmp_path / "a.png")
    write(tmp_path, *(f"{n}.HEIC" for n in range(12)), "1.svg", "2.svg", "old.zip", "d41d8cd98f")
    write(tmp_path, "a.txt", "captions.jsonl", "README.md", "LICENSE", "metadata.parquet", "x.npz")
    for _ in range(2):
        list_images(tmp_path)
    assert caplog.messages == [
        f"{tmp_path}: left out 12 .heic (convert them, for example with pillow-heif), 2 .svg, "
        "1 without an ending, 1 .zip (unpack them); 1 images stay"
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", ".git/b.png", "__MACOSX/b.png"),
        *("@eaDir/b.png/SYNOPHOTO_THUMB_XL.jpg", "lost+found/b.png", "$RECYCLE.BIN/b.png"),
    ],
)
def test_what_systems_leave_is_passed_over_in_silence(tmp_path, caplog, name):
    GREY.save(tmp_path / "a.png")
    write(tmp_path, name)
    assert find_images(tmp_path).images == ("a.png",)
    assert not caplog.messages


@pytest.mark.parametrize("suffix", ["JFIF", "jpe", "PPM", "pgm", "avif", "jp2", "APNG", "TIFF"])
def test_all_endings_that_the_decoder_reads_count(tmp_path, suffix):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pgm": "PPM", "jp2": "JPEG2000", "apng": "PNG"}
    try:
        GREY.save(tmp_path / f"a.{suffix}", kind.get(suffix.lower(), suffix.upper()))
    except (OSError, KeyError):
        pytest.skip(f"this Pillow does not write .{suffix}")
    image = read_folder(tmp_path, conditioning=None)[0]["image"]
    assert abs(image.astype(int) - 90).max() <= 3
    assert [path.name for path in list_images(tmp_path)] == [f"a.{suffix}"]


def test_a_path_that_is_no_folder_of_images_is_named(tmp_path):
    write(tmp_path, "set.zip", "a.png", "heic/1.heic", "empty/.keep")
    for name, match in [
        ("set.zip", r"set\.zip is a file: unpack it; give the folder that holds the images"),
        ("a.png", r"a\.png is a file; give the folder"),
        ("none", "there is no folder .*none"),
        ("heic", r"holds no image \(.*; it has 1 \.heic \(convert them, for example with pillow"),
        ("empty", r"holds no image \([^;]*$"),
    ]:
        with pytest.raises(ValueError, match=match):
            find_images(tmp_path / name)
        with pytest.raises(ValueError, match=match):
            list_images(tmp_path / name)


def test_links_that_lead_nowhere_or_in_a_circle_are_counted(tmp_path, caplog):
    GREY.save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "unmounted" / "b.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "up").symlink_to(tmp_path)
    assert find_images(tmp_path).images == ("a.png",)
    assert "left out 2 links that lead nowhere; 1 images stay" in caplog.text


def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    GREY.save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read whatever its mode
    with pytest.raises(ValueError, match=r"/closed cannot be read \(Permission denied\)"):
        find_images(tmp_path)


@pytest.mark.parametrize("name", ["a\nb.png", "n" * 251 + ".png", "a, b.png", b"caf\xe9.png"])
def test_files_of_any_name_are_read(tmp_path, name):
    name = os.fsdecode(name)
    try:
        GREY.save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system does not take such names")
    source = read_folder(tmp_path, conditioning=None)
    assert source[0]["key"] == name
    os.remove(tmp_path / name)  # while the run goes on
    with pytest.raises(BrokenExample):
        source[0]


def test_class_folders_have_names_that_can_be_written(tmp_path):
    for name in ("e\u0301", "é"):  # one name in two forms, as two systems write it
        write(tmp_path, f"{name}/{len(name)}.png")
    source = read_folder(tmp_path, conditioning="label")
    assert source.class_names == ("é",)
    assert source.labels.tolist() == [0, 0]
    try:
        write(tmp_path, os.fsdecode(b"caf\xe9/1.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(ValueError, match="has a name that is not UTF-8; rename it"):
        read_folder(tmp_path, conditioning="label")


def test_images_that_vanish_are_broken_examples(tmp_path):
    GREY.save(tmp_path / "a.png")
    GREY.save(tmp_path / "b.png")
    source = read_folder(tmp_path, conditioning=None)
    loader = Loader(source, 2, 8, conditioning=None, max_broken_share=0.5)
    os.remove(tmp_path / "a.png")
    assert loader.batch(0)["image"].shape == (2, 8, 8, 3)
    assert list(loader.damage.broken) == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_set_that_is_all_broken_ends_with_the_first_few_named(tmp_path, threads):
    write(tmp_path, *(f"{n}.png" for n in range(20)))
    source = SOURCES["folder"](tmp_path, conditioning=None)
    loader = Loader(source, 4, 8, conditioning=None, max_broken_share=1.0, num_threads=threads)
    with pytest.raises(TooManyBroken, match=r"20 broken examples, 100\.0% .*\.png: no image of a"):
        next(loader.batches())
    loader = Loader(source, 4, 8, conditioning=None, num_threads=threads)
    with pytest.raises(TooManyBroken, match=r"more than the 1\.0% allowed\. The first: .*\.png"):
        next(loader.batches())


def test_a_batch_may_be_larger_than_its_set(tmp_path):
    for shade in range(3):
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / f"{shade}.png")
    loader = Loader(read_folder(tmp_path, conditioning=None), 12, 8, conditioning=None)
    shades = loader.batch(0)["image"][:, 0, 0, 0]
    assert np.bincount(shades).tolist() == [4, 4, 4]
