"""What a tar archive holds and where, read from its headers, which are not trusted.

Members are one example as webdataset reads them: its key ends at the first dot of the file's name,
what follows is the extension, and of an extension with several parts ("v2.jpg") the last decides.

Formats: ustar, GNU (long names) and pax (POSIX.1-2001, "pax Interchange Format"). Only single
headers are left to `tarfile`: its archives read names and sparse maps of any length into memory,
and stop at a member that is cut off.
"""

import contextlib
import dataclasses
import functools
import re
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from imagen_jax.data import fields
from imagen_jax.data.image_files import is_about, is_hidden
from imagen_jax.data.index import Index, Row, from_rows
from imagen_jax.data.shards import Shard, refuse_other_files
from imagen_jax.images import decoding

BLOCK = 512
LONGEST_NAME = 4096
LARGEST_HEADER = 2**16  # of an extended header: it holds names
ROLES = ("image", "text", "label")  # of an example's members, in the order of their spans
LARGEST = {"image": 2**27, "text": 2**20, "label": 2**20, "json": 2**20}
REGULAR, FOLDER = (b"0", b"\0", b"7"), b"5"
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL, SPARSE = b"L", b"K", (b"x", b"X"), b"g", b"S"
WITHOUT_DATA = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device"}
WITHOUT_DATA |= {FOLDER: "a folder", b"6": "a pipe"}
META = re.compile(r"__[^/]*__(/|$)")  # members that webdataset keeps for itself
# What is said of a shard; the number of these and some of them follow.
OTHERS = "other files, which are no examples"
SEVERAL = "examples with several images, of which the first counts: a key ends at the first dot"


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive and where its bytes are; `fault` says why it cannot be used."""

    name: str
    offset: int
    size: int
    fault: str | None = None

    def fault_as(self, role: str) -> str | None:
        """Why it cannot be used for a role; None where it can."""
        limit = LARGEST[role]
        too_large = f"has {self.size:,} bytes, more than {limit:,}" if self.size > limit else None
        return self.fault or too_large


def read_members(file: Any, length: int) -> Iterator[Member]:
    """The members of an archive of `length` bytes, folders left out.

    After a damaged header the search continues at the next good one. Each gap gives one member
    without a name, unless the member before it was already named as cut off.
    """
    if not length:  # a tar without members ends in zeros
        yield Member("", 0, 0, "the file is empty (0 bytes)")
    position, extended, in_gap = 0, {}, False
    while position < length:
        block, data = _read(file, position, BLOCK), position + BLOCK
        if not block.strip(b"\0"):  # padding, or the end, which another archive may follow
            position = data
            continue
        header = _header(block)
        if header is None:
            if not in_gap:
                yield Member("", position, 0, f"no header can be read at byte {position:,}")
            position, extended, in_gap = data, {}, True
            continue
        in_gap, kind = False, header.type
        if kind in (LONG_NAME, *PAX):
            if header.size > min(LARGEST_HEADER, length - data):
                yield Member(header.name, data, 0, f"its header has {header.size:,} bytes")
                position, in_gap = data, True
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
        size = 0 if kind in WITHOUT_DATA else header.size
        cut_off = data + size > length  # or its size is wrong and others follow
        position = data if cut_off else data + (size + BLOCK - 1) // BLOCK * BLOCK
        in_gap = cut_off or kind == SPARSE  # whose map, of unknown length, lies before its data


def _read(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _header(block: bytes) -> tarfile.TarInfo | None:
    """A header block; None where it is damaged."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _member(header: tarfile.TarInfo, sparse: bool, data: int, length: int) -> Member:
    # An image from macOS and its caption from elsewhere meet, however they spell their accents.
    name = unicodedata.normalize("NFC", re.sub(r"^(\./)+", "", header.name.replace("\\", "/")))
    faults = {
        f"is {WITHOUT_DATA.get(header.type)}": header.type in WITHOUT_DATA,
        "is a sparse file": sparse,
        f"is of the unknown type {header.type!r}": header.type not in REGULAR,
        "has a name that leads out of the archive": (
            name.startswith("/") or ".." in name.split("/") or "\0" in name
        ),
        f"has a name of {len(name):,} characters": len(name) > LONGEST_NAME,
        f"is cut off: it should have {header.size:,} bytes": data + header.size > length,
    }
    fault = next((fault for fault, found in faults.items() if found), None)
    return Member(name[:LONGEST_NAME], data, header.size, fault)


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the member after it, as far as it can be read.

    A long name stands by itself, the records of pax are "LENGTH NAME=VALUE\\n".
    """
    if kind == LONG_NAME:
        return {"path": _text(data.split(b"\0")[0])}
    found, position = {}, 0
    while position < len(data):
        digits, _, _ = data[position : position + 20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 3 <= int(digits) <= len(data) - position:
            break
        record = data[position + len(digits) + 1 : position + int(digits) - 1]
        name, _, value = record.partition(b"=")
        found[_text(name)] = _text(value)
        position += int(digits)
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------- members to examples


def scan_tar(shard: Shard, names: Mapping[str, str], measure: bool) -> Index:
    """The examples of a shard; see `read_tar` for what makes one.

    Args:
      names: of the members with "text" and "label": an extension, or a field of the json.
      measure: whether to read the size of an image from its own header where no json has it.
    """
    rows, others, several = [], [], []
    with shard.open() as file:
        groups, rest = _grouped(read_members(file, shard.size))
        if rest and rest[0].offset == 0:
            refuse_other_files(shard)
        read = functools.partial(_read, file)
        for stem, members in groups.items():
            if _is_other(stem, members, names, read):
                others += [member.name for member in members.values()]
                continue
            rows.append(_row(f"{shard.name}/{stem}", members, read, names, measure))
            images = [name for name in members if _is_image(name)]
            if len(images) > 1 and not any("." not in name for name in images):
                several.append(f"{stem} ({', '.join(images)})")
    rows += [
        Row(
            f"{shard.name}/{member.name or member.offset}",
            spans=((0, 0),) * len(ROLES),
            faults={"image": member.fault},
        )
        for member in rest
        if member.name not in others  # twice
    ]
    remarks = {OTHERS: others, SEVERAL: several}
    return from_rows(rows, len(ROLES), {what: names for what, names in remarks.items() if names})


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
        elif not is_hidden(base) and not META.match(member.name):
            group = groups.setdefault(folder + slash + stem, {})
            if group.setdefault(extension.lower(), member) is not member:
                rest.append(dataclasses.replace(member, fault="comes twice; the first one counts"))
    return groups, rest


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in decoding.SUFFIXES


def _image_of(members: Mapping[str, Member]) -> Member | None:
    """The image of an example: the first that is just .jpg or so, else the first at all."""
    images = [name for name in members if _is_image(name)]
    plain = (name for name in images if "." not in name)
    return members.get(next(plain, images[0] if images else None))


def _with_extension(members: Mapping[str, Member], name: str) -> Member | None:
    """The member with an extension, else the first of which it is the last part."""
    wanted = name.partition(".")[0]
    ending = (own for own in members if own.rpartition(".")[2] == wanted)
    return members.get(wanted) or members.get(next(ending, None))


def _is_other(
    stem: str,
    members: Mapping[str, Member],
    names: Mapping[str, str],
    read: Callable[[int, int], bytes],
) -> bool:
    """Whether members are no example, as README.md and dataset_info.json: they have neither an
    image nor a caption or label, which would be an example that has lost its image.
    """
    if any(map(_is_image, members)):
        return False
    for role, name in names.items():
        member = _with_extension(members, name)
        if role == "image" or member is None or is_about(stem):
            continue
        if "." not in name or member.fault_as(role):
            return False
        with contextlib.suppress(ValueError):
            if _value(read(member.offset, member.size), name) is not None:
                return False
    return True


def _row(
    key: str,
    members: dict[str, Member],
    read: Callable[[int, int], bytes],
    names: Mapping[str, str],
    measure: bool,
) -> Row:
    """The index's note of one example. A text or label that is missing is found when it is read."""
    image = _image_of(members)
    used = {role: _with_extension(members, name) for role, name in names.items()}
    used |= {"image": image, "json": _with_extension(members, "json")}
    faults = {
        role: f"{member.name} {fault}"
        for role, member in used.items()
        if member is not None and (fault := member.fault_as(role))
    }
    if image is None:
        faults["image"] = f"has no image, only {', '.join(sorted(members))}"[:200]
    text = names["text"]
    parsers = {
        "json": fields.parse_json,
        "text": lambda data: fields.to_captions(_value(data, text), text),
    }
    found = {}
    for role, parse in parsers.items():
        member = used[role]
        if member is not None and role not in faults:
            try:
                found[role] = parse(read(member.offset, member.size))
            except ValueError as error:
                faults[role] = f"{member.name}: {error}"
    values = found.get("json", {})
    size = fields.to_size(values)
    if measure and size == (0, 0) and "image" not in faults:
        size = decoding.size(read(image.offset, image.size))
    spans = tuple(
        (member.offset, member.size) if member and not member.fault else (0, 0)
        for member in map(used.get, ROLES)
    )
    length = len(found["text"][0][0]) if "text" in found else 0
    return Row(key, spans, size, length, fields.to_numbers(values), faults)


def _value(data: bytes, name: str) -> Any:
    """What a member holds ("txt"), or the field of its JSON object ("json.caption")."""
    _, _, field = name.partition(".")
    return fields.parse_json(data).get(field) if field else data


def read_example(shard: Shard, spans: np.ndarray, names: Mapping[str, str]) -> dict[str, Any]:
    """{role: the image's bytes, or the value of a text or label} of the roles in `names`."""
    wanted = {role: tuple(spans[ROLES.index(role)].tolist()) for role in names}
    for role, (_, size) in wanted.items():
        if not size and role != "image":
            raise ValueError(f"has no {role}: there is no .{names[role]}, or it is empty")
    found = shard.read_parts(wanted)
    return {role: _value(found[role], names[role]) for role in names}
