"""What stands where another file should be: told from its first bytes, in words for the user.

A download that failed leaves a pointer, a web page or nothing under the right name; a copied path
is mistyped. Every reader asks here when it cannot read a file.
"""

import difflib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

START = 4096  # bytes that are looked at
AGAIN = "download it again"
LONGEST = 320  # characters of a reason
MOST_NAMES = 10_000  # that a name is compared with

# Regexes of how files begin, and what they are; text is none of the first. Readers name the kinds
# (first entries) that they expect.
MAGIC = (
    ("safetensors", rb".{4}\0{4}\{", "a safetensors file"),  # first: any bytes may come before
    ("zeros", rb"\0{64,}\Z", f"nothing but zero bytes, at least at its start: {AGAIN}"),
    ("pickle", rb"\x80[\x02-\x05]", "a Python pickle, whatever its name says"),
    ("gzip", rb"\x1f\x8b\x08", "compressed with gzip; unpack it"),
    ("bzip2", rb"BZh[1-9]", "compressed with bzip2; unpack it"),
    ("xz", rb"\xfd7zXZ\0", "compressed with xz; unpack it"),
    ("zstd", rb"\(\xb5/\xfd", "compressed with zstd; unpack it"),
    ("7z", rb"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    ("rar", rb"Rar!\x1a\x07", "a RAR archive; unpack it"),
    ("hdf5", rb"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ("gguf", rb"GGUF", "a GGUF file, as llama.cpp and others read it"),
    ("npy", rb"\x93NUMPY", "a single array of numpy (.npy)"),
    ("parquet", rb"PAR1", "a Parquet table"),
    ("pdf", rb"%PDF-", "a PDF document"),
    ("image", rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP", "an image"),
    ("heic", rb"....ftyp(hei|hev|mif1|msf1)", "HEIC; pillow-heif can convert it to JPEG"),
    ("macos", rb"\0\x05\x16\x07", "notes of macOS about a file (AppleDouble); delete it"),
    ("utf16", rb"\xff\xfe|\xfe\xff", "text in UTF-16; save it as UTF-8"),
    ("zip", rb"PK\x03\x04.*data\.pkl", "a zip archive of PyTorch (a pickle)"),
    ("zip", rb"PK\x03\x04", "a zip archive, whatever its name says"),
    ("tar", rb".{257}ustar", "a tar archive; unpack it"),
)
TEXTS = (
    (
        "pointer",
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned",
    ),
    (
        "html",
        rb"(?i)(?=<).*(<!doctype html|<html\b|<head\b)",
        f"an HTML page, such as a site's error or login page, not the file itself: {AGAIN}",
    ),
    ("svg", rb"(?i)(?=<).*<svg\b", "an SVG drawing; save it as PNG"),
    (
        "xml",
        rb"(?i)(?=<).*(<\?xml\b|<error>)",
        f"XML text, such as a storage service's error message, not the file itself: {AGAIN}",
    ),
)
# What a server's JSON has where it answers with an error; other keys are another file's.
ERROR_KEYS = {"error", "errors", "message", "detail", "error_description"}
BESIDE_ERRORS = {"status", "statuscode", "code", "path", "timestamp", "requestid", "request_id"}


def what_it_is(start: bytes, size: int, expected: Collection[str] = ()) -> str | None:
    """What a file is that should be another, and what to do; None where nothing tells.

    Args:
        start: its first bytes, START of them if it has so many.
        size: all its bytes.
        expected: kinds that are right here: first entries of MAGIC and TEXTS, "text", "empty".
    """
    if size == 0:
        return None if "empty" in expected else "empty (0 bytes)"
    text, is_text = start.removeprefix(b"\xef\xbb\xbf").lstrip(), _is_text(start)
    for kind, pattern, said in () if is_text else MAGIC:
        if re.match(pattern, start, re.DOTALL):
            return None if kind in expected else said
    for kind, pattern, said in TEXTS:
        if re.match(pattern, text, re.DOTALL):
            return None if kind in expected else said
    if (answer := _server_error(text)) is not None:
        return f"a server's error message, {answer[:80]!r}, not the file itself: {AGAIN}"
    if "text" not in expected and is_text:
        return f"text that begins {start[:32].decode('utf-8', 'replace').split(chr(10))[0]!r}"
    return None


def look_at(path: str | os.PathLike, expected: Collection[str] = ()) -> str | None:
    """`what_it_is`, of a file; a zip archive without its end is said to be cut short."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(START), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    found = what_it_is(start, size, expected)
    if found is None and start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"cut short, its end is missing: {AGAIN}"
    return found


def refusal(
    path: str | os.PathLike, kind: str, reason: object, expected: Collection[str] = ()
) -> str:
    """The message for a file that cannot be read: what it is instead; else why it is not `kind`.

    Args:
        kind: what it should be: "a whole safetensors file".
        reason: what its reader says, in words to follow a colon.
    """
    found = look_at(path, expected)
    if found is not None:
        return f"{path} is not {kind}: it is {found}."
    return f"{path} is not {kind}: {brief(reason)}."


def brief(reason: object) -> str:
    """A reason for a message: words out of a file may be of any length, so the middle goes."""
    text = str(reason).removesuffix(".")
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def absent(
    path: str | os.PathLike, kind: str = "file", known: Collection[str] = (), more: str = ""
) -> str:
    """A sentence: there is no such file (or other `kind`), which folder is missing already, and
    what may have been meant, a name like it beside it or a `known` one.

    A path that is there is said to be a folder, or a file. `more` comes before the question.
    """
    path = Path(path)
    if path.exists():
        return f"{path} is a {'folder' if path.is_dir() else 'file'}, not a {kind}{more}."
    start, beside = f"There is no {kind} {path}{more}", {}
    if path.parent.is_dir():
        beside = {name: str(path.parent / name) for name in _entries(path.parent)}
    else:
        missing = next(up for up in reversed(path.parents) if not up.is_dir())
        start = f"There is no {kind} {path}{more}: there is no folder {missing}"
        path, beside = missing, {n: str(missing.parent / n) for n in _entries(missing.parent)}
    beside |= {name: name for name in known}
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"{start}; did you mean {beside[close[0]]}?" if close else f"{start}."


def _entries(folder: Path) -> list[str]:
    """Names in a folder, of a large one some of them."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, MOST_NAMES)]
    except OSError:
        return []


def _is_text(start: bytes) -> bool:
    """Whether these are printable characters of UTF-8; the last one may be cut."""
    text = start.decode("utf-8", "replace").removesuffix("\ufffd")
    return all(character.isprintable() or character in "\t\n\r\ufeff" for character in text) and (
        "\ufffd" not in text
    )


def _server_error(text: bytes) -> str | None:
    """What a server's JSON says went wrong; None where it is not such an answer."""
    if not text.startswith(b"{") or len(text) >= START:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    keys = {str(key).lower() for key in values}
    if not keys & ERROR_KEYS or keys - ERROR_KEYS - BESIDE_ERRORS:
        return None
    return str(next(value for key, value in values.items() if key.lower() in ERROR_KEYS))
