"""Captions of tar members: which lines they have, and names in two Unicode forms."""

import tarfile
import unicodedata

import pytest

from imagen_jax.data import read_tar
from imagen_jax.data.fields import to_captions
from tests.data.shard_files import add, image


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ("\ufeffa cat\r\n".encode(), "a cat"),
        (b"a cat\r\n\r\n  asleep \n", "a cat asleep"),
        ("a\u2028b\x85c\x0cd  e\tf\rg".encode(), "a\u2028b\x85c\x0cd  e\tf\rg"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_the_lines_of_a_caption_become_one_and_all_else_stays(content, caption):
    assert to_captions(content, "txt") == [(caption, 1.0)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_other_encodings_are_named(encoding):
    with pytest.raises(ValueError, match=r"its caption .*UTF-"):
        to_captions("café".encode(encoding), "txt")


def test_an_image_and_its_caption_meet_in_either_unicode_form(tmp_path):
    name = "é/ü"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, forms in enumerate([("NFC", "NFD"), ("NFD", "NFC")]):
            one, other = (f"{unicodedata.normalize(form, name)}{number}" for form in forms)
            add(tar, f"{one}.jpg", image(number, (16, 16), "JPEG"))
            add(tar, f"{other}.txt", f"no {number}".encode())
    source = read_tar(tmp_path / "0.tar")
    assert [(item["key"], item["captions"]) for item in source] == [
        (f"0.tar/{unicodedata.normalize('NFC', name)}{number}", [(f"no {number}", 1.0)])
        for number in range(2)
    ]


def test_captions_with_weights_are_pairs_or_two_lists():
    pairs = [("a cat", 0.75), ("cat", 0.25)]
    texts, weights = zip(*pairs, strict=True)
    for value in ([[*pair] for pair in pairs], {"text": [*texts], "weight": [*weights]}):
        assert to_captions(value, "json.captions") == pairs
    assert to_captions(["a cat", "cat"], "txt") == [("a cat", 1.0), ("cat", 1.0)]
    for wrong in ([["a cat", "b"]], [["a cat", 1], ["cat"]], [["a cat", True]], [[]]):
        with pytest.raises(ValueError, match="has no text"):
            to_captions(wrong, "txt")
