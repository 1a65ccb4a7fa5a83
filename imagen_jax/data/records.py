"""TFRecord and ArrayRecord files of tf.train.Example, without TensorFlow.

The framing is documented in tensorflow/core/lib/io/record_writer.h, the message in
tensorflow/core/example/{example,feature}.proto. TFRecord is parsed here because no small library
gives the offsets of its records; ArrayRecord is read by its own.
"""

import functools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf import message

from imagen_jax.data import fields
from imagen_jax.data.index import Index, Row, from_rows
from imagen_jax.data.shards import Shard, refuse_other_files
from imagen_jax.storage.protobuf import message_class

LENGTH = 12  # bytes: the length and its checksum
CHECKSUM = 4
LARGEST_RECORD = 2**28

Span = tuple[int, int]  # (offset, size) in a TFRecord file; (number, 1) in an ArrayRecord file
ReadRecord = Callable[[Shard, Span], bytes]


# --------------------------------------------------------------------------------- tf.train.Example

EXAMPLE_PROTO = """
name: "imagen_jax/example.proto" package: "imagen_jax" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "FloatList"
  field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "Int64List"
  field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type { name: "Feature"
  oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type_name: "BytesList" label: LABEL_OPTIONAL oneof_index: 0 }
  field { name: "float_list" number: 2 type_name: "FloatList" label: LABEL_OPTIONAL oneof_index: 0 }
  field { name: "int64_list" number: 3 type_name: "Int64List" label: LABEL_OPTIONAL oneof_index: 0 }
}
message_type { name: "Features"
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type_name: "Feature" label: LABEL_OPTIONAL } }
  field { name: "feature" number: 1 type_name: "FeatureEntry" label: LABEL_REPEATED } }
message_type { name: "Example"
  field { name: "features" number: 1 type_name: "Features" label: LABEL_OPTIONAL } }
"""


def parse_example(record: bytes) -> dict[str, list]:
    """The features of a serialized tf.train.Example by name: lists of bytes, floats or ints."""
    try:
        example = message_class(EXAMPLE_PROTO, "Example").FromString(record)
    except message.DecodeError as error:
        raise ValueError(f"is not a tf.train.Example: {error}") from error
    kinds = {name: (f, f.WhichOneof("kind")) for name, f in example.features.feature.items()}
    return {
        name: list(getattr(feature, kind).value) if kind else []
        for name, (feature, kind) in kinds.items()
    }


def _one(values: dict[str, list], name: str) -> Any:
    """The only value of a feature."""
    found = values.get(name)
    if found is None or len(found) != 1:
        known = ", ".join(sorted(values)) or "none"
        count = "is missing" if found is None else f"has {len(found)} values"
        raise ValueError(f"its feature {name!r} {count}; its features are: {known}")
    return found[0]


def read_example(
    shard: Shard, spans: np.ndarray, names: Mapping[str, str], read: ReadRecord
) -> dict[str, Any]:
    """{role: the value of its feature} of the roles in `names`; several values of a text."""
    values = parse_example(read(shard, tuple(spans[0].tolist())))
    return {
        role: values.get(name) if role == "text" else _one(values, name)
        for role, name in names.items()
    }


def scan_records(
    shard: Shard,
    spans: Callable[[Shard], Iterator[tuple[Span, str | None]]],
    read: ReadRecord,
    text: str,
    parse: bool,
) -> Index:
    """The records of a file; with `parse` also their sizes and numbers, which reads all of it.

    spans: the place of each record, and why it cannot be read.
    """
    rows = []
    for number, (span, fault) in enumerate(spans(shard)):
        row = Row(f"{shard.name}/{number}", (span,), faults={"image": fault} if fault else {})
        rows.append(_parsed(row, read, shard, text) if parse and not fault else row)
    return from_rows(rows, members=1)


def _parsed(row: Row, read: ReadRecord, shard: Shard, text: str) -> Row:
    """A row with what its record says of itself; what cannot be read is found when it is used."""
    try:
        values = parse_example(read(shard, row.spans[0]))
    except ValueError as error:
        return Row(row.key, row.spans, faults={"image": str(error)})
    try:
        length = len(fields.to_captions(values.get(text), text)[0][0])
    except ValueError:
        length = 0
    single = {name: value[0] for name, value in values.items() if len(value) == 1}
    return Row(row.key, row.spans, fields.to_size(single), length, fields.to_numbers(single))


# ----------------------------------------------------------------------------------------- TFRecord


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files."""
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError("TFRecord needs crc32c: pip install 'imagen_jax[train]'") from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tfrecord_spans(shard: Shard) -> Iterator[tuple[Span, str | None]]:
    """((offset, size), fault) of each record's data; after a damaged length nothing can be found.

    Raises ValueError where the file is compressed.
    """
    with shard.open() as file:
        position = 0
        while position < shard.size:
            file.seek(position)
            header, start = file.read(LENGTH), position + LENGTH
            size, checksum = struct.unpack("<QI", header.ljust(LENGTH, b"\0"))
            end = start + size + CHECKSUM
            damaged = len(header) == LENGTH and masked_crc32c(header[:8]) != checksum
            if damaged or end > shard.size:
                if position == 0:
                    refuse_other_files(shard)
                fault = "the length of a record is damaged" if damaged else "the file is cut off"
                yield (0, 0), f"{fault} at byte {position:,}, and all after it is lost"
                return
            too_large = f"has {size:,} bytes, more than {LARGEST_RECORD:,}"
            yield (start, size), too_large if size > LARGEST_RECORD else None
            position = end


def read_tfrecord(shard: Shard, span: Span) -> bytes:
    """The bytes of a record; ValueError where they are not as they were written."""
    offset, size = span
    data = shard.read(offset, offset + size + CHECKSUM)
    record, checksum = data[:size], data[size:]
    if len(checksum) != CHECKSUM or masked_crc32c(record) != struct.unpack("<I", checksum)[0]:
        raise ValueError("its bytes are damaged: the checksum differs")
    return record


# -------------------------------------------------------------------------------------- ArrayRecord


@functools.lru_cache(maxsize=256)  # each holds a file, and 1024 is a common limit for a process
def array_records(path: str) -> Any:
    """An ArrayRecord file: len, and records by number; readers are kept open."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(path)


def array_record_spans(shard: Shard) -> Iterator[tuple[Span, str | None]]:
    """((number, 1), None) of each record; one with a fault where the file cannot be opened."""
    try:
        count = len(array_records(shard.path))
    except Exception as error:  # of the C++ reader: RuntimeError, ValueError, IndexError
        yield (0, 0), f"is in a file that is not ArrayRecord: {error}"[:200]
        return
    yield from (((number, 1), None) for number in range(count))


def read_array_record(shard: Shard, span: Span) -> bytes:
    """The bytes of a record; ValueError where they cannot be read."""
    try:
        return array_records(shard.path)[span[0]]
    except Exception as error:  # as above
        raise ValueError(f"cannot be read: {str(error)[:200]}") from error
