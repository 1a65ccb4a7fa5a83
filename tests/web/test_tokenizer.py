"""The page's tokenizer gives the ids that Python's sentencepiece gives."""

import io
import random
from pathlib import Path

import pytest
import sentencepiece

from imagen_jax.data import unicode_names
from imagen_jax.data.icon_captions import STYLE_WORDS, captions, styled
from imagen_jax.models.t5 import T5Config
from imagen_jax.pipeline.shipped import PRETRAINED
from imagen_jax.text.encoder import TextEncoder, tokenize
from imagen_jax.text.tokenizers import SentencePieceTokenizer
from tests.web.node import WEB, needs_node, run_node

pytestmark = needs_node
SPIECE = PRETRAINED / "icons/spiece.model"
# Blocks of Unicode in which normalization, spaces and widths of UTF-8 differ.
BLOCKS = [
    (0, 0x80), (0, 0x250), (0x300, 0x600), (0x900, 0xE00), (0x1100, 0x1200), (0x2000, 0x3400),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xF900, 0x10000), (0x1F000, 0x1FB00), (0, 0x110000),
]  # fmt: skip
HOSTILE = [
    "", " ", "\0", "a\0b", "\ufeff a", "▁", "▁▁a ▁", "  a  ", "ＡＢＣ　ａ", "ﬁ ﬂ", "\u3000 \u3000x",
    "a\u00a0 b", "\x85\x1d\u200b\u2028", "e\u0301" * 50, "\u1112\u1161\u11ab", "👩🏽‍🚀 🇫🇷",
    "<0x41> </s> <pad>", "x" * 3000, "\ud83d lone \udc00",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    """Other ones in every run; surrogates alone are among the hostile ones."""
    rng = random.Random()

    def letter() -> str:
        if rng.random() < 0.2:
            return rng.choice(" ▁")
        code = rng.randrange(*rng.choice(BLOCKS))
        return " " if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(letter() for _ in range(rng.randrange(40))) for _ in range(count)]


def ids_in_node(file: Path, texts: list[str]) -> list[list[int]]:
    return run_node(
        "tokenizer.js",
        "Tokenizer",
        {"file": str(file), "texts": texts},
        "const tokenizer = new Tokenizer(readFileSync(given.file));"
        "return given.texts.map((text) => tokenizer.encode(text));",
    )


def assert_same(file: Path, texts: list[str]):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    for text, ids in zip(texts, ids_in_node(file, texts), strict=True):
        readable = text.encode("utf-8", "replace").decode()
        assert ids == processor.EncodeAsIds(readable), repr(text)


def test_hostile_texts_with_the_shipped_tokenizer():
    assert_same(SPIECE, HOSTILE + random_texts(3000))


@pytest.mark.skipif(bool(unicode_names.missing_tables()), reason="Debian's names are not here")
def test_captions_of_the_icons_with_the_shipped_tokenizer():
    style = random.choice(list(STYLE_WORDS))
    named = random.sample(unicode_names.read_names(), 1000)
    found = [captions(each.names, each.keywords, style) for each in named]
    assert_same(SPIECE, sorted({caption for pairs in found for caption, _ in pairs}))


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "byte_fallback": True},
        {"treat_whitespace_as_suffix": True, "normalization_rule_name": "nfkc"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_models(options: dict, tmp_path: Path):
    file, content = tmp_path / "spiece.model", io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red heart", "no  one under eighteen", "微笑的脸 红心"] * 9),
        model_writer=content,
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        **options,
    )
    file.write_bytes(content.getvalue())
    assert_same(file, [*HOSTILE, "a red  heart ", " one 心 un", *random_texts(300)])


def test_ids_and_mask_are_pythons():
    file, length = SPIECE, 12
    texts = ["red heart, 3d style", "", "one two three " * 9]
    found = run_node(
        "tokenizer.js",
        "Tokenizer",
        {"file": str(file), "texts": texts, "length": length},
        "const tokenizer = new Tokenizer(readFileSync(given.file));"
        "return given.texts.map((text) => {"
        "  const { ids, mask, left } = tokenizer.tokenize(text, given.length);"
        "  return [[...ids], [...mask], left];"
        "});",
    )
    encoder = TextEncoder(T5Config(vocab_size=6000), SentencePieceTokenizer(str(file)), length)
    with pytest.warns(match="Cut to 11 tokens"):
        ids, mask = tokenize(encoder, texts)
    assert [row[0] for row in found] == ids.tolist()
    assert [row[1] for row in found] == mask.astype(int).tolist()
    assert [row[2] > 0 for row in found] == [False, False, True]


def test_a_damaged_file_is_refused():
    with pytest.raises(AssertionError, match="damaged"):
        run_node(
            "tokenizer.js",
            "Tokenizer",
            None,
            "return new Tokenizer(Uint8Array.of(10, 200, 200, 200)).encode('a');",
        )


def test_styles_of_the_page_are_those_of_the_captions():
    page = (WEB / "index.html").read_text(encoding="utf-8")
    for style in STYLE_WORDS:
        english, chinese = (styled("", style, language) for language in ("en", "zh"))
        words = english.removeprefix(", "), chinese.removeprefix("，")
        assert '<option value="{}" data-zh="{}">'.format(*words) in page
