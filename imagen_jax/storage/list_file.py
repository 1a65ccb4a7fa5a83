r"""Lists that people write: .csv, .tsv, .jsonl, and texts with one a line.

One strict reader: whatever is wrong is a ValueError that names the file and the line. The text is
UTF-8, with or without a byte order mark. Only \n and \r\n end a line: the other characters that
Unicode counts as ends of lines (U+2028, U+0085, form feed) occur inside captions and stay there, as
does everything else: texts are not normalized.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.storage.json_file import check_distinct, parse
from imagen_jax.storage.trees import name_some
from imagen_jax.storage.wrong_files import START, brief, what_it_is

Row = tuple[int, dict[str, Any]]  # (line of the file, from 1; values by column)
# {a column that is needed: how else people spell its name, in small letters}
Columns = Mapping[str, Sequence[str]]
TEXT_NAMES = ("prompt", "prompts", "caption", "captions", "text", "texts")

# What else than its own separator a table may have, and what to do then.
SEPARATORS = {
    ",": "commas: name it .csv",
    "\t": "tabs: name it .tsv",
    ";": "semicolons, as Excel does in some countries: save it with commas",
}


def fault(path: Path, line: int, message: str) -> ValueError:
    """The error to raise for a line of a file."""
    return ValueError(f"{path}, line {line}: {brief(message)}")


def decode(content: bytes) -> str:
    """Text from bytes of UTF-8; a ValueError says what else they are, in words to follow a name."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is in UTF-16, not in UTF-8; save it as UTF-8")
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"is not in UTF-8 (line {line}, byte 0x{error.object[error.start]:02x}); save it as "
            "UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"has a zero byte in line {line}: it is damaged, or in UTF-16")
    return text


def read_text(path: Path) -> str:
    r"""The text of a file, its lines ended by \n.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in UTF-8, or has \r within a line, which ended lines on old Macs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder" if path.is_dir() else f"there is no {path}")
    content = path.read_bytes()
    if found := what_it_is(content[:START], len(content), ("text", "empty", "utf16")):
        raise ValueError(f"{path} is {found}")
    try:
        text = decode(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    # \r\r\n is what Python writes on Windows through its csv module, unless told otherwise.
    text = re.sub("\r+\n", "\n", text).replace("\n\ufeff", "\n")
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise fault(
            path,
            line,
            "a carriage return (\\r) without a line feed (\\n) after it, as in files of old Macs; "
            "save the file with line ends of Unix or Windows",
        )
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not blank, without the white space around them."""
    return list(_lines(read_text(path)))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    stripped = (line.strip() for line in text.split("\n"))
    return ((number, line) for number, line in enumerate(stripped, 1) if line)


def read_rows(path: str | Path, columns: Columns) -> list[Row]:
    """The rows of a list, each with a value for each of `columns`; other columns keep their names,
    in small letters.

    .csv has commas, quotes as usual, and a first line with the columns' names; .tsv tabs, and
    quotes are text (as in PartiPrompts, arXiv 2206.10789); .jsonl an object a line, whose values
    may be of any type. A file with another ending has one text a line, of a single column. Blank
    lines and rows are left out.

    Raises:
        ValueError: what cannot be read so; the message names the line and what would be right.
    """
    path = Path(path)
    text = read_text(path)
    match path.suffix.lower():
        case ".jsonl":
            return list(_json_rows(path, text, columns))
        case ".csv":
            return list(_table(path, _csv_fields(path, text), columns, ","))
        case ".tsv":
            return list(_table(path, _tsv_fields(path, text), columns, "\t"))
    (column,) = columns
    return [(number, {column: line}) for number, line in _lines(text)]


def text_of(path: Path, row: Row, column: str) -> str:
    """The text of a row, without the white space around it; ValueError where there is none."""
    line, values = row
    try:
        return stripped(values[column], column)
    except ValueError as error:
        raise fault(path, line, str(error)) from None


