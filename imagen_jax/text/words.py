"""The words of a prompt, and the tokens that each is made of."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from imagen_jax.storage.codec import nearest
from imagen_jax.text.captions import prepare_caption
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizers import token_spans

LETTER = r"[^\W⺀-￯]"  # of a script that is written with spaces
SPACED = re.compile(rf"{LETTER}+(?:['’-]{LETTER}+)*")
# A script without spaces, such as Chinese: there a word is what the tokenizer takes for one.
UNSPACED = re.compile(r"(?:(?=\w)[⺀-￯])+")


class Word(NamedTuple):
    """A word, and the places of its tokens among those of the prompt."""

    text: str
    tokens: tuple[int, ...]


def prompt_words(encoder: TextEncoder, prompt: str) -> list[Word]:
    """The words of a prompt as the encoder reads it, in their order; one that is there twice is one
    word. Punctuation is none, nor is what the encoder cuts off.
    """
    text, spans = _read(encoder, prompt)
    found = [match.span() for match in SPACED.finditer(text)]
    for begin, end in spans:
        found += [match.span() for match in UNSPACED.finditer(text, begin, end)]
    words: dict[str, Word] = {}
    for begin, end in sorted(set(found)):
        word, tokens = text[begin:end], _tokens(spans, begin, end)
        if tokens:
            before = words.get(word.lower(), Word(word, ()))
            words[word.lower()] = Word(before.text, (*before.tokens, *tokens))
    return list(words.values())


def find_words(encoder: TextEncoder, prompt: str, wanted: Sequence[str]) -> list[Word]:
    """Words, or parts of several words, that are asked for; in upper or lower case.

    Raises:
        ValueError: one is not in the prompt, or the encoder cuts it off.
    """
    text, spans = _read(encoder, prompt)
    return [_find(encoder, prompt, text, spans, word) for word in wanted]


def _find(
    encoder: TextEncoder, prompt: str, text: str, spans: Sequence[tuple[int, int]], word: str
) -> Word:
    needle = word.strip() if isinstance(word, str) else ""
    if not needle:
        raise ValueError(f"A word to explain must be text that the prompt holds, not {word!r}.")
    # "art" is no word of "heart"; Chinese has no such bounds.
    start = rf"(?<!{LETTER})" if re.match(LETTER, needle) else ""
    stop = rf"(?!{LETTER})" if re.match(LETTER, needle[-1]) else ""
    places = re.finditer(f"{start}{re.escape(needle)}{stop}", text, re.IGNORECASE)
    spots = [match.span() for match in places]
    if not spots:
        hint = nearest(needle, [known.text for known in prompt_words(encoder, prompt)])
        raise ValueError(f"The prompt {prompt!r} has no word {word!r}{hint}")
    tokens = [token for spot in spots for token in _tokens(spans, *spot)]
    if not tokens:
        raise ValueError(
            f"The word {word!r} comes after the {encoder.max_length - 1} tokens of the prompt that "
            "the model reads."
        )
    return Word(needle, tuple(dict.fromkeys(tokens)))


def _read(encoder: TextEncoder, prompt: str) -> tuple[str, list[tuple[int, int]]]:
    """The prompt as the tokenizer gets it, and where its tokens that are used lie."""
    text = prepare_caption(prompt, encoder.caption)
    return text, token_spans(encoder.tokenizer, text)[: encoder.max_length - 1]


def _tokens(spans: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, ...]:
    """The tokens that share a character with [begin, end)."""
    return tuple(i for i, (first, last) in enumerate(spans) if first < end and last > begin)
