"""Prompts as models were shown them in training: lower case, or cleaned as web captions are.

"clean" is what diffusers does for DeepFloyd IF (`clean_caption`), which was trained on captions
treated so: the same prompt gives the same tokens. It needs ftfy and beautifulsoup4.
"""

import html
import re
import urllib.parse
import warnings
from collections.abc import Iterable
from typing import Literal

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_DASHES = (
    r"\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40"
    r"\u301C\u3030\u30A0\uFE31\uFE32\uFE58\uFE63\uFF0D"
)
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

Rules = Iterable[tuple[str, str]]
Kind = Literal["lower", "clean"]

ADDRESSES: Rules = [
    ("<person>", "person"),
    (rf"\b(?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
]
SIGNS: Rules = [
    (r"@[\w\d]+\b", ""),  # @nickname
    (r"[\u31C0-\u9FFF]+", ""),  # Chinese characters, and the signs of CJK just before them
    (rf"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
]
WORDS: Rules = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers: jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second x is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
]


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def clean_caption(text: str) -> str:
    """Without addresses, markup, file names, article numbers, shop words and Chinese characters.

    Cleaned twice, as diffusers does; what it leaves may be empty.

    Raises:
        ModuleNotFoundError: ftfy or beautifulsoup4 is not installed.
    """
    return _clean_once(_clean_once(text))


def _clean_once(text: str) -> str:
    # Imported here: they come with the extra `captions`.
    import bs4
    import ftfy

    text = _apply(ADDRESSES, urllib.parse.unquote_plus(text).strip().lower())
    with warnings.catch_warnings():
        # It takes prompts such as "image.png" for a file that the caller forgot to open.
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        text = bs4.BeautifulSoup(text, features="html.parser").text
    text = _apply(SIGNS, text)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(WORDS, text).strip()


def prepare_caption(text: str, kind: Kind | None) -> str:
    """The text as a model of this kind was trained on: "clean", "lower" (in lower case, without
    white space around it), or None, as it is.

    Without the packages that cleaning needs it is lowered, with a warning.
    """
    if kind is None:
        return text
    prepared = text.lower().strip()
    if kind == "clean":
        try:
            prepared = clean_caption(text)
        except ModuleNotFoundError as error:
            warnings.warn(
                f"Cleaning prompts needs {error.name} (pip install 'imagen_jax[captions]'); they "
                "are only put in lower case.",
                stacklevel=2,
            )
    return prepared
