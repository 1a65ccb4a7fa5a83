"""What an image file tells of where it comes from, and whether that still holds. The file is not
trusted: anybody may have written it.
"""

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from imagen_jax.images.decoding import opened
from imagen_jax.images.image_file import SHEET, settings_text
from imagen_jax.images.provenance import PNG_XMP, SETTINGS_KEY, read_xmp
from imagen_jax.images.signing import Manifest, read_manifest
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import parse

MOST_BYTES = 2**29  # of a file
PNG = b"\x89PNG\r\n\x1a\n"  # begins one
OURS = ("seed", "sampling")  # settings of ours have both; other programs' comments may be JSON, too


@dataclass(frozen=True)
class Finding:
    """What is in a file. size: (width, height). xmp: what `read_xmp` finds. settings: ours.
    sheet: whether it is a grid, page or plot. faults: what is damaged or contradicts itself.
    """

    format: str
    size: tuple[int, int]
    xmp: Mapping[str, str]
    settings: Mapping[str, Any] | None
    sheet: bool
    manifest: Manifest | None
    faults: tuple[str, ...]


def inspect(path: str | os.PathLike, roots: bytes | None = None) -> Finding:
    """What a file says, checked.

    Args:
        roots: certificates (PEM) of those whom the reader trusts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not an image, or too large.
        ModuleNotFoundError: it has a C2PA manifest, and c2pa is not installed.
    """
    path = user_path(path)
    size = path.stat().st_size
    if not path.is_file():  # a pipe would be waited for, and a device has no end
        raise ValueError("it is no plain file")
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
    data, xmp, settings = path.read_bytes(), {}, None
    faults = list(_broken_chunks(data)) if data.startswith(PNG) else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of what is large
        try:
            image = opened(data)
        except ValueError as error:
            raise ValueError(f"damaged: {faults[0]}" if faults else str(error)) from None
        try:
            image.load()  # text may come after the pixels
        except Exception as error:  # Pillow's readers raise as many kinds as there are
            faults.append(f"its pixels cannot be decoded: {_reason(error)}")
        try:
            xmp = read_xmp(_xmp(image))
        except ValueError as error:
            faults.append(f"its XMP cannot be read: {error}")
        try:
            settings = _settings(image)
        except Exception as error:
            if SETTINGS_KEY in image.info:  # else another program's EXIF
                faults.append(f"its settings cannot be read: {_reason(error)}")
    manifest = read_manifest(data, image.format, roots)
    if manifest is not None:
        faults += [f"its signature does not hold: {fault}" for fault in manifest.faults]
        signed, told = manifest.source, xmp.get("source")
        if signed is not None and told is not None and signed != told:
            faults.append(f"its XMP says {told}, and its manifest {signed}")
    sheet = SHEET.keys() <= image.info.keys()
    return Finding(image.format, image.size, xmp, settings, sheet, manifest, tuple(faults))


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _xmp(image: Image.Image) -> bytes:
    found = image.info.get(PNG_XMP) or image.info.get("xmp") or b"<none/>"
    found = found.encode("utf-8", "replace") if isinstance(found, str) else found
    return found if isinstance(found, bytes) else b"<none/>"  # a TIFF's tag may be a number


def _settings(image: Image.Image) -> Mapping[str, Any] | None:
    found = parse(settings_text(image) or "null", lenient=True)
    return found if isinstance(found, dict) and found.keys() >= set(OURS) else None


def _broken_chunks(data: bytes) -> Iterator[str]:
    """The chunks of a PNG whose own checksum is not that of their bytes; each byte lies in one."""
    start = len(PNG)
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        kind, end = data[start + 4 : start + 8], start + 12 + size
        if end > len(data):
            yield f"it ends within its chunk at byte {start}"
            return
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            yield f"its chunk {kind.decode('ascii', 'replace')} at byte {start} was changed"
        if kind == b"IEND":
            if end < len(data):
                yield f"{len(data) - end} bytes follow its end"
            return
        start = end
    yield "it has no end"
