"""Image files: the settings inside, whole or not at all, names that every file system takes."""

import contextlib
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from imagen_jax.images import file_names
from imagen_jax.images.file_names import file_name, own_images
from imagen_jax.images.grid import image_grid
from imagen_jax.images.image_file import SETTINGS_KEY, GeneratedImage, read_settings, save_image
from imagen_jax.images.image_list import ImageList

SETTINGS = {"prompt": '红苹果 "x"\n\0 🎉', "index": 3, "sampling": [{"steps": 3}, {"cap": 1.5}]}


@pytest.fixture
def image(rng) -> GeneratedImage:
    made = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    made.info["imagen_jax"] = SETTINGS
    return GeneratedImage.of(made)


def test_settings_of_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.png"):
        read_settings(tmp_path / "none.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="holds no imagen_jax settings"):
        read_settings(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="not an image"):
        read_settings(tmp_path / "text.png")


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "webp", "tif", "avif"])
def test_the_settings_are_in_the_file(image, tmp_path, ending):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    path = tmp_path / "new folder" / f"x.{ending}"
    image.save(path)
    assert read_settings(path) == SETTINGS
    with Image.open(path) as found:
        assert found.size == image.size
        if ending == "png":
            assert "红苹果" in found.text["imagen_jax"]
        if (
            ending == "jpg"
        ):  # where EXIF has a comment: tag 37510, that begins with its character set
            assert found.getexif().get_ifd(0x8769)[37510].startswith(b"ASCII\0\0\0{")


def test_settings_stay_with_copies_and_open_files_and_other_formats_have_no_place(image, tmp_path):
    image.copy().save(tmp_path / "a.png")
    with (tmp_path / "b.jpg").open("wb") as file:
        image.save(file, "jpeg", quality=50)
    save_image(Image.open(tmp_path / "a.png"), tmp_path / "c.png")
    for name in ("a.png", "b.jpg", "c.png"):
        assert read_settings(tmp_path / name) == SETTINGS
    image.save(tmp_path / "d.bmp")
    with pytest.raises(ValueError, match="no imagen_jax settings"):
        read_settings(tmp_path / "d.bmp")
    with pytest.raises(ValueError, match=r"no format of images has the ending '\.x'"):
        image.save(tmp_path / "e.x")
    with pytest.raises(ValueError, match=r"red: no ending; try red\.png"):
        image.save(tmp_path / "red")


def test_settings_that_a_jpeg_cannot_hold_do_not_stop_it(image, tmp_path):
    image.info["imagen_jax"] = {"prompt": "long " * 20_000}
    with pytest.warns(UserWarning, match="save the image as PNG"):
        image.save(tmp_path / "x.jpg")
    assert Image.open(tmp_path / "x.jpg").size == (16, 16)
    image.save(tmp_path / "x.png")
    assert len(read_settings(tmp_path / "x.png")["prompt"]) == 100_000


def test_a_grid_says_that_it_is_one(image, tmp_path):
    image_grid([image, image]).save(tmp_path / "grid.png")
    assert "imagen_jax_sheet" in Image.open(tmp_path / "grid.png").text
    with pytest.raises(ValueError, match="a grid of several images"):
        read_settings(tmp_path / "grid.png")


@contextlib.contextmanager
def no_room():
    """Files may not grow beyond 100 bytes: what a full disk does, by another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_a_file_without_room_is_not_there_and_the_error_names_it(image, tmp_path, name):
    (tmp_path / name).write_text("of before")
    with no_room(), pytest.raises(OSError, match=rf"{tmp_path}/{name}'$"):
        image.save(tmp_path / name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]
    with pytest.raises(OSError, match=r"none/y\.png'$"):
        image.save("/proc/none/y.png")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (None, "0007.png"),
        ("a cat / dog!", "0007_a_cat_dog.png"),
        ("..\\..\\C:*?<>|", "0007_C.png"),
        ("CON.", "0007_CON.png"),
        ("line\nbreak\0\t\ud800", "0007_line_break.png"),
        ("❤️ 🎉 ✨", "0007.png"),
        ("cafe\u0301", "0007_café.png"),
        ("नमस्ते दुनिया", "0007_नमस्ते_दुनिया.png"),
        ("红苹果，三叶草", "0007_红苹果_三叶草.png"),
    ],
)
def test_a_name_is_of_the_prompts_words(tmp_path, prompt, name):
    assert file_name(7, prompt) == name
    (tmp_path / name).touch()
    assert own_images(tmp_path) == [name]


def test_a_name_fits_every_file_system(tmp_path, monkeypatch):
    for sign in ("a", "红", "𠀀", "e\u0327\u0301", "a "):
        name = file_name(12345, sign * 500)
        assert len(name.encode()) <= 120
        GeneratedImage.of(Image.new("RGB", (1, 1))).save(tmp_path / name)
    monkeypatch.setattr(file_names.sys, "getfilesystemencoding", lambda: "ascii")
    assert file_name(1, "红苹果 a 苹 b") == "0001_a_b.png"


def numbered(count: int, prompts: str) -> ImageList:
    images = ImageList()
    for index in range(count):
        made = GeneratedImage.of(Image.new("RGB", (8, 8), (index, 0, 0)))
        made.info["imagen_jax"] = {"prompt": prompts[index], "index": index}
        images.append(made)
    return images


def test_parts_of_a_result_are_results():
    images = numbered(4, "aabb")
    for part in (images[1:3], images.copy()[1:3], images[:2][1:] + images[2:3]):
        assert isinstance(part, ImageList)
        assert part.captions == ["a", "b"]
        assert part.grid().size[0] > 0
    assert images[-1].info["imagen_jax"]["index"] == 3
    backwards = sorted(images, key=lambda image: -image.info["imagen_jax"]["index"])
    assert ImageList(backwards).captions == list("bbaa")
    assert ImageList([Image.new("RGB", (2, 2))]).captions is None
    assert images.grid().size == images.grid(columns=2).size  # a row for each prompt


def test_a_list_is_saved_under_the_names_of_the_command(tmp_path):
    images = numbered(4, "aabb")
    names = [path.name for path in images.save(tmp_path / "all")]
    assert names == ["0000_a.png", "0001_a.png", "0002_b.png", "0003_b.png", "grid.png"]
    assert read_settings(tmp_path / "all" / names[3]) == {"prompt": "b", "index": 3}
    assert [path.name for path in images[2:].save(tmp_path / "b", grid=False)] == names[2:4]
    twice = images[:1] + images[:1]  # of several calls: no image takes another's place
    assert [path.name for path in twice.save(tmp_path / "c")][:2] == ["0000_a.png", "0001_a.png"]
    with pytest.raises(ValueError, match=r"heart\.PNG is named like one image; it is the folder"):
        images.save(tmp_path / "heart.PNG")
    plain = ImageList([Image.new("RGB", (2, 2))]).save(str(tmp_path / "d"))
    assert plain == [Path(tmp_path / "d" / "0000.png")]


@pytest.mark.parametrize("settings", ["{", "[" * 100_000, "\0", '{"a": 1' + "0" * 5000 + "}"])
def test_settings_that_are_no_json_are_refused_by_name(tmp_path, settings):
    text = PngInfo()
    text.add_itxt(SETTINGS_KEY, settings)
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=text)
    with pytest.raises(ValueError, match=r"The settings in \S+odd.png cannot be read"):
        read_settings(tmp_path / "odd.png")
    whole = (tmp_path / "odd.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.png"):
        read_settings(tmp_path / "cut.png")
