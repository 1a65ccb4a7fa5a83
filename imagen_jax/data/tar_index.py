"""What a tar archive holds and where, read from its headers alone and without trust in them.

Formats: ustar, GNU (long names) and pax (POSIX.1-2001, "pax Interchange Format").
"""

import dataclasses
import functools
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from imagen_jax.data.index import Index, Row, from_rows, numbers, size_of, stripped, to_captions
from imagen_jax.data.shards import Shard, check_uncompressed
from imagen_jax.data.sources import IMAGE_SUFFIXES
from imagen_jax.images import decoding

BLOCK = 512
LONGEST_NAME = 4096
LARGEST_HEADER = 2**16  # of an extended header: it holds names
LARGEST_TEXT = 2**20
LARGEST_IMAGE = 2**27
REGULAR, FOLDER = (b"0", b"\0", b"7"), b"5"
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL, SPARSE = b"L", b"K", (b"x", b"X"), b"g", b"S"
WITHOUT_DATA = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device"}
WITHOUT_DATA |= {FOLDER: "a folder", b"6": "a pipe"}
IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive and where its bytes are; `fault` says why it cannot be used."""

    name: str
    offset: int
    size: int
    fault: str | None = None


def read_members(file: Any, length: int) -> Iterator[Member]:
    """The members of an archive of `length` bytes, folders left out.

    Where a header is damaged the search goes on at the next good one; each gap is one member
    without a name.
    """
    position, extended, gap = 0, {}, None
    while position + BLOCK <= length:
        block = _read(file, position, BLOCK)
        data = position + BLOCK
        if not block.strip(b"\0"):  # padding, or the end, which another archive may follow
            position = data
            continue
        header = _header(block)
        if header is None:
            gap, position, extended = gap or Gap(position), data, {}
            continue
        if gap is not None and not gap.known:
            yield gap.member()
        gap, kind = None, header.type
        if kind in (LONG_NAME, *PAX):
            if header.size > min(LARGEST_HEADER, length - data):
                yield Member(header.name, data, 0, f"its header has {header.size:,} bytes")
                gap, position = Gap(position, known=True), data
                continue
            extended |= _extended(kind, _read(file, data, header.size))
        elif kind not in (LONG_LINK, PAX_OF_ALL):
            header.name = extended.get("path", header.name)
            if extended.get("size", "").isdecimal():
                header.size = int(extended["size"])
            sparse = kind == SPARSE or any(name.startswith("GNU.sparse") for name in extended)
            extended = {}
            if kind != FOLDER:
                yield _member(header, sparse, data, length)
        data = _after_map(file, position, length) if kind == SPARSE else data
        size = 0 if kind in WITHOUT_DATA else header.size
        if data + size > length:  # cut off, or its size is wrong and others follow
            gap, position = Gap(position, known=True), data
        else:
            position = data + (size + BLOCK - 1) // BLOCK * BLOCK
    if 0 < length - position < BLOCK and _read(file, position, BLOCK).strip(b"\0"):
        gap = gap or Gap(position)
    if gap is not None and not gap.known:
        yield gap.member()


@dataclasses.dataclass(frozen=True)
class Gap:
    """Where headers cannot be read; `known` when the member that it belongs to has been named."""

    position: int
    known: bool = False

    def member(self) -> Member:
        return Member("", self.position, 0, f"no header can be read at byte {self.position:,}")


def _read(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    parts = []
    while size > 0 and (part := file.read(size)):  # unbuffered reads may return less
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _header(block: bytes) -> tarfile.TarInfo | None:
    """A header block; None where it is damaged."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _member(header: tarfile.TarInfo, sparse: bool, data: int, length: int) -> Member:
    name = header.name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    fault = None
    if header.type in WITHOUT_DATA:
        fault = f"is {WITHOUT_DATA[header.type]}"
    elif sparse:
        fault = "is a sparse file"
    elif header.type not in REGULAR:
        fault = f"is of the unknown type {header.type!r}"
    elif name.startswith("/") or ".." in name.split("/") or "\0" in name:
        fault = "has a name that leads out of the archive"
    elif len(name) > LONGEST_NAME:
        name, fault = name[:LONGEST_NAME], f"has a name of {len(name):,} characters"
    elif data + header.size > length:
        fault = f"is cut off: it should have {header.size:,} bytes"
    return Member(name, data, header.size, fault)