def stripped(text: Any, column: str) -> str:
    """As `text_of`, of the value of a column."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the {column} is empty or no text: {str(text)[:50]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {column} has half a character, {text[error.start]!r}") from None
    return text.strip()


# -------------------------------------------------------------------------------------- .csv, .tsv

Fields = Iterable[tuple[int, list[str]]]


def _csv_fields(path: Path, text: str) -> Fields:
    # newline: StringIO would end lines at other characters too.
    reader = csv.reader(io.StringIO(text, newline="\n"), skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise fault(
                path,
                line,
                f"{error}; see its quotes: a text with a comma or a quote in it is written in "
                'quotes, and each quote in it twice: "a ""red"" cat, asleep"',
            ) from None


def _tsv_fields(path: Path, text: str) -> Fields:
    for line, row in enumerate(text.split("\n"), 1):
        fields = row.split("\t") if row.strip() else []
        for field in fields:
            if len(field) > 1 and field[0] == field[-1] == '"':
                raise fault(
                    path,
                    line,
                    f"{field[:50]} is in quotes, which in a .tsv belong to the text; save it as "
                    ".csv, or take them away",
                )
        yield line, fields


def _table(path: Path, rows: Fields, columns: Columns, separator: str) -> Iterator[Row]:
    names: list[str] = []
    for line, fields in rows:
        blank = not any(field.strip() for field in fields)
        if not fields or (blank and len(names) != 1):
            continue
        if not names:
            try:
                names = _header(fields, columns, separator)
            except ValueError as error:
                raise fault(path, line, f"it must name the columns: {error}") from None
        elif len(fields) == len(names):
            yield line, dict(zip(names, fields, strict=True))
        else:
            more = separator == "," and len(fields) > len(names)
            hint = '; put a text that has a comma in quotes: "a cat, asleep"' if more else ""
            raise fault(
                path,
                line,
                f"it has {len(fields)} columns, and the first line has {len(names)}{hint}",
            )
    if not names:
        raise ValueError(f"{path} is empty; its first line must name {' and '.join(columns)}")


def _header(fields: list[str], columns: Columns, separator: str) -> list[str]:
    """The names of the columns: ours for those that are needed."""
    names = [field.strip().lower() for field in fields]
    try:
        ours = _needed(names, columns)
    except ValueError as error:
        known = {name for column, others in columns.items() for name in (column, *others)}
        for other, what in SEPARATORS.items():
            parts = {part.strip(' "') for name in names for part in name.split(other)}
            if other != separator and not known.isdisjoint(parts - set(names)):
                raise ValueError(f"its columns are separated by {what}") from None
        raise error
    return [ours.get(name, name) for name in names]


def _needed(found: Sequence[str], columns: Columns) -> dict[str, str]:
    """{name that a file has: ours} of the columns that are needed."""
    check_distinct([name for name in found if name])  # pandas leaves its index without a name
    ours = {}
    for column, others in columns.items():
        name = next((name for name in (column, *others) if name in found), None)
        if name is None:
            known = name_some([repr(name[:50]) for name in found]) or "none"
            also = ", ".join(name for name in others if name != column)
            raise ValueError(f"it needs {column!r} (or {also}) and has {known}")
        ours[name] = column
    return ours


# ------------------------------------------------------------------------------------------ .jsonl


def _json_rows(path: Path, text: str, columns: Columns) -> Iterator[Row]:
    for line, content in _lines(text):
        try:
            values = parse(content, lenient=True)
            if not isinstance(values, dict):
                shape = '{"text": "a cat"}'
                raise ValueError(f"it holds {content[:50]}; it must be an object: {shape}")
            names = [name.strip().lower() for name in values]
            ours = _needed(names, columns)
        except ValueError as error:
            raise fault(path, line, str(error)) from None
        names = [ours.get(name, name) for name in names]
        yield line, dict(zip(names, values.values(), strict=True))
