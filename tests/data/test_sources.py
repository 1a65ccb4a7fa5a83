"""Npz files, folders with captions in three formats, and images that cannot be read."""

import dataclasses
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import sources
from imagen_jax.data.captions import read_captions
from imagen_jax.data.folder import read_folder
from imagen_jax.data.sources import ArraySource, BrokenExample, read_npz


def write_images(folder, names, size=(20, 12)):
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
    write_images(tmp_path, NAMES)
    write(tmp_path)
    source = read_folder(tmp_path)
    assert {item["key"]: item["captions"] for item in map(source.__getitem__, range(4))} == CAPTIONS
    assert source[0]["image"].shape == (12, 20, 3)


def test_weights_and_lists_of_captions(tmp_path):
    (tmp_path / "captions.jsonl").write_text(
        '{"file": "a.png", "caption": ["x", "y"], "weight": 3}\n\n{"file": "a.png", "text": "z"}'
    )
    assert read_captions(tmp_path / "captions.jsonl") == {
        "a.png": [("x", 1.5), ("y", 1.5), ("z", 1.0)]
    }


FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("captions", ["a list", "text files"])
def test_names_meet_in_either_unicode_form(tmp_path, forms, captions):
    disk, other = (unicodedata.normalize(form, "é/ü") for form in forms)
    write_images(tmp_path, [f"{disk}.png"])
    if captions == "a list":
        row = {"file": f"{other}.png", "caption": "e"}
        (tmp_path / "captions.jsonl").write_text(json.dumps(row))
    else:  # in the image's folder, which has the other form
        (tmp_path / disk).with_name(other.rpartition("/")[2] + ".txt").write_text("e")
    assert read_folder(tmp_path)[0]["captions"] == [("e", 1.0)]


def test_two_names_that_look_alike(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    write_images(tmp_path, [f"{name}.png" for name in names])
    for name in names:
        (tmp_path / f"{name}.txt").write_text(f"in {len(name)}")
    captions = {len(item["key"]) - 4: item["captions"] for item in read_folder(tmp_path)}
    assert captions == {1: [("in 1", 1.0)], 2: [("in 2", 1.0)]}
    (tmp_path / "captions.csv").write_text(f"file,caption\n{names[0]}.png,e\n")
    with pytest.raises(ValueError, match=r"two images named .* cannot tell them apart; rename one"):
        read_folder(tmp_path)


def test_a_class_and_a_split_are_the_same_in_either_unicode_form(tmp_path):
    names = [f"{unicodedata.normalize(form, 'é')}/{form}.png" for form in ("NFC", "NFD")]
    write_images(tmp_path, [*names, "z/0.png"])
    source = read_folder(tmp_path, conditioning="label")
    assert source.class_names == ("z", "é")
    assert {item["key"][-7:-4]: item["label"] for item in source} == {"NFC": 1, "NFD": 1, "z/0": 0}
    for number in range(200):
        split = [sources.is_heldout(unicodedata.normalize(f, f"é{number}")) for f in FORMS[0]]
        assert split[0] == split[1]


CASES = Path(__file__).resolve().parents[1] / "fixtures" / "cases" / "captions"


@pytest.mark.parametrize(
    ("case", "name", "caption"),
    [
        ("line_separator.txt", "a.txt", "a blue dog\u2028running"),
        ("line_separator.jsonl", "captions.jsonl", "a blue\x85dog"),
    ],
)
def test_a_separator_inside_a_caption_stays(tmp_path, case, name, caption):
    write_images(tmp_path, ["a.png"])
    shutil.copy(CASES / case, tmp_path / name)
    assert read_folder(tmp_path)[0]["captions"] == [(caption, 1.0)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ('{"file": "a.png"}', "line 1: it needs 'caption'"),
        ('{"file": " ", "caption": "x"}', "line 1: the file is empty or no text: ' '"),
        ('{"file": "a.png", "caption": " "}', "line 1: the caption is empty or no text: ' '"),
        ('{"file": "a.png", "caption": ["x", ""]}', "line 1: the caption is empty or no text: ''"),
        ('{"file": "a.png", "caption": []}', "line 1: the caption must be a text or a list"),
        (r'{"file": "a.png", "caption": "a \ud83d"}', "line 1: the caption has half a character"),
        ('{"file": "a.png", "caption": "x", "weight": 0}', "weight must be"),
        ("[1", "line 1"),
        ("7", "line 1: it holds 7"),
        ('{"file": "gone.png", "caption": "x"}', r"names 1 images, of 1, .* not there: gone\.png$"),
        ('{"file": "a.PNG", "caption": "x"}', r"not there: a\.PNG; did you mean a\.png\?"),
        ('{"file": "/set/a.png", "caption": "x"}', r"/set/a\.png; did you mean a\.png\?"),
        ('{"file": "a.md", "caption": "x"}', r"not there: a\.md; a\.md is there, but no image"),
        ('{"file": "A%2Epng", "caption": "x"}', r"A%2Epng; did you mean a\.png\?"),
        ('{"file": "a", "caption": "x"}', r"not there: a; did you mean a\.png\?"),
        ('{"file": "x/a.jpg", "caption": "x"}', r"x/a\.jpg; did you mean a\.png\?"),
    ],
)
def test_a_bad_caption_row_is_named(tmp_path, row, match):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "a.md").write_text("# About")
    (tmp_path / "captions.jsonl").write_text(row)
    with pytest.raises(ValueError, match=match):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.caption", r"a\.caption is there: rename those of other programs"),
        ("a.png.txt", r"a\.png\.txt is there: rename"),
        ("metadata.jsonl", r"metadata\.jsonl is not read; captions\.jsonl or captions\.csv would"),
        ("captions.json", r"captions\.json is not read"),
        ("caption.csv", r"caption\.csv is not read"),
        ("sub/captions.csv", r"sub/captions\.csv counts only at the top of the folder"),
        ("README.md", r"\(conditioning label or None\)\.$"),
    ],
)
def test_captions_under_other_names_are_pointed_out(tmp_path, name, told):
    write_images(tmp_path, ["a.png", "sub/b.png"])
    (tmp_path / name).write_text('{"file_name": "a.png", "text": "x"}')
    with pytest.raises(ValueError, match=told):
        read_folder(tmp_path)


