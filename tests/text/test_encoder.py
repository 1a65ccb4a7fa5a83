"""Prompts to ids and embeddings, the text encoder's round trip through JSON, and the null text."""

import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models import t5
from imagen_jax.pipeline.generation import encode_prompts
from imagen_jax.text import encoder as text
from imagen_jax.text.tokenizers import ByteTokenizer, SentencePieceTokenizer, copy_tokenizer


def tiny(tokenizer, max_length=16, vocab_size=300) -> text.TextEncoder:
    config = t5.T5Config(
        vocab_size=vocab_size, d_model=16, num_heads=2, head_dim=8, num_layers=1, d_ff=24
    )
    return text.TextEncoder(config, tokenizer, max_length)


def test_bytes_are_those_of_byt5():
    transformers = pytest.importorskip("transformers")
    prompts = ["a cat", "", "猫と犬 🐈", "naïve café"]
    ids, mask = text.tokenize(tiny(ByteTokenizer(), max_length=40), prompts)
    theirs = transformers.ByT5Tokenizer()(
        prompts, padding="max_length", max_length=40, truncation=True
    )
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, np.asarray(theirs["attention_mask"], bool))


def test_ids_end_with_eos_then_pads():
    ids, mask = text.tokenize(tiny(ByteTokenizer(), max_length=6), ["ab", ""])
    assert ids.dtype == np.int32
    assert ids.tolist() == [[100, 101, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 3 + [False] * 3, [True] + [False] * 5]


def test_sentencepiece_ids(model_file):
    import sentencepiece

    tokenizer = SentencePieceTokenizer(str(model_file))
    ids, mask = text.tokenize(tiny(tokenizer), ["Grinning CAT", "犬"])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for prompt, row, valid in zip(["grinning cat", "犬"], ids, mask, strict=True):
        assert row[valid].tolist() == [*processor.encode(prompt), 1]
        assert not row[~valid].any()
    assert 2 not in ids  # an unseen character falls back to bytes


def test_characters_that_a_tokenizer_does_not_know_are_told(tmp_path, captions):
    """As Chinese in T5's, whose model has no bytes to fall back to."""
    import sentencepiece

    with open(tmp_path / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=file,
            model_type="char",
            vocab_size=30,
            hard_vocab_limit=False,
            **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
            minloglevel=2,
        )
    encoder = tiny(SentencePieceTokenizer(str(tmp_path / "spiece.model")))
    said = r"^Has characters that .* not know: 2 of 3 prompts \(66\.7%\), the first '红苹果'\.$"
    with pytest.warns(text.ShortenedWarning, match=said):
        text.tokenize(encoder, ["a cat", "红苹果", "a 猫"])
    with warnings.catch_warnings(action="error"):
        text.tokenize(encoder, ["a cat"])
        text.tokenize(tiny(ByteTokenizer()), ["红苹果"])


def test_a_long_prompt_is_cut_with_a_warning():
    encoder = tiny(ByteTokenizer(), max_length=5)
    said = r"Cut to 4 tokens: 1 of 1 prompts \(100.0%\), the first 'abcdef' of 6\.$"
    with pytest.warns(text.ShortenedWarning, match=said):
        ids, mask = text.tokenize(encoder, ["abcdef"])
    assert ids.tolist() == [[100, 101, 102, 103, 1]]
    assert mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.tokenize(encoder, ["abcd"])
        text.tokenize(encoder, ["abcdef"], text.Shortened(4))


def test_a_thousand_long_prompts_are_one_warning():
    encoder = tiny(ByteTokenizer(), max_length=9)
    with pytest.warns(text.ShortenedWarning) as caught:
        text.tokenize(encoder, ["short"] * 600 + [f"a long one, {i}" for i in range(400)])
    (warning,) = caught
    assert str(warning.message) == (
        "Cut to 8 tokens: 400 of 1000 prompts (40.0%), the first 'a long one, 0' of 13."
    )
    params = jax.jit(t5.init, static_argnums=0)(encoder.config, jax.random.key(0))
    with pytest.warns(text.ShortenedWarning, match="1 of 5 prompts") as caught:
        encoded = encode_prompts(encoder, params, ["a", "bc", "a long one", "d", "ef"], 2)
    assert len(caught) == 1
    alone = text.encode(encoder, params, ["ef"])
    np.testing.assert_allclose(encoded.values[-1:], alone.values, atol=1e-6)
    np.testing.assert_array_equal(encoded.mask.sum(1), [2, 3, 9, 2, 3])


def test_one_string_is_not_a_list_of_prompts():
    with pytest.raises(ValueError, match="list of strings"):
        text.tokenize(tiny(ByteTokenizer()), "a cat")


def test_embeddings_do_not_depend_on_the_batch(key):
    encoder = tiny(ByteTokenizer())
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


def test_json_round_trip(model_file, tmp_path, captions):
    encoder = tiny(SentencePieceTokenizer(str(model_file)), max_length=9)
    copy_tokenizer(encoder.tokenizer, tmp_path)
    read = text.from_dict(json.loads(json.dumps(text.to_dict(encoder))), tmp_path)
    assert (read.config, read.max_length) == (encoder.config, 9)
    np.testing.assert_array_equal(
        text.tokenize(read, captions)[0],
        text.tokenize(encoder, captions)[0],
    )
    copy_tokenizer(read.tokenizer, tmp_path)  # onto itself: nothing to do

    by_bytes = tiny(ByteTokenizer())
    assert text.from_dict(text.to_dict(by_bytes), tmp_path) == by_bytes


def test_json_with_unknown_keys_is_refused(tmp_path):
    values = text.to_dict(tiny(ByteTokenizer()))
    with pytest.raises(ValueError, match="max_len"):
        text.from_dict({**values, "max_len": 3}, tmp_path)
    with pytest.raises(ValueError, match="depth"):
        text.from_dict({**values, "config": {**values["config"], "depth": 3}}, tmp_path)
    for field in ("tokenizer", "null", "padding", "caption"):
        with pytest.raises(ValueError, match=rf"'text_encoder\.{field}' is 'odd'"):
            text.from_dict({**values, field: "odd"}, tmp_path)


@pytest.mark.parametrize("field", ["null", "padding", "caption"])
def test_unknown_choices_are_named(field):
    encoder = tiny(ByteTokenizer())
    object.__setattr__(encoder, field, "odd")  # where annotations are not checked, as they are here
    with pytest.raises(ValueError, match=rf"TextEncoder\.{field} is 'odd'; it can be "):
        encoder.__post_init__()


def test_too_small_a_vocabulary_is_named(model_file):
    text.check_vocabulary(tiny(ByteTokenizer(), vocab_size=259))
    with pytest.raises(ValueError, match="vocab_size is 258"):
        text.check_vocabulary(tiny(ByteTokenizer(), vocab_size=258))
    with pytest.raises(ValueError, match="vocab_size is 20"):
        text.check_vocabulary(tiny(SentencePieceTokenizer(str(model_file)), vocab_size=20))


def test_importing_text_is_light():
    heavy = ["torch", "tensorflow", "sentencepiece", "transformers"]
    code = f"import imagen_jax.text, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"