def _after_map(file: Any, position: int, length: int) -> int:
    """Where the data of an old GNU sparse file begin: its map goes on in blocks of its own."""
    more, data = _read(file, position, BLOCK)[482], position + BLOCK
    while more and data + BLOCK <= length:
        more, data = _read(file, data, BLOCK)[504], data + BLOCK
    return data


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the member after it."""
    return {"path": _text(data.split(b"\0")[0])} if kind == LONG_NAME else _pax_fields(data)


def _pax_fields(data: bytes) -> dict[str, str]:
    """The records "LENGTH NAME=VALUE\\n" of an extended header, as far as they can be read."""
    fields, position = {}, 0
    while position < len(data):
        digits, _, _ = data[position : position + 20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 3 <= int(digits) <= len(data) - position:
            break
        record = data[position + len(digits) + 1 : position + int(digits) - 1]
        name, _, value = record.partition(b"=")
        fields[_text(name)] = _text(value)
        position += int(digits)
    return fields


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------- members to examples


def scan_tar(shard: Shard, text: str, label: str, measure: bool) -> Index:
    """The examples of a shard; see `read_tar` for what makes one."""
    with shard.open() as file:
        groups, gaps = _grouped(read_members(file, shard.size))
        if gaps and gaps[0].offset == 0:
            check_uncompressed(shard)
        roles = {"text": _role(text), "label": _role(label)}
        row = functools.partial(_row, file=file, roles=roles, fields=(text, label), measure=measure)
        rows = [row(f"{shard.name}/{stem}", members) for stem, members in groups.items()]
    rows += [
        Row(f"{shard.name}/{gap.name or gap.offset}", ((0, 0),) * 3, faults={"image": gap.fault})
        for gap in gaps
    ]
    return from_rows(rows, members=3)


def _role(name: str) -> str:
    """The extension of the member with a text or label: "txt", or "json" of "json.caption"."""
    return name.partition(".")[0]


def _grouped(members: Iterator[Member]) -> tuple[dict[str, dict[str, Member]], list[Member]]:
    """Members by what their name has before the first dot, and by what is after it; and the rest:
    gaps, and names that come again.
    """
    groups, rest = {}, []
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not member.name or (not dot and member.fault):
            rest.append(member)
        elif stem:  # .hidden and ._0001.jpg are no examples
            group = groups.setdefault(folder + slash + stem, {})
            if extension.lower() in group:
                rest.append(dataclasses.replace(member, fault="comes twice; the first one counts"))
            else:
                group[extension.lower()] = member
    return groups, rest


def _row(
    key: str,
    members: dict[str, Member],
    file: Any,
    roles: Mapping[str, str],
    fields: tuple[str, str],
    measure: bool,
) -> Row:
    """The index's note of one example."""
    faults, length = {}, 0
    image = next((members[name] for name in members if name in IMAGES), None)
    if image is None:
        faults["image"] = f"has no image, only {', '.join(sorted(members))}"[:200]
    elif fault := image.fault or _too_large(image, LARGEST_IMAGE):
        faults["image"] = f"{image.name} {fault}"
    note = members.get("json")
    values: dict[str, Any] = {}
    if note is not None:
        try:
            values = parse_json(_read_small(file, note))
        except ValueError as error:
            faults["json"] = f"{note.name} {error}"
    for role, extension in roles.items():
        member = members.get(extension)  # one that is missing is found when it is read
        fault = member and (member.fault or _too_large(member, LARGEST_TEXT))
        if fault:
            faults[role] = f"{member.name} {fault}"
    if roles["text"] in members and not {"text", "json"} & faults.keys():
        try:
            data = _read_small(file, members[roles["text"]])
            length = len(parse_text(data, fields[0])[0][0])
        except ValueError as error:
            faults["text"] = str(error)
    size = size_of(values)
    if measure and size == (0, 0) and "image" not in faults:
        size = image_size(_read(file, image.offset, image.size))
    used = [image, *(members.get(extension) for extension in roles.values())]
    spans = tuple((m.offset, m.size) if m and not m.fault else (0, 0) for m in used)
    return Row(key, spans, size, length, numbers(values), faults)


def _too_large(member: Member, limit: int) -> str | None:
    return f"has {member.size:,} bytes, more than {limit:,}" if member.size > limit else None


def _read_small(file: Any, member: Member) -> bytes:
    if fault := member.fault or _too_large(member, LARGEST_TEXT):
        raise ValueError(fault)
    return _read(file, member.offset, member.size)


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object; ValueError where it is none."""
    try:
        values = json.loads(data)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")
    return values


def parse_text(data: bytes, name: str) -> list[tuple[str, float]]:
    """The captions of a text file, or of a field of a JSON object ("json.caption")."""
    _, _, field = name.partition(".")
    if not field:
        try:
            return stripped([(data.decode("utf-8-sig"), 1.0)])
        except UnicodeDecodeError as error:
            raise ValueError(f"its caption is not in UTF-8 ({error})") from error
    value = parse_json(data).get(field)
    good = isinstance(value, str) or (
        isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    )
    if not good:
        raise ValueError(f"its json has no text {field!r}")
    return stripped(to_captions(value))


def parse_label(data: bytes, name: str) -> int:
    """The class number in a text file, or of a field of a JSON object ("json.label")."""
    _, _, field = name.partition(".")
    value = parse_json(data).get(field) if field else data.strip().decode("ascii", "replace")
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"its label is {str(value)[:50]!r}; it must be a class number")
    return value


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an image as it is shown, from its header; 0, 0 where it has none."""
    try:
        return decoding.size(data)
    except (OSError, ValueError):
        return 0, 0
