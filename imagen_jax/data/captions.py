"""Captions beside images: a text file for each, or captions.jsonl or captions.csv for all.

All are UTF-8. What cannot be read is a ValueError that names the file and the line.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Captions = list[tuple[str, float]]  # (text, weight) pairs

CAPTION_FILES = ("captions.jsonl", "captions.csv")
FILE_COLUMNS, CAPTION_COLUMNS = ("file", "file_name"), ("caption", "text")


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it as UTF-8") from error


def read_text(path: Path) -> Captions:
    """The captions of a text file, one a line."""
    lines = _read_utf8(path).splitlines()
    captions = [(line.strip(), 1.0) for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"{path.name} holds no caption")
    return captions


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_read_utf8(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            yield number, row if isinstance(row, dict) else {}


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = io.StringIO(_read_utf8(path), newline="")
    reader = csv.DictReader(text, skipinitialspace=True, strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
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
        # DictReader has counted the lines of whole rows alone
        raise ValueError(f"{path}, line {reader.line_num + 1}: {error}; see its quotes") from error


def read_captions(path: Path) -> dict[str, Captions]:
    """Captions by file name out of captions.jsonl or captions.csv, in UTF-8.

    Rows hold `file` (or file_name), `caption` (or text; in JSON also a list of them) and, if
    wanted, `weight`. A file with several rows has several captions.
    """
    captions: dict[str, Captions] = {}
    rows = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    for number, row in rows:
        file = next((row[name] for name in FILE_COLUMNS if name in row), None)
        texts = next((row[name] for name in CAPTION_COLUMNS if name in row), None)
        weight = row.get("weight")
        weight = 1.0 if weight in (None, "") else weight
        texts = [texts] if isinstance(texts, str) else texts
        good = isinstance(file, str) and file and isinstance(texts, list) and texts
        if not good or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f'{path}, line {number}: needs "file" and "caption", neither of them empty'
            )
        try:
            weight = float(weight)
        except (TypeError, ValueError):
            weight = -1.0
        if not 0 < weight < float("inf"):
            raise ValueError(f"{path}, line {number}: the weight must be a number above 0")
        found = captions.setdefault(normalized(file), [])
        found += [(text.strip(), weight / len(texts)) for text in texts]
    return captions


def normalized(name: str) -> str:
    """One spelling of a file's name: macOS writes accents apart, Windows backslashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
