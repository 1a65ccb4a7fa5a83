"""Sound image files with odd metadata, and color profiles, written byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
Entry = tuple[int, int, int, bytes | None]  # tag, kind, count, value


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tags(entries: list[Entry], order: str = ">", after: bytes = b"") -> bytes:
    """TIFF's tags, as EXIF has them; a value None is the place of `after`, which comes last."""
    entries = sorted(entries, key=lambda entry: entry[0])
    start = 8 + 2 + 12 * len(entries) + 4
    end = start + sum(len(value) for *_, value in entries if value and len(value) > 4)
    table, values = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        value = struct.pack(order + "I", end) if value is None else value
        table += struct.pack(order + "HHI", tag, kind, count)
        if len(value) > 4:
            table += struct.pack(order + "I", start + len(values))
            values += value
        else:
            table += value.ljust(4, b"\0")
    head = b"MM\0*" if order == ">" else b"II*\0"
    return head + struct.pack(order + "I", 8) + table + bytes(4) + values + after


def orientation(value: int, order: str = ">") -> Entry:
    return ORIENTATION, 3, 1, struct.pack(order + "H", value)


def jpeg(image: Image.Image, exif: bytes) -> bytes:
    """As phones write it, without JFIF: Pillow then reads EXIF when it opens the file."""
    data = encode(image, "JPEG", quality=95, subsampling=0)
    rest = data[4 + int.from_bytes(data[4:6], "big") :]
    segment = b"Exif\0\0" + exif
    return data[:2] + struct.pack(">HH", 0xFFE1, len(segment) + 2) + segment + rest


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(image: Image.Image, *chunks: tuple[bytes, bytes], last: bool = False) -> bytes:
    """With chunks, (name, bytes), before the pixels or after them."""
    data = encode(image, "PNG")
    at = data.index(b"IEND" if last else b"IDAT") - 4
    return data[:at] + b"".join(chunk(*added) for added in chunks) + data[at:]


def png_of_16_bits(values: np.ndarray, kind: int) -> bytes:
    """uint16 [height, width, channels]. kind: 0 grey, 2 RGB, 4 and 6 these with alpha."""
    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(pixels: np.ndarray, entries: list[Entry], order: str = "<", kind: int = 2) -> bytes:
    """uint8 or uint16 [height, width, channels], without compression. kind: 2 is RGB."""
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()

    def short(*values: int) -> bytes:
        return struct.pack(order + f"{len(values)}H", *values)

    own = [
        (256, 3, 1, short(width)),
        (257, 3, 1, short(height)),
        (258, 3, channels, short(*[8 * pixels.itemsize] * channels)),
        (259, 3, 1, short(1)),
        (262, 3, 1, short(kind)),
        (273, 4, 1, None),
        (277, 3, 1, short(channels)),
        (278, 3, 1, short(height)),
        (279, 4, 1, struct.pack(order + "I", len(data))),
    ]
    return tags(own + entries, order, data)


# ---------------------------------------------------------------------------------- ICC profiles

DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
ADOBE_RGB = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
D50 = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: str, connection: str, entries: dict[str, bytes]) -> bytes:
    """An ICC profile (version 2.4) of these tags."""
    table, values = struct.pack(">I", len(entries)), b""
    start = 128 + 4 + 12 * len(entries)
    for name, value in entries.items():
        table += name.encode() + struct.pack(">II", start + len(values), len(value))
        values += value.ljust(-(-len(value) // 4) * 4, b"\0")
    head = struct.pack(">I", start + len(values)) + b"test" + struct.pack(">I", 0x02400000)
    head += (b"prtr" if space == "CMYK" else b"mntr") + space.ljust(4).encode()
    head += connection.ljust(4).encode() + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp"
    return head.ljust(68, b"\0") + _fixed(*D50) + bytes(48) + table + values


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    """primaries: XYZ, for white D50, of red, green and blue as columns."""
    entries = {"wtpt": b"XYZ \0\0\0\0" + _fixed(*D50)}
    for name, color in zip("rgb", primaries.T, strict=True):
        entries[name + "XYZ"] = b"XYZ \0\0\0\0" + _fixed(*color)
        entries[name + "TRC"] = _curve(gamma)
    return profile("RGB", "XYZ", entries)


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ \0\0\0\0" + _fixed(*D50)
    return profile("GRAY", "XYZ", {"wtpt": white, "kTRC": _curve(gamma)})


def cmyk_profile(cyan: tuple[int, int, int]) -> bytes:
    """Inks by a table: of cyan alone this Lab color, of any black, black, else grey."""
    lab = np.zeros((2, 2, 2, 2, 3), np.uint8)
    lab[..., 0, :] = 128, 128, 128
    lab[..., 1, :] = 0, 128, 128
    lab[0, 0, 0, 0] = 255, 128, 128
    lab[1, 0, 0, 0] = round(cyan[0] * 2.55), cyan[1] + 128, cyan[2] + 128
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * ramp + lab.tobytes() + 3 * ramp
    white = b"XYZ \0\0\0\0" + _fixed(*D50)
    return profile("CMYK", "Lab", {"wtpt": white, "A2B0": table, "A2B1": table})


def srgb_of(xyz: np.ndarray) -> np.ndarray:
    """sRGB 0...255 of XYZ for white D50 (IEC 61966-2-1)."""
    linear = np.clip(xyz @ np.linalg.inv(SRGB).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * encoded


def xyz_of_lab(lab: tuple[float, float, float]) -> np.ndarray:
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    return np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
