"""Npz files, folders with captions in three formats, and pictures that cannot be read."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import preprocess, sources
from imagen_jax.data.sources import ArraySource, BrokenExample, read_folder, read_npz


def write_pictures(folder, names, size=(20, 12)):
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade, 0, 0)).save(path)


NAMES = ["a.png", "b 2.jpg", "sub/c.webp", "é红.png"]
CAPTIONS = {
    "a.png": [("a red cat", 1.0), ("一只红猫", 1.0)],
    "b 2.jpg": [('two, "quoted"', 1.0)],
    "sub/c.webp": [("c", 1.0)],
    "é红.png": [("红 é", 1.0)],
}


def write_txt(folder):
    for name, captions in CAPTIONS.items():
        text = "\n".join(text for text, _ in captions) + "\n"
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def write_jsonl(folder):
    rows = [{"file": n, "caption": text} for n, texts in CAPTIONS.items() for text, _ in texts]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")


def write_csv(folder):
    rows = [f'"{n}","{t.replace(chr(34), chr(34) * 2)}"' for n, c in CAPTIONS.items() for t, _ in c]
    text = "\r\n".join(["file_name,text", *rows])
    (folder / "captions.csv").write_text(text, encoding="utf-8-sig")  # as Excel writes it


@pytest.mark.parametrize("write", [write_txt, write_jsonl, write_csv])
def test_captions_in_three_formats_are_the_same(tmp_path, write):
    write_pictures(tmp_path, NAMES)
    write(tmp_path)
    source = read_folder(tmp_path)
    assert {item["key"]: item["captions"] for item in map(source.__getitem__, range(4))} == CAPTIONS
    assert source[0]["image"].shape == (12, 20, 3)


def test_weights_and_lists_of_captions(tmp_path):
    (tmp_path / "captions.jsonl").write_text(
        '{"file": "a.png", "caption": ["x", "y"], "weight": 3}\n\n{"file": "a.png", "text": "z"}'
    )
    assert sources.read_captions(tmp_path / "captions.jsonl") == {
        "a.png": [("x", 1.5), ("y", 1.5), ("z", 1.0)]
    }


def test_a_name_is_found_in_either_unicode_form(tmp_path):
    write_pictures(tmp_path, [unicodedata.normalize("NFD", "é.png")])
    row = {"file": unicodedata.normalize("NFC", "é.png"), "caption": "e"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row))
    assert read_folder(tmp_path)[0]["captions"] == [("e", 1.0)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ('{"file": "a.png"}', "line 1: needs"),
        ('{"file": "a.png", "caption": " "}', "line 1: needs"),
        ('{"file": "a.png", "caption": "x", "weight": 0}', "weight must be"),
        ("[1", "line 1"),
        ("7", "line 1: needs"),
        ('{"file": "gone.png", "caption": "x"}', r"not there: gone\.png"),
    ],
)
def test_a_bad_caption_row_is_named(tmp_path, row, match):
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "captions.jsonl").write_text(row)
    with pytest.raises(ValueError, match=match):
        read_folder(tmp_path)


def test_missing_captions_are_named(tmp_path):
    write_pictures(tmp_path, NAMES)
    write_txt(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "sub" / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"2 of 4 pictures .*: a\.png, sub/c\.webp\. Write a\.txt"):
        read_folder(tmp_path)
    assert "captions" not in read_folder(tmp_path, conditioning=None)[0]


def test_an_empty_caption_file_is_a_broken_example(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(BrokenExample, match="no caption"):
        read_folder(tmp_path)[0]


def test_sub_folders_are_classes(tmp_path):
    write_pictures(tmp_path, ["dog/1.png", "cat/1.png", "cat/deep/2.png"])
    source = read_folder(tmp_path, conditioning="label")
    assert source.class_names == ("cat", "dog")
    assert [source[i]["label"] for i in range(3)] == [0, 0, 1]
    write_pictures(tmp_path, ["loose.png"])
    with pytest.raises(ValueError, match=r"loose\.png must lie in a sub-folder"):
        read_folder(tmp_path, conditioning="label")


def test_folder_splits_are_disjoint_and_complete(tmp_path):
    write_pictures(tmp_path, [f"{i}.png" for i in range(200)], size=(2, 2))
    parts = {split: read_folder(tmp_path, split, None).files for split in sources.SPLITS}
    assert parts["heldout"]
    assert sorted(parts["train"] + parts["heldout"]) == list(parts["all"])
    with pytest.raises(ValueError, match="split is 'test'"):
        read_folder(tmp_path, "test", None)


def test_folders_without_pictures_are_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        read_folder(tmp_path / "none")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_picture_is_a_broken_example(tmp_path, rng, damage):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:1500], "text": b"no picture", "empty": b""}[damage])
    with pytest.raises(BrokenExample, match=r"a\.png"):
        read_folder(tmp_path, conditioning=None)[0]


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(tmp_path):
    Image.new("1", (30_000, 10_000)).save(tmp_path / "bomb.png")  # a few kilobytes
    with pytest.raises(BrokenExample):
        read_folder(tmp_path, conditioning=None)[0]
    Image.new("L", (100, 10)).save(tmp_path / "bomb.png")
    with pytest.raises(BrokenExample, match="100x10 pixels are more than the 999 allowed"):
        read_folder(tmp_path, conditioning=None, max_pixels=999)[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    value = {"I;16": 65535, "1": 1}.get(mode)
    picture = Image.new("RGB", (3, 3), "white").convert(mode) if value is None else None
    picture = picture or Image.new(mode, (3, 3), value)
    picture.save(path)
    image = preprocess.decode(path)
    assert image.dtype == np.uint8
    assert (image.reshape(-1, 3) >= 254).all()


def test_transparency_is_shown_on_white_and_rotation_is_applied(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (preprocess.decode(tmp_path / "clear.png") == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert preprocess.decode(tmp_path / "turned.jpg").shape == (4, 2, 3)


def test_resize_averages_whole_blocks_of_the_centred_square(rng):
    image = rng.integers(0, 256, (8, 12, 3), np.uint8)
    expected = image[:, 2:10].reshape(2, 4, 2, 4, 3).mean((1, 3))
    assert np.abs(preprocess.resize(image, 2) - expected).max() <= 0.5
    assert preprocess.resize(image, 16).shape == (16, 16, 3)
    assert preprocess.resize(image[:, :8], 8) is not None


def test_resize_does_not_alias():
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(preprocess.resize(stripes, 30).astype(int) - 127).max() < 25


def test_npz_with_plain_captions_or_labels(tmp_path, rng):
    image = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
    captions = np.asarray([f"图 {i}" for i in range(40)])
    np.savez(tmp_path / "a.npz", image=image, captions=captions, label=np.arange(40), year=captions)
    source = read_npz(tmp_path / "a.npz")
    assert source[7]["captions"] == [("图 7", 1.0)]
    assert "label" not in source[7]
    assert source.extra["label"][7] == 7
    assert read_npz(tmp_path / "a.npz", conditioning="label")[7]["label"] == 7
    train, heldout = (read_npz(tmp_path / "a.npz", split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 40
    assert not set(train.keys) & set(heldout.keys)


def test_bad_npz_files_are_named(tmp_path, rng):
    path = tmp_path / "a.npz"
    np.savez(path, image=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="has no captions; it has"):
        read_npz(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.npz is not a whole npz"):
        read_npz(path)
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, 3\]"):
        ArraySource(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="there are 1 captions for 2 images"):
        ArraySource(np.zeros((2, 4, 4, 3), np.uint8), captions=[[("a", 1.0)]])
