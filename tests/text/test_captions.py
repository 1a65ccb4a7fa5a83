"""Prompts prepared as diffusers prepares them for DeepFloyd IF."""

import sys

import numpy as np
import pytest

from imagen_jax.models.t5 import T5Config
from imagen_jax.text import encoder as text
from imagen_jax.text.captions import clean_caption, prepare_caption
from imagen_jax.text.tokenizers import ByteTokenizer, SentencePieceTokenizer

PROMPTS = [
    "A photo of a Kangaroo wearing an orange hoodie!",
    "  Two   DOGS   ",
    "<p>Hello&nbsp;<b>world</b></p> &amp; more &quot;quotes&quot;",
    "see https://example.com/a_b?c=1 or www.shop.co.uk/item now, mail me@host.org",
    "www:site page 12 of 30, 3.5x4 cm 10х20 10×20",
    "this-is-my-cute_cat_with-dashes",
    "a-b_c is short",
    "SKU jc6640 jc6640vc 6640vc231 j2d1a2a 123456 #12 #12345 #1234",
    "free shipping worldwide free shipping! Click here for Details, click on This",
    "image.PNG image.jpg images png images free download",
    "【AUSVERKAUFT】***sale*** (50%) {now} [here] | a\\b / c",
    "“curly” ‘quotes’ «guillemets» — dash – dash ‐ dash",
    "一只红色的猫 and a cat ㈱ カ",
    "cafÃ© na\\nive 192.168.0.1 at 5:30 ",
    "'quoted all over'",
    "...dots.. and . lone dot",
    "%41%20encoded+plus <person> @someone",
    "",
    "-",
    ".hidden",
    "ends with dash-",
    '""""many"""" \'\'quotes\'\'',
    "one,two.three/four : five",
]


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("ftfy", reason="cleaning needs it")
    pytest.importorskip("bs4", reason="cleaning needs it")
    tiny = pytest.importorskip("tiny_deepfloyd", reason="the reference is in the extra 'parity'")
    return tiny


def test_prompts_are_cleaned_as_diffusers_does(reference):
    pipeline = object.__new__(reference.diffusers.IFPipeline)
    for prompt in PROMPTS:
        assert [clean_caption(prompt)] == pipeline._text_preprocessing(prompt, clean_caption=True)
        lowered = pipeline._text_preprocessing(prompt, clean_caption=False)
        assert [prepare_caption(prompt, "lower")] == lowered


def test_random_prompts_are_cleaned_as_diffusers_does(reference, rng):
    pipeline = object.__new__(reference.diffusers.IFPipeline)
    pieces = [*"aZ1 .,-_:;#@&<>\"'()[]/\\|*%+", *"“’—一㈱кх×é", " ", "\n", "www.", ".com", ".png"]
    pieces += [" shipping", "free ", " page 3", "&amp;", "&lt;", "click for ", "12345", "x2"]
    for _ in range(300):
        prompt = "".join(rng.choice(pieces, rng.integers(1, 20)))
        assert [clean_caption(prompt)] == pipeline._text_preprocessing(prompt, clean_caption=True)


@pytest.mark.filterwarnings("ignore")  # prompts of which nothing is left, or too much
def test_prompts_have_the_tokens_that_diffusers_gives_them(reference, tmp_path):
    place = reference.write_tokenizer(tmp_path)
    theirs = reference.transformers.T5Tokenizer.from_pretrained(place, extra_ids=0)
    pipeline = object.__new__(reference.diffusers.IFPipeline)
    tokenizer = SentencePieceTokenizer(str(place / "spiece.model"))
    config = T5Config(vocab_size=99, d_model=8, num_heads=1, head_dim=8, num_layers=1, d_ff=8)
    prompts = [*PROMPTS, "a red cat " * 40]
    for caption in ("clean", "lower"):
        encoder = text.TextEncoder(config, tokenizer, 77, caption=caption)
        ids, mask = text.tokenize(encoder, prompts)
        wanted = theirs(
            pipeline._text_preprocessing(prompts, clean_caption=caption == "clean"),
            padding="max_length", max_length=77, truncation=True,
        )  # fmt: skip
        np.testing.assert_array_equal(ids, wanted["input_ids"])
        np.testing.assert_array_equal(mask, np.asarray(wanted["attention_mask"], bool))


def test_without_the_packages_prompts_are_lowered(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    monkeypatch.setitem(sys.modules, "bs4", None)
    with pytest.warns(UserWarning, match=r"needs \w+ \(pip install 'imagen_jax\[captions\]'\)"):
        assert prepare_caption(" A <b>Cat</b> ", "clean") == "a <b>cat</b>"
    assert prepare_caption(" A Cat ", None) == " A Cat "


def test_prompts_of_which_nothing_is_left_are_one_warning(reference):
    config = T5Config(vocab_size=300, d_model=8, num_heads=1, head_dim=8, num_layers=1, d_ff=8)
    encoder = text.TextEncoder(config, ByteTokenizer(), 77, caption="clean")
    said = r"Nothing is left after cleaning: 2 of 4 prompts \(50.0%\), the first '红苹果'\.$"
    with pytest.warns(text.ShortenedWarning, match=said) as caught:
        ids, _ = text.tokenize(encoder, ["红苹果", "a cat", "猫", " "])
    assert len(caught) == 1
    assert (ids[:, 0] == 1).tolist() == [True, False, True, True]
