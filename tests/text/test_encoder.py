"""Tokenizers, the text encoder's round trip through JSON, and the null text."""

import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.commands import train_tokenizer
from imagen_jax.models import t5
from imagen_jax.text import encoder as text

CAPTIONS = [
    "grinning cat: smiling, cat face",
    "red heart, heart, symbol",
    "man judge: medium skin tone",
    "woman judge: dark skin tone",
    "a dog and a cat",
]


def tiny(tokenizer, max_length=16, vocab_size=300) -> text.TextEncoder:
    config = t5.T5Config(
        vocab_size=vocab_size, d_model=16, num_heads=2, head_dim=8, num_layers=1, d_ff=24
    )
    return text.TextEncoder(config, tokenizer, max_length)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    path.write_bytes(train_tokenizer.train_tokenizer(CAPTIONS, vocab_size=400))
    return path


def test_bytes_are_those_of_byt5():
    transformers = pytest.importorskip("transformers")
    prompts = ["a cat", "", "猫と犬 🐈", "naïve café"]
    ids, mask = text.tokenize(tiny(text.ByteTokenizer(), max_length=40), prompts)
    theirs = transformers.ByT5Tokenizer()(
        prompts, padding="max_length", max_length=40, truncation=True
    )
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, np.asarray(theirs["attention_mask"], bool))


def test_ids_end_with_eos_then_pads():
    ids, mask = text.tokenize(tiny(text.ByteTokenizer(), max_length=6), ["ab", ""])
    assert ids.dtype == np.int32
    assert ids.tolist() == [[100, 101, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 3 + [False] * 3, [True] + [False] * 5]


def test_sentencepiece_ids(model_file):
    import sentencepiece

    tokenizer = text.SentencePieceTokenizer(str(model_file))
    ids, mask = text.tokenize(tiny(tokenizer), ["Grinning CAT", "犬"])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for prompt, row, valid in zip(["grinning cat", "犬"], ids, mask, strict=True):
        assert row[valid].tolist() == [*processor.encode(prompt), 1]
        assert not row[~valid].any()
    assert 2 not in ids  # an unseen character falls back to bytes


def test_trained_pieces_are_words(model_file):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    pieces = processor.encode("woman judge: medium skin tone", out_type=str)
    assert pieces == ["▁woman", "▁judge", ":", "▁medium", "▁skin", "▁tone"]


def test_training_a_tokenizer_is_deterministic(model_file):
    shuffled = [*reversed(CAPTIONS), CAPTIONS[0]]
    assert train_tokenizer.train_tokenizer(shuffled, vocab_size=400) == model_file.read_bytes()


def test_chinese_words_are_pieces(tmp_path):
    pytest.importorskip("jieba")
    path = tmp_path / "words.model"
    captions = [*CAPTIONS, "男法官: 中等肤色", "红色的心", "女法官", "红色"]
    path.write_bytes(train_tokenizer.train_tokenizer(captions, vocab_size=400))
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert processor.encode("红色法官", out_type=str) == ["▁", "红色", "法官"]


def test_a_long_prompt_is_cut_with_a_warning():
    encoder = tiny(text.ByteTokenizer(), max_length=5)
    with pytest.warns(UserWarning, match="'abcdef' has 6 tokens; the first 4"):
        ids, mask = text.tokenize(encoder, ["abcdef"])
    assert ids.tolist() == [[100, 101, 102, 103, 1]]
    assert mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.tokenize(encoder, ["abcd"])
        text.tokenize(encoder, ["abcdef"], warn=False)


def test_lone_surrogates_are_replaced(model_file):
    for tokenizer in (text.ByteTokenizer(), text.SentencePieceTokenizer(str(model_file))):
        assert text.token_ids(tokenizer, ["a\ud83d"]) == text.token_ids(tokenizer, ["a?"])


def test_one_string_is_not_a_list_of_prompts():
    with pytest.raises(ValueError, match="list of strings"):
        text.tokenize(tiny(text.ByteTokenizer()), "a cat")


def test_embeddings_do_not_depend_on_the_batch(key):
    encoder = tiny(text.ByteTokenizer())
    params = jax.jit(t5.init, static_argnums=0)(encoder.config, key)
    alone = text.encode(encoder, params, ["a cat"])
    together = text.encode(encoder, params, ["a long dog", "a cat", ""])
    assert alone.values.shape == (1, 16, 16)
    assert alone.values.dtype == jnp.float32
    np.testing.assert_allclose(alone.values[0], together.values[1], atol=1e-6)
    np.testing.assert_array_equal(together.mask.sum(1), [11, 6, 1])


def test_null_text_is_zero_and_attends_to_its_first_position():
    null = text.null_text(3, 7, 5)
    assert null.values.shape == (3, 7, 5)
    assert not null.values.any()
    assert null.mask.tolist() == [[True] + [False] * 6] * 3


def test_json_round_trip(model_file, tmp_path):
    encoder = tiny(text.SentencePieceTokenizer(str(model_file)), max_length=9)
    text.copy_tokenizer(encoder.tokenizer, tmp_path)
    read = text.from_dict(json.loads(json.dumps(text.to_dict(encoder))), tmp_path)
    assert (read.config, read.max_length) == (encoder.config, 9)
    np.testing.assert_array_equal(
        text.tokenize(read, CAPTIONS, warn=False)[0],
        text.tokenize(encoder, CAPTIONS, warn=False)[0],
    )
    text.copy_tokenizer(read.tokenizer, tmp_path)  # onto itself: nothing to do

    by_bytes = tiny(text.ByteTokenizer())
    assert text.from_dict(text.to_dict(by_bytes), tmp_path) == by_bytes


def test_json_with_unknown_keys_is_refused(tmp_path):
    values = text.to_dict(tiny(text.ByteTokenizer()))
    with pytest.raises(ValueError, match="max_len"):
        text.from_dict({**values, "max_len": 3}, tmp_path)
    with pytest.raises(ValueError, match="depth"):
        text.from_dict({**values, "config": {**values["config"], "depth": 3}}, tmp_path)
    with pytest.raises(ValueError, match="'words'"):
        text.from_dict({**values, "tokenizer": "words"}, tmp_path)


def test_too_small_a_vocabulary_is_named(model_file):
    text.check_vocabulary(tiny(text.ByteTokenizer(), vocab_size=259))
    with pytest.raises(ValueError, match="vocab_size is 258"):
        text.check_vocabulary(tiny(text.ByteTokenizer(), vocab_size=258))
    with pytest.raises(ValueError, match="vocab_size is 20"):
        text.check_vocabulary(tiny(text.SentencePieceTokenizer(str(model_file)), vocab_size=20))


def test_bad_model_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.model"):
        text.vocab_size(text.SentencePieceTokenizer(str(tmp_path / "absent.model")))
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.model"):
        text.vocab_size(text.SentencePieceTokenizer(str(tmp_path / "bad.model")))


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    import sentencepiece

    with open(tmp_path / "other.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS),
            model_writer=file,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    with pytest.raises(ValueError, match="pad id -1 and eos id 2"):
        text.vocab_size(text.SentencePieceTokenizer(str(tmp_path / "other.model")))


def test_importing_text_is_light():
    heavy = ["torch", "tensorflow", "sentencepiece", "transformers"]
    code = f"import imagen_jax.text, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"