def test_captions_that_lack_an_image_are_not_said_to_stand_elsewhere(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "captions.csv").write_text("file,caption\na.png,x\n")
    with pytest.raises(
        ValueError, match=r"no caption: b\.png\. .*\(conditioning label or None\)\.$"
    ):
        read_folder(tmp_path)


def test_splits_are_no_classes(tmp_path, caplog):
    names = [f"{{}}/{name}/0.png" for name in ("cat", "dog")]
    for number, splits in enumerate([("train", "val"), ("Train",)]):
        folder = tmp_path / str(number)
        write_images(folder, [name.format(split) for name in names for split in splits])
        with pytest.raises(ValueError, match=rf"like splits, .*{splits[0]}, which holds cat, dog"):
            read_folder(folder, conditioning="label")
        read_folder(folder, conditioning=None)
    write_images(tmp_path / "one", [name.format("images") for name in names])
    assert read_folder(tmp_path / "one", conditioning="label").class_names == ("images",)
    assert "one/images, which holds cat, dog" in caplog.text
    caplog.clear()
    # sub-folders of any name within classes; classes that are named like splits
    write_images(tmp_path / "two", ["cat/1/0.png", "cat/2/0.png", "dog/1/0.png", "dog/0.png"])
    write_images(tmp_path / "three", ["test/0.png", "train/0.png"])
    for folder, classes in (("two", ("cat", "dog")), ("three", ("test", "train"))):
        assert read_folder(tmp_path / folder, conditioning="label").class_names == classes
    assert not caplog.text


