"""Words and phrases that a prompt may not have: a list that the user writes, one a line.

What is compared is normalized (`normalized`). A phrase is found as whole words, whatever stands
between them; where writing has no spaces (Chinese, Japanese, Thai), anywhere. Misspelt words,
letters replaced by similar ones of other scripts, synonyms and other languages are not found.
"""

import functools
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from imagen_jax.storage import fingerprints
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.list_file import read_lines

# Thai to Lao, Burmese, Khmer, Chinese and Japanese, Korean (whose words have endings).
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Of Latin, Hebrew, Arabic, and all of India's scripts: signs that belong to the letter before.
SIGNS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0d7f"
LETTER = rf"(?:[^\W_{UNSPACED}]|[{SIGNS}])"
BETWEEN = r"[\W_]+"
UNSEEN = re.compile("[\u034f\ufe00-\ufe0f]")


def normalized(text: str) -> str:
    """In compatible forms of Unicode (NFKC) and small letters, without characters that nobody sees,
    one space between words.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(sign for sign in UNSEEN.sub("", text) if unicodedata.category(sign) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).split())


@dataclass(frozen=True)
class WordList:
    """entries: as written. fingerprint: of the file."""

    entries: tuple[str, ...]
    fingerprint: str | None = None

    @functools.cached_property
    def _words(self) -> list[tuple[str, list[str]]]:
        return [(entry, normalized(entry).split()) for entry in self.entries]

    def found_in(self, text: str) -> list[str]:
        """The entries that a text has, in the order of the list."""
        text = normalized(text)
        return [
            entry
            for entry, words in self._words
            if all(word in text for word in words) and re.search(_pattern(words), text)
        ]


def _pattern(words: list[str]) -> str:
    before = f"(?<!{LETTER})" if re.match(LETTER, words[0][0]) else ""
    after = f"(?!{LETTER})" if re.match(LETTER, words[-1][-1]) else ""
    return before + BETWEEN.join(map(re.escape, words)) + after


def read_word_list(file: str | os.PathLike) -> WordList:
    """A list from a text file in UTF-8; lines that begin with # are comments.

    Raises:
        FileNotFoundError, ValueError: it is missing or not such a text, or has no entry.
    """
    path = Path(user_path(file))
    entries = [line for _, line in read_lines(path) if not line.startswith("#")]
    for entry in entries:
        if not normalized(entry):
            raise ValueError(f"{path}: {entry!r} holds nothing that can be seen.")
    if not entries:
        raise ValueError(f"{path} has no words in it, one a line.")
    return WordList(tuple(entries), fingerprints.of_bytes(path.read_bytes()))
