"""Words of a prompt and their tokens: pieces, bytes, Chinese, and what is cut off."""

from dataclasses import replace

import pytest

from imagen_jax.pipeline.loading import load_model
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizers import ByteTokenizer, token_ids, token_spans
from imagen_jax.text.words import find_words, prompt_words

PROMPTS = (
    "red heart, 3d style", "红色的心形，三维风格", "Café – naïve 🦄 thumbs-up", "don't  ｆｕｌｌ ",
    " a  heart ", "", "狗dog狗", "x" * 40,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_model("icons").cascade.encoder


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_token_has_its_place_in_the_prompt(encoder, prompt):
    for tokenizer in (encoder.tokenizer, ByteTokenizer()):
        (ids,), spans = token_ids(tokenizer, [prompt]), token_spans(tokenizer, prompt)
        assert len(spans) == len(ids)
        assert all(0 <= begin <= end <= len(prompt) for begin, end in spans)
        assert sorted(spans) == spans
        covered = {i for begin, end in spans for i in range(begin, end)}
        assert {i for i, sign in enumerate(prompt) if not sign.isspace()} <= covered


def test_pieces_are_joined_to_words(encoder):
    words = prompt_words(encoder, "red thumbs-up, Red 3d style don't")
    assert [word.text for word in words] == ["red", "thumbs-up", "3d", "style", "don't"]
    spans = token_spans(encoder.tokenizer, "red thumbs-up, Red 3d style don't")
    text = {word.text: "".join("red thumbs-up, Red 3d style don't"[slice(*spans[i])]
                               for i in word.tokens) for word in words}  # fmt: skip
    assert text == {"red": "red Red", "thumbs-up": " thumbs-up", "3d": "3d", "style": " style",
                    "don't": "don't"}  # fmt: skip
    tokens = [token for word in words for token in word.tokens]
    assert len(set(tokens)) == len(tokens)  # each of one word


def test_chinese_words_are_the_tokenizers(encoder):
    words = prompt_words(encoder, "红色的心形，三维风格")
    assert [word.text for word in words] == ["红色", "的", "心形", "三", "维", "风", "格"]
    (style,) = find_words(encoder, "红色的心形，三维风格", ["风格"])
    assert style.tokens == (*words[-2].tokens, *words[-1].tokens)
    in_bytes = replace(encoder, tokenizer=ByteTokenizer())
    words = prompt_words(in_bytes, "红 ok，心")
    assert [tuple(word) for word in words] == [
        ("红", (0, 1, 2)), ("ok", (4, 5)), ("心", (9, 10, 11)),
    ]  # fmt: skip


def test_words_are_asked_for_by_name(encoder):
    red, both = find_words(encoder, "a Red heart", ["red", "red heart"])
    assert red.text == "red"
    assert set(red.tokens) < set(both.tokens)
    (horse,) = find_words(encoder, "a 🦄", ["🦄"])
    assert len(horse.tokens) == 4  # bytes
    for word, message in (
        ("hart", r"has no word 'hart'; did you mean 'heart'\?"),
        ("art", "has no word 'art'"),
        (" ", "must be text that the prompt holds, not ' '"),
    ):
        with pytest.raises(ValueError, match=message):
            find_words(encoder, "a Red heart", [word])


def test_what_is_cut_off_is_no_word(encoder):
    prompt = " ".join(["red"] * encoder.max_length) + " heart"
    assert [word.text for word in prompt_words(encoder, prompt)] == ["red"]
    with pytest.raises(ValueError, match="'heart' comes after the 31 tokens of the prompt"):
        find_words(encoder, prompt, ["heart"])