def test_a_csv_may_have_spaces_after_its_commas(tmp_path):
    (tmp_path / "captions.csv").write_text('file, caption, weight\na.png, "x, y", 2\nb.png, z,\n')
    expected = {"a.png": [("x, y", 2.0)], "b.png": [("z", 1.0)]}
    assert read_captions(tmp_path / "captions.csv") == expected


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"file,caption\na.png,a cat, asleep\n", r"captions\.csv, line 2: .* in quotes"),
        (b"a.png,a cat\n", "line 1: .* needs 'file' .* has 'a.png', 'a cat'"),
        (b"file;caption\na.png;a cat\n", "separated by semicolons"),
        (b"file,caption,weight\na.png,a,-1\n", "line 2: the weight must be .*: '-1'"),
    ],
)
def test_a_bad_csv_is_named(tmp_path, content, match):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.csv").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_folder(tmp_path)


def test_two_caption_files_are_an_error(tmp_path):
    write_images(tmp_path, NAMES)
    write_csv(tmp_path)
    write_jsonl(tmp_path)
    with pytest.raises(ValueError, match=r"captions\.csv and captions\.jsonl; keep one"):
        read_folder(tmp_path)


def test_a_text_file_may_be_in_capitals_and_must_be_utf8(tmp_path):
    write_images(tmp_path, ["a.PNG", "b.png"])
    (tmp_path / "a.TXT").write_text("a cat")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    source = read_folder(tmp_path)
    assert source[0]["captions"] == [("a cat", 1.0)]
    with pytest.raises(BrokenExample, match=r"b\.txt is not in UTF-8"):
        source[1]


