"""Lists of words: what is found in a prompt, in several scripts, and what a list may be."""

import pytest

from imagen_jax.text import word_list
from imagen_jax.text.word_list import WordList, _pattern, normalized, read_word_list


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("gun", "A GUN."),
        ("gun", "a ｇｕｎ"),  # full-width letters
        ("gun", "gu\u200bn and g\u00adun"),  # a zero-width space, a soft hyphen
        ("gun", "gun_shop"),
        ("gun", "画gun图"),
        ("straße", "STRASSE"),
        ("hand gun", "a hand-gun, a hand  gun"),
        ("hand gun", "hand\n_gun_"),
        ("手枪", "一把手枪在桌上"),
        ("手枪", "手\u200d枪"),
        ("ガン", "ｶﾞﾝ"),  # half-width kana
        ("총", "총을"),
        ("c++", "in C++ code"),
        ("🔫", "a🔫b"),
        ("café", "cafe\u0301"),
        ("ﬁle", "file"),
    ],
)
def test_found(entry, text):
    assert WordList((entry,)).found_in(text) == [entry]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("gun", "begun, guns, gun2"),
        ("gun", "Gunther"),
        ("hand gun", "handgun"),
        ("cafe", "café"),
        ("क", "का"),  # a letter with another vowel
        ("手枪", "手和枪"),
        ("gun", "g u n"),  # these are said not to be found
        ("gun", "gυn"),  # a Greek letter
        ("gun", ""),
    ],
)
def test_not_found(entry, text):
    assert WordList((entry,)).found_in(text) == []


def test_all_that_are_found_are_named_in_order():
    words = WordList(("red", "red heart", "blue", "heart"))
    assert words.found_in("A red  heart") == ["red", "red heart", "heart"]


def test_normalizing_twice_changes_nothing():
    for text in ("Straße ﬁ ｶﾞ", "İstanbul ǅ", "a\u200b\u0301", "\u1e9e ẛ̣"):
        assert normalized(normalized(text)) == normalized(text)


def test_a_long_list_is_quick_enough(monkeypatch):
    """Ten thousand entries, one of which stands in the prompt: one pattern is compiled."""
    words = WordList(tuple(f"red word{n}" for n in range(10_000)))
    compiled = []
    monkeypatch.setattr(
        word_list, "_pattern", lambda words: compiled.append(words) or _pattern(words)
    )
    assert words.found_in("a red heart, a red word9999" * 100) == ["red word9999"]
    assert len(compiled) <= 4  # word9, word99 and word999 are parts of it


def test_lists_are_files_of_lines(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeff# a comment\n\n  gun \r\n手枪\n".encode())
    words = read_word_list(file)
    assert words.entries == ("gun", "手枪")
    file.write_text("gun\n")
    assert read_word_list(file).fingerprint != words.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# only\n", "has no words in it"),
        (b"a\xff\n", "not in UTF-8"),
        ("a\n\u200b\n".encode(), "nothing that can be seen"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_word_list(tmp_path / "words.txt")
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_word_list(tmp_path / "none.txt")
