"""Shards for the tests: tars as img2dataset writes them, and records of tf.train.Example."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.data import records
from imagen_jax.storage.protobuf import message_class


def image(shade: int, size: tuple[int, int] = (20, 12), kind: str = "JPEG") -> bytes:
    """An image file of one grey."""
    data = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(
        data, kind, **({"quality": 95} if kind != "PNG" else {})
    )
    return data.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def write_tar(path: Path, numbers: range, kind: str = "JPEG", **note) -> None:
    """Example n is grey n with the caption "grey n"; `note` goes into each json."""
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            size = 20 + n, 12
            about = {"caption": f"grey {n}", "width": size[0], "height": size[1], "rank": n / 10}
            add(tar, f"{n:05d}.{'png' if kind == 'PNG' else 'jpg'}", image(n, size, kind))
            add(tar, f"{n:05d}.json", json.dumps(about | {"label": n % 3} | note).encode())
            add(tar, f"{n:05d}.txt", f"grey {n}".encode())


def serialized(**features) -> bytes:
    """A tf.train.Example of bytes, strings, ints and floats, or lists of them."""
    example = message_class(records.EXAMPLE_PROTO, "Example")()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        feature = example.features.feature[name]
        if isinstance(values[0], (bytes, str)):
            encoded = [v.encode() if isinstance(v, str) else v for v in values]
            feature.bytes_list.value.extend(encoded)
        elif isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return example.SerializeToString()


def example_record(n: int) -> bytes:
    size = 20 + n, 12
    fields = {"width": size[0], "height": size[1], "label": n % 3, "rank": n / 10}
    return serialized(image=image(n, size, "PNG"), text=f"grey {n}", **fields)


def frame(record: bytes) -> bytes:
    """A record as TFRecord files hold it."""
    length = struct.pack("<Q", len(record))
    checksums = [struct.pack("<I", records.masked_crc32c(part)) for part in (length, record)]
    return length + checksums[0] + record + checksums[1]


def write_array_record(path: Path, contents: list[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()


def grey(image: np.ndarray | Image.Image) -> int:
    """The grey of an example's image."""
    return round(float(np.asarray(image, np.float64).mean()))
