"""Embedded captions come back as they were written, for the example and the caption they are of."""

import dataclasses
import os

import ml_dtypes
import numpy as np
import pytest

from imagen_jax.data import ArraySource, BrokenExample, Loader
from imagen_jax.data.embeddings import (
    Manifest,
    check_fingerprint,
    pack,
    read_embedded,
    read_manifest,
    shard_path,
    write_manifest,
)
from imagen_jax.data.records import array_records
from imagen_jax.data.shard_writing import write_records

WIDTH, LENGTH = 4, 6
FINGERPRINT = {"weights": "aa", "tokenizer": "bytes", "encoder": {"d_model": WIDTH}}


def make_source(count=7):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    captions = [[(f"{i}.{j}", 1.0 + j) for j in range(1 + i % 3)] for i in range(count)]
    return ArraySource(images, captions, keys=[f"key {i}" for i in range(count)])


def tokens_of(caption: str) -> np.ndarray:
    """An embedding that is told apart from every other caption's."""
    i, j = map(int, caption.split("."))
    return np.full((1 + i % 5, WIDTH), 8 * i + j, ml_dtypes.bfloat16)


def write(directory, source, **changes):
    manifest = Manifest(len(source), 3, LENGTH, WIDTH, "float32", FINGERPRINT)
    manifest = dataclasses.replace(manifest, **changes)
    write_manifest(directory, manifest)
    for number in range(manifest.shards):
        rows = range(3 * number, min(3 * number + 3, len(source)))
        captions = [source[row]["captions"] for row in rows]
        records = [
            pack(source[row]["key"], texts, [tokens_of(text) for text, _ in texts])
            for row, texts in zip(rows, captions, strict=True)
        ]
        write_records(shard_path(directory, manifest, number), records)
    return manifest


def test_every_caption_has_its_own_embedding(tmp_path):
    source = make_source()
    assert write(tmp_path, source) == read_manifest(tmp_path)
    embedded = read_embedded(source, tmp_path)
    for i in (6, 0, 3, 1, 6):
        plain, example = source[i], embedded[i]
        assert len(example["captions"]) == len(plain["captions"])
        for (text, weight), (embedding, same) in zip(
            plain["captions"], example["captions"], strict=True
        ):
            assert weight == same
            values, mask = embedding.padded()
            expected = tokens_of(text)
            assert values.dtype == ml_dtypes.bfloat16
            assert values.shape == (LENGTH, WIDTH)
            np.testing.assert_array_equal(values[mask], expected)
            assert mask.sum() == len(expected)
            assert not values[~mask].any()


def test_the_loader_draws_the_captions_that_it_draws_of_texts(tmp_path):
    source = make_source()
    write(tmp_path, source)
    loader = Loader(read_embedded(source, tmp_path), 5, 4, seed=3)
    drawn = []

    def tokenize(captions):
        drawn.append(captions)
        return np.zeros((5, 1)), np.ones((5, 1), bool)

    plain = Loader(source, 5, 4, seed=3, tokenize=tokenize)
    for step in range(6):
        batch, same = loader.batch(step), plain.batch(step)
        np.testing.assert_array_equal(batch["image"], same["image"])
        firsts = [tokens_of(caption)[0] for caption in drawn[-1]]
        np.testing.assert_array_equal(batch["text"][:, 0], firsts)
        assert batch["text"].shape == (5, LENGTH, WIDTH)
        assert batch["mask"].sum(1).tolist() == [len(tokens_of(text)) for text in drawn[-1]]


def test_embeddings_of_another_set_are_refused(tmp_path):
    source = make_source()
    write(tmp_path, source)
    with pytest.raises(ValueError, match="of 7 examples, and the set has 5"):
        read_embedded(make_source(5), tmp_path)
    renamed = dataclasses.replace(source, keys=[f"other {i}" for i in range(7)])
    with pytest.raises(ValueError, match="is of 'key 2', but example 2 is 'other 2'"):
        read_embedded(renamed, tmp_path)[2]
    captions = [[("new", 1.0)]] * 7
    with pytest.raises(ValueError, match="its captions have changed"):
        read_embedded(dataclasses.replace(source, captions=captions), tmp_path)[2]


def test_what_was_made_otherwise_is_named(tmp_path):
    source = make_source()
    manifest = write(tmp_path, source)
    write_manifest(tmp_path, manifest)  # the same again goes on
    with pytest.raises(ValueError, match=r"shard_size 3 there, 4 here"):
        write_manifest(tmp_path, dataclasses.replace(manifest, shard_size=4))
    check_fingerprint(tmp_path, FINGERPRINT)
    check_fingerprint(tmp_path, {**FINGERPRINT, "weights": None})  # not said which
    other = {**FINGERPRINT, "tokenizer": "sentencepiece 12", "encoder": {"d_model": 8}}
    with pytest.raises(ValueError, match=r"encoder/d_model 4 there, 8 here; tokenizer "):
        check_fingerprint(tmp_path, other)
    with pytest.raises(ValueError, match=r"imagen-jax embed_text makes them"):
        check_fingerprint(tmp_path / "none", FINGERPRINT)


def test_a_missing_shard_is_named(tmp_path):
    source = make_source()
    manifest = write(tmp_path, source)
    shard_path(tmp_path, manifest, 1).unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 3 shards, the first embeddings-00001-of-"):
        read_embedded(source, tmp_path)


def test_a_shard_that_another_process_writes_is_left_to_it(tmp_path):
    path = tmp_path / "shard"

    def records():
        with pytest.raises(ValueError, match=f"another process is writing {path}"):
            write_records(path, [b"second"])
        yield b"first"

    (tmp_path / ".shard.half").write_bytes(b"left by a killed process" * 9999)
    write_records(path, records())
    assert list(array_records(str(path))) == [b"first"]
    assert os.listdir(tmp_path) == ["shard"]


def test_what_could_not_be_read_is_broken(tmp_path):
    source = make_source(3)
    manifest = write(tmp_path, source)
    path = shard_path(tmp_path, manifest, 0)
    good = [pack(f"key {i}", source[i]["captions"], [tokens_of(f"{i}.0")]) for i in range(3)]
    write_records(path, [pack("key 0", [], []), good[1][:-3], good[2][:7]])
    embedded = read_embedded(source, tmp_path)
    for row in range(3):
        with pytest.raises(BrokenExample, match=f"{path.name}.{row}"):
            embedded[row]
