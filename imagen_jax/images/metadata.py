"""Which way is up in an image file; and files whose other metadata make a decoder fail."""

import contextlib
import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

ORIENTATION = ExifTags.Base.Orientation
RESOLUTION_UNIT = ExifTags.Base.ResolutionUnit
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
INTEGERS = {1: "B", 3: "H", 4: "I"}  # EXIF's kinds of whole numbers
# What a PNG's first frame needs, and which way is up.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")


def orientation(image: Image.Image) -> int:
    """What EXIF or XMP say, 1 to 8; 1, as it lies, where they say nothing, or nothing valid.

    Of a PNG that is loaded (its EXIF may come last), of a TIFF that is not (Pillow turns it then).
    """
    value = None
    with contextlib.suppress(Exception):  # Pillow's readers raise as many kinds as there are
        value = image.getexif().get(ORIENTATION)
    if value not in TURNS:
        value = _orientation_tag(image.info.get("exif"))
    return int(value) if value in TURNS else 1


def _orientation_tag(exif: bytes | None) -> int | None:
    """Its number, which Pillow does not reach behind a broken tag, or takes for text (a byte)."""
    if not isinstance(exif, bytes):
        return None
    tags = exif.removeprefix(b"Exif\0\0")
    for place, tag, kind, order in _entries(tags):
        if tag == ORIENTATION and kind in INTEGERS:
            return struct.unpack_from(order + INTEGERS[kind], tags, place + 8)[0]
    return None


def _entries(tags: bytes) -> Iterator[tuple[int, int, int, str]]:
    """(place, tag, kind, byte order) of each of the image's tags, as far as they are whole."""
    order = "<" if tags.startswith(b"II") else ">"
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", tags, 4)
        (count,) = struct.unpack_from(order + "H", tags, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, _ = struct.unpack_from(order + "HHII", tags, place)
            yield place, tag, kind, order


def turned(image: Image.Image, way: int) -> Image.Image:
    """The pixels, upright. Metadata stay as they are: odd ones cannot be written again."""
    return image.transpose(TURNS[way]) if way in TURNS else image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the upright image; of a PNG that is loaded, of a TIFF that is not."""
    sideways = orientation(image) in SIDEWAYS
    if image.format == "TIFF":  # Pillow has changed the sides for the tag, though not for XMP
        sideways ^= image.tag_v2.get(ORIENTATION) in SIDEWAYS
    return image.size[::-1] if sideways else image.size


def leave_orientation(image: Image.Image) -> None:
    """Takes all tags but this from an opened TIFF: Pillow goes through them when it loads it."""
    way = orientation(image)
    tags = image.getexif()  # does not raise again
    for tag in list(tags):
        del tags[tag]
    tags[ORIENTATION] = way
    image.info.pop("xmp", None)


def without_metadata(data: bytes) -> bytes:
    """The same image without what its pixels do not need, where it can be told; else `data`.

    Pillow reads some metadata when it opens a file, and then refuses sound pixels for odd metadata:
    a resolution of a wrong type, a long text, a table of further frames.
    """
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _bare_png(data)
    if data[4:8] == b"ftyp":  # AVIF: a decoder skips what it does not know
        return data.replace(b"Exif", b"skip")
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _bare_tiff(data)
    return data


def _bare_jpeg(data: bytes) -> bytes:
    """Without EXIF but for the orientation, and without the table of further frames."""
    segment, way = b"", _orientation_tag(data[data.find(b"Exif\0\0") :])
    if way in TURNS:
        tags = Image.Exif()
        tags[ORIENTATION] = way
        segment = tags.tobytes()
        segment = struct.pack(">HH", 0xFFE1, len(segment) + 2) + segment
    rest = data[2:].replace(b"Exif\0\0", b"skip\0\0", 1).replace(b"MPF\0", b"skip", 1)
    return data[:2] + segment + rest


def _bare_png(data: bytes) -> bytes:
    kept, start = [data[:8]], 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _bare_tiff(data: bytes) -> bytes:
    """Without the unit of its resolution, by which Pillow multiplies, whatever that is."""
    bare = bytearray(data)
    for place, tag, _, order in _entries(data):
        if tag == RESOLUTION_UNIT:
            struct.pack_into(order + "H", bare, place, RESOLUTION_UNIT - 1)  # no tag has this
    return bytes(bare)
