"""A small tokenizer for the tests of this folder."""

import pytest

from imagen_jax.text.tokenizer_training import train_tokenizer

CAPTIONS = [
    "grinning cat: smiling, cat face",
    "red heart, heart, symbol",
    "man judge: medium skin tone",
    "woman judge: dark skin tone",
    "a dog and a cat",
]


@pytest.fixture(scope="session")
def captions():
    return CAPTIONS


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    path.write_bytes(train_tokenizer(CAPTIONS, vocab_size=400))
    return path