def test_captions_can_be_read_without_their_images(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_text("a cat")
    source = dataclasses.replace(read_folder(tmp_path), with_images=False)
    (tmp_path / "a.png").unlink()  # it is not opened
    assert source[0] == {"key": "a.png", "captions": [("a cat", 1.0)]}


def test_hidden_names_and_what_is_no_file_are_left_out(tmp_path):
    write_images(tmp_path, ["a.png", "._a.png", ".thumbs/a.png"])
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert read_folder(tmp_path, conditioning=None).files == ("a.png",)


def test_linked_folders_are_read_once_and_without_loops(tmp_path):
    write_images(tmp_path / "elsewhere", ["1.png"])
    write_images(tmp_path / "set", ["a.png", "real/b.png"])
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "real" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set" / "real")
    files = read_folder(tmp_path / "set", conditioning=None).files
    assert files == ("a.png", "linked/1.png", "real/b.png")


def test_a_name_that_is_not_utf8_is_held_out_or_not(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        write_images(tmp_path, [name])
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    parts = [read_folder(tmp_path, conditioning=None).files]
    for split in ("train", "heldout"):
        try:
            parts.append(read_folder(tmp_path, split, None).files)
        except ValueError:
            parts.append(())
    assert parts[0] == parts[1] + parts[2] == (name,)


def test_missing_captions_are_named(tmp_path):
    write_images(tmp_path, NAMES)
    write_txt(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "sub" / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"2 of 4 images .*: a\.png, sub/c\.webp\. Write a\.txt"):
        read_folder(tmp_path)
    assert "captions" not in read_folder(tmp_path, conditioning=None)[0]


def test_an_empty_caption_file_is_a_broken_example(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(BrokenExample, match="no caption"):
        read_folder(tmp_path)[0]


def test_sub_folders_are_classes(tmp_path):
    write_images(tmp_path, ["dog/1.png", "cat/1.png", "cat/deep/2.png"])
    source = read_folder(tmp_path, conditioning="label")
    assert source.class_names == ("cat", "dog")
    assert [source[i]["label"] for i in range(3)] == [0, 0, 1]
    write_images(tmp_path, ["loose.png"])
    with pytest.raises(ValueError, match=r"loose\.png must lie in a sub-folder"):
        read_folder(tmp_path, conditioning="label")


def test_folder_splits_are_disjoint_and_complete(tmp_path):
    write_images(tmp_path, [f"{i}.png" for i in range(200)], size=(2, 2))
    parts = {split: read_folder(tmp_path, split, None).files for split in sources.HASHED}
    assert parts["heldout"]
    assert sorted(parts["train"] + parts["heldout"]) == list(parts["all"])
    for split in ("test", "pair"):  # no folder says that it has pairs
        with pytest.raises(ValueError, match=f"split is '{split}'"):
            read_folder(tmp_path, split, None)


def test_folders_without_images_are_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        read_folder(tmp_path / "none")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_image_is_a_broken_example(tmp_path, rng, damage):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:1500], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(BrokenExample, match=r"a\.png"):
        read_folder(tmp_path, conditioning=None)[0]


def test_an_image_that_unpacks_to_too_many_pixels_is_refused(tmp_path):
    Image.new("1", (30_000, 10_000)).save(tmp_path / "bomb.png")  # a few kilobytes
    with pytest.raises(BrokenExample):
        read_folder(tmp_path, conditioning=None)[0]
    Image.new("L", (100, 10)).save(tmp_path / "bomb.png")
    with pytest.raises(BrokenExample, match="100x10 pixels are more than the 999 allowed"):
        read_folder(tmp_path, conditioning=None, max_pixels=999)[0]


@pytest.mark.parametrize("values", [np.int32([[0, 255]]), np.float32([[0, 9]]), np.float32([[-1]])])
def test_grey_of_an_unknown_range_is_a_broken_example(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(BrokenExample, match=r"save it with 8|must lie in 0\.\.\.1"):
        read_folder(tmp_path, conditioning=None)[0]


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


def test_a_missing_npz_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match=r"^there is no file \S+none\.npz$"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"imagen-jax prepare_icons --out \S+ makes it"):
        read_npz(tmp_path / "icons64.npz")
    with pytest.raises(ValueError, match="is a folder"):
        read_npz(tmp_path)


def test_a_single_array_is_no_npz_file(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy is not .*single array"):
        read_npz(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("image", np.uint8(3), r"uint8 \[N, H, W, 3\]"),
        ("label", np.int32(3), r"label in .* int32 \[\]; it must be whole numbers \[2\]"),
        ("label", np.zeros(2), "label in .* float64"),
        ("key", np.asarray("k"), "key in .*must be strings"),
        ("split", np.zeros(2), "split in .*must be strings"),
    ],
)
def test_an_array_of_the_wrong_kind_is_named(tmp_path, name, value, match):
    good = {"image": np.zeros((2, 4, 4, 3), np.uint8), "label": np.arange(2), "year": np.int32(7)}
    np.savez(tmp_path / "a.npz", **good)
    assert len(read_npz(tmp_path / "a.npz", conditioning="label")) == 2
    np.savez(tmp_path / "a.npz", **good | {name: value})
    with pytest.raises(ValueError, match=match):
        read_npz(tmp_path / "a.npz", conditioning="label")


@pytest.mark.parametrize("captions", ["[[1]]", "3", '[["a"]]', "[[[2, 1.0]]]", "[[]]", "[", "\x00"])
def test_captions_of_another_layout_are_named(tmp_path, captions):
    text = np.frombuffer(captions.encode(), np.uint8)
    np.savez(tmp_path / "a.npz", image=np.zeros((1, 4, 4, 3), np.uint8), captions=text)
    with pytest.raises(ValueError, match="captions in"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_corrupted_npz_file_raises_nothing_but_value_errors(tmp_path, rng, save):
    path = tmp_path / "a.npz"
    image = rng.integers(0, 256, (3, 4, 4, 3), np.uint8)
    captions = np.frombuffer(json.dumps([[["a", 1.0]]] * 3).encode(), np.uint8)
    save(path, image=image, captions=captions, label=np.arange(3), key=np.asarray(["a", "b", "c"]))
    whole, refused = np.fromfile(path, np.uint8), 0
    for _ in range(300):
        damaged = whole.copy()
        where = rng.integers(0, len(whole), rng.integers(1, 5))
        damaged[where] = rng.integers(0, 256, len(where))
        damaged[: len(whole) if rng.random() < 0.8 else rng.integers(len(whole))].tofile(path)
        try:
            read_npz(path, conditioning="text" if rng.random() < 0.5 else "label")
        except (ValueError, OSError):
            refused += 1
    assert refused > 200
