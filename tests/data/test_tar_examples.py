"""Which members of a tar are examples: as webdataset groups them, without what is said of a set."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import Loader, read_tar
from imagen_jax.data.sources import BrokenExample
from tests.data.shard_files import add, grey, image

INFO = json.dumps({"size": 60}).encode()


def write(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def colour(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (4 * number, 90, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_a_shard_says_of_itself_is_no_example(tmp_path, caplog):
    """A shard as many are published: its description lies among its images."""
    members = {"README.md": b"# about this set", "LICENSE": b"terms", "dataset_info.json": INFO}
    for i in range(60):
        members |= {f"{i:05d}.png": colour(i), f"{i:05d}.txt": f"colour {i}".encode()}
    source = read_tar(write(tmp_path / "shard.tar", members))
    assert len(source) == 60
    for row in (0, 59):
        example = source[row]
        assert example["captions"] == [(f"colour {row}", 1.0)]
        np.testing.assert_array_equal(np.asarray(example["image"])[0, 0], [4 * row, 90, 120])
    line = "3 other files, which are no examples: README.md, LICENSE, dataset_info.json"
    assert caplog.messages == [line]
    caplog.clear()
    tokens = np.zeros((20, 1), np.int32)
    loader = Loader(source, 20, 8, tokenize=lambda texts: (tokens, tokens > 0))
    for step in range(6):
        loader.batch(step)
    assert not loader.damage.broken
    read_tar(tmp_path / "shard.tar")  # from the index that is kept
    assert caplog.messages == [line]


@pytest.mark.parametrize(
    "name",
    [
        *("README", "README.txt", "License.TXT", "sub/README.md", "CITATION.cff", "stats.parquet"),
        *("dataset_info.json", "__index__", "__meta__/keys.json", "labels.txt", "drawing.svg"),
        *("Thumbs.db", "._0000.jpg", ".DS_Store", "0000.heic"),
    ],
)
def test_other_files_are_no_broken_examples(tmp_path, name):
    members = {name: b"some text", "a.jpg": image(3), "a.txt": b"a"}
    source = read_tar(write(tmp_path / "a.tar", members))
    assert [source.index.key(row) for row in range(len(source))] == ["a.tar/a"]
    assert not source.index.faults


@pytest.mark.parametrize(
    ("members", "options"),
    [
        ({"b.txt": b"lost"}, {}),
        ({"b.cls": b"3"}, {}),
        ({"b.json": b'{"caption": "lost"}'}, {"text": "json.caption"}),
        ({"b.heic": b"...", "b.txt": b"not read"}, {}),
    ],
)
def test_a_caption_or_label_without_its_image_is_broken(tmp_path, members, options):
    members = {**members, "a.jpg": image(3), "a.txt": b"a", "a.json": b'{"caption": "a"}'}
    source = read_tar(write(tmp_path / "a.tar", members), **options)
    assert len(source) == 2
    with pytest.raises(BrokenExample, match=r"a\.tar/b: has no image, only"):
        source[0]


def test_a_readme_in_each_of_two_joined_tars_is_no_example(tmp_path):
    path = tmp_path / "a.tar"
    parts = [{"README.md": b"x", f"{n}.jpg": image(n), f"{n}.txt": b"n"} for n in range(2)]
    whole = b"".join(write(path, part).read_bytes() for part in parts)
    path.write_bytes(whole)
    source = read_tar(path)
    assert [grey(source[row]["image"]) for row in range(len(source))] == [0, 1]


def test_a_key_ends_at_the_first_dot_as_in_webdataset(tmp_path, caplog):
    members = {
        "photo.v2.jpg": image(1),
        "photo.v2.txt": b"second version",
        "set.1/photo.JPG": image(2),  # a dot in a folder is none of the name
        "set.1/photo.txt": b"in a folder",
        "mask.seg.png": image(3, kind="PNG"),
        "mask.jpg": image(4),  # just .jpg: the image, though it comes second
        "mask.txt": b"with a mask",
        "burst.2.jpg": image(5),
        "burst.1.jpg": image(6),
        "burst.txt": b"two",
    }
    source = read_tar(write(tmp_path / "a.tar", members))
    examples = [source[row] for row in range(len(source))]
    assert [(e["key"], grey(e["image"]), e["captions"][0][0]) for e in examples] == [
        ("a.tar/photo", 1, "second version"),
        ("a.tar/set.1/photo", 2, "in a folder"),
        ("a.tar/mask", 4, "with a mask"),
        ("a.tar/burst", 5, "two"),
    ]
    (line,) = caplog.messages
    assert line.startswith("1 examples with several images, of which the first counts: a key ends")
    assert line.endswith("burst (2.jpg, 1.jpg)")
