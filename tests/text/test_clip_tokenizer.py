"""CLIP's tokenizer against transformers', on a vocabulary learned here."""

import json

import numpy as np
import pytest

from imagen_jax.text.clip_tokenizer import END, START, tokenize

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "A photo of a corgi wearing sunglasses",
    "",
    "  two\tspaces\n and  a newline ",
    "it's the dog's 123rd toy, isn't it?!",
    "Café über naïve — 中文字 и кириллица 🎉👩🏽‍🚒",
    "e\u0301 decomposed, and NFC: é",
    "a caption that ends <|endoftext|> in the middle",
    "word " * 100,
    "don't WE'LL they've",
]
LENGTH = 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """vocab.json and merges.txt as a CLIP model has them: bytes, bytes that end a word, merges."""
    place = tmp_path_factory.mktemp("clip")
    corpus = [text.lower() for text in TEXTS if "<|" not in text] * 3
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(corpus, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    names += [first + second for first, second in merges]
    ids = {name: number for number, name in enumerate(dict.fromkeys([*names, START, END]))}
    (place / "vocab.json").write_text(json.dumps(ids))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (place / "merges.txt").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def theirs(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizer.from_pretrained(directory)


def size(directory) -> int:
    return len(json.loads((directory / "vocab.json").read_text()))


@pytest.mark.filterwarnings("ignore:CLIP reads")
@pytest.mark.parametrize("form", ["vocab.json and merges.txt", "tokenizer.json"])
def test_ids_are_transformers(directory, theirs, form, tmp_path):
    if form == "tokenizer.json":
        theirs.backend_tokenizer.save(str(tmp_path / form))
    source = tmp_path if form == "tokenizer.json" else directory
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    ours = tokenize(source, size(directory), LENGTH, TEXTS)
    np.testing.assert_array_equal(ours, expected)
    assert len({tuple(row) for row in ours}) == len(TEXTS)


def test_a_long_caption_is_cut_with_a_warning(directory):
    long, said = "many many words in a row", r"6 tokens and cuts 1 of 2 captions \(50.0%\), .*many"
    with pytest.warns(UserWarning, match=said):
        row, _ = tokenize(directory, size(directory), 8, [long, "a"])
    vocabulary = json.loads((directory / "vocab.json").read_text())
    assert row[0] == vocabulary[START]
    assert row[-1] == vocabulary[END]


def test_faults_are_named(directory, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer: neither tokenizer\.json"):
        tokenize(tmp_path, 600, LENGTH, ["a"])
    with pytest.raises(ValueError, match="but the model has 20 tokens"):
        tokenize(directory, 20, LENGTH, ["a"])
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not CLIP's tokenizer"):
        tokenize(tmp_path, 600, LENGTH, ["a"])
    surrogate = tokenize(directory, size(directory), LENGTH, ["\ud800 alone", "? alone"])
    np.testing.assert_array_equal(*surrogate)
