"""Captions beside images: a text file for each, or captions.jsonl or captions.csv for all.

They are read by `storage.list_file`. What cannot be read is a ValueError that names the file and
the line.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.storage.list_file import TEXT_NAMES, fault, read_lines, read_rows, stripped

Captions = list[tuple[str, float]]  # (text, weight) pairs

CAPTION_FILES = ("captions.jsonl", "captions.csv")
COLUMNS = {"file": ("file_name", "filename"), "caption": TEXT_NAMES}


def read_text(path: Path) -> Captions:
    """The captions of a text file, one a line."""
    captions = [(line, 1.0) for _, line in read_lines(path)]
    if not captions:
        raise ValueError(f"{path.name} holds no caption")
    return captions


def read_captions(path: Path) -> dict[str, Captions]:
    """Captions by file name (as `normalized`) out of captions.jsonl or captions.csv.

    Rows hold `file` (or file_name), `caption` (or text; in JSON also a list of them) and, if
    wanted, `weight`. A file with several rows has several captions.
    """
    captions: dict[str, Captions] = {}
    for line, row in read_rows(path, COLUMNS):
        try:
            file, found = _parse_row(row)
        except ValueError as error:
            raise fault(path, line, str(error)) from None
        captions.setdefault(normalized(file), []).extend(found)
    return captions


def _parse_row(row: Mapping[str, Any]) -> tuple[str, Captions]:
    """(file, its captions)."""
    file, texts = row["file"], row["caption"]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(file, str) or not file.strip():
        raise ValueError(f"the file is empty or no text: {str(file)[:50]!r}")
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"the caption must be a text or a list of texts: {str(texts)[:50]!r}")
    weight = row.get("weight")
    try:
        weight = 1.0 if weight in (None, "") else float(weight)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"the weight must be a number above 0: {row['weight']!r}")
    return file.strip(), [(stripped(text, "caption"), weight / len(texts)) for text in texts]


def normalized(name: str) -> str:
    """One spelling of a file's name: macOS splits off accents, Windows writes backslashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
