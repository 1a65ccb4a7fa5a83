"""Captions beside images: a text file for each, or captions.jsonl or captions.csv for all.

All are UTF-8. What cannot be read is a ValueError that names the file and the line.
"""

import csv
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_jax.storage.json_file import parse
from imagen_jax.storage.wrong_files import START, refusal, what_it_is

Captions = list[tuple[str, float]]  # (text, weight) pairs

CAPTION_FILES = ("captions.jsonl", "captions.csv")
FILE_COLUMNS, CAPTION_COLUMNS = ("file", "file_name"), ("caption", "text")


def _read_utf8(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error}; save it as UTF-8"
        raise ValueError(refusal(path, "in UTF-8", reason, ("utf16",))) from error
    if found := what_it_is(text[:START].encode(), len(text), ("text", "empty")):
        raise ValueError(f"{path} is {found}")
    return text


def read_text(path: Path) -> Captions:
    """The captions of a text file, one a line."""
    captions = [(line.strip(), 1.0) for line in _read_utf8(path).splitlines() if line.strip()]
    if not captions:
        raise ValueError(f"{path.name} holds no caption")
    return captions


def read_captions(path: Path) -> dict[str, Captions]:
    """Captions by file name out of captions.jsonl or captions.csv, in UTF-8.

    Rows hold `file` (or file_name), `caption` (or text; in JSON also a list of them) and, if
    wanted, `weight`. A file with several rows has several captions.
    """
    captions: dict[str, Captions] = {}
    content = _read_utf8(path)
    if path.suffix.lower() == ".jsonl":
        rows = (
            (number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()
        )
    else:
        rows = _csv_rows(path, content)
    for number, row in rows:
        try:
            file, found = _parse_row(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        captions.setdefault(normalized(file), []).extend(found)
    return captions


def _csv_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), skipinitialspace=True, strict=True)
    try:
        reader.fieldnames = columns = [column.strip() for column in reader.fieldnames or ()]
        if not (set(FILE_COLUMNS) & set(columns) and set(CAPTION_COLUMNS) & set(columns)):
            raise ValueError(
                f'{path} needs a first line "file,caption"; its columns are '
                f"{', '.join(map(repr, columns)) or 'none'}"
            )
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(columns)} columns, and more in this "
                    'line; put a caption that has a comma in quotes: "a cat, asleep"'
                )
            yield reader.line_num, row
    except csv.Error as error:
        # DictReader has counted only the lines of whole rows
        raise ValueError(f"{path}, line {reader.line_num + 1}: {error}; see its quotes") from error


def _parse_row(row: str | dict[str, Any]) -> tuple[str, Captions]:
    """(file, its captions) of a line of JSON, or of the columns of a line of CSV."""
    values = parse(row, lenient=True) if isinstance(row, str) else row
    values = values if isinstance(values, dict) else {}
    file = next((values[name] for name in FILE_COLUMNS if name in values), None)
    texts = next((values[name] for name in CAPTION_COLUMNS if name in values), None)
    texts = [texts] if isinstance(texts, str) else texts
    good = isinstance(file, str) and file and isinstance(texts, list) and texts
    if not good or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError('needs "file" and "caption", neither of them empty')
    weight = values.get("weight")
    try:
        weight = 1.0 if weight in (None, "") else float(weight)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise ValueError("the weight must be a number above 0")
    return file, [(text.strip(), weight / len(texts)) for text in texts]


def normalized(name: str) -> str:
    """One spelling of a file's name: macOS splits off accents, Windows writes backslashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
