"""What an icon is called in a prompt: its name or keywords, and the style that it is drawn in."""

import random
from collections.abc import Iterator, Mapping, Sequence

from imagen_jax.data.captions import Captions

# A style's word by language. The captions of the first style name no style half of the time.
STYLE_WORDS = {
    "noto": {"en": "noto", "zh": "noto"},
    "noto-v1": {"en": "classic", "zh": "经典"},
    "twemoji": {"en": "twemoji", "zh": "twemoji"},
    "fluent": {"en": "3d", "zh": "立体"},
    "flat": {"en": "flat", "zh": "扁平"},
    "outline": {"en": "outline", "zh": "线条"},
    "fxemoji": {"en": "firefox", "zh": "火狐"},
}
DEFAULT_STYLE = "noto"
FORMS = {"en": "{}, {} style", "zh": "{}，{}风格"}
KEYWORD_SHARE = 0.25  # how often a caption is of keywords
COMBINATIONS = 3  # captions of two keywords


def styled(text: str, style: str, language: str) -> str:
    """ "red heart" -> "red heart, flat style"; "红心" -> "红心，扁平风格"."""
    return FORMS[language].format(text, STYLE_WORDS[style][language])


def captions(
    names: Mapping[str, str], keywords: Mapping[str, Sequence[str]], style: str
) -> Captions:
    """(caption, weight) pairs: all languages alike, of each the name three times in four, else a
    keyword or two, chosen once for each name.
    """
    return [
        pair
        for language, name in names.items()
        for text, weight in _texts(name, keywords.get(language, ()), language)
        for pair in _in_style(text, weight, style, language)
    ]


def _texts(name: str, words: Sequence[str], language: str) -> Iterator[tuple[str, float]]:
    if not words:
        yield name, 1.0
        return
    draw = random.Random(name + language)
    pairs = [", ".join(draw.sample(words, min(len(words), 2))) for _ in range(COMBINATIONS)]
    yield name, 1.0 - KEYWORD_SHARE
    yield from ((text, KEYWORD_SHARE / (len(words) + COMBINATIONS)) for text in [*words, *pairs])


def _in_style(text: str, weight: float, style: str, language: str) -> Captions:
    full = styled(text, style, language)
    return [(text, weight / 2), (full, weight / 2)] if style == DEFAULT_STYLE else [(full, weight)]
