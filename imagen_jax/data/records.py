"""TFRecord and ArrayRecord files of tf.train.Example, without TensorFlow.

The framing is documented in tensorflow/core/lib/io/record_writer.h, the message in
tensorflow/core/example/{example,feature}.proto.
"""

import functools
import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from imagen_jax.data.index import Index, Row, from_rows, numbers, size_of, stripped, to_captions
from imagen_jax.data.shards import Shard, check_uncompressed

LENGTH = 12  # bytes: the length and its checksum
CHECKSUM = 4
LARGEST_RECORD = 2**28


# --------------------------------------------------------------------------------- tf.train.Example


@functools.cache
def example_class() -> type[message.Message]:
    """The protocol buffer tf.train.Example, in a pool of its own beside TensorFlow's."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="imagen_jax/example.proto", package="imagen_jax", syntax="proto3"
    )

    def add(name: str) -> descriptor_pb2.DescriptorProto:
        return file.message_type.add(name=name)

    def add_field(to: Any, name: str, number: int, kind: Any, repeated: bool, **more: Any) -> None:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        to.field.add(name=name, number=number, type=kind, label=label, **more)

    lists = {"bytes_list": field.TYPE_BYTES, "float_list": field.TYPE_FLOAT}
    lists["int64_list"] = field.TYPE_INT64
    for name, kind in lists.items():
        add_field(add(name.title().replace("_", "")), "value", 1, kind, True)
    feature = add("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, 1):
        of = f".imagen_jax.{name.title().replace('_', '')}"
        add_field(feature, name, number, field.TYPE_MESSAGE, False, type_name=of, oneof_index=0)
    features = add("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add_field(entry, "key", 1, field.TYPE_STRING, False)
    value = ".imagen_jax.Feature"
    add_field(entry, "value", 2, field.TYPE_MESSAGE, False, type_name=value)
    of = ".imagen_jax.Features.FeatureEntry"
    add_field(features, "feature", 1, field.TYPE_MESSAGE, True, type_name=of)
    of = ".imagen_jax.Features"
    add_field(add("Example"), "features", 1, field.TYPE_MESSAGE, False, type_name=of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("imagen_jax.Example"))


def parse_example(record: bytes) -> dict[str, list]:
    """The features of a serialized tf.train.Example by name: lists of bytes, floats or ints."""
    try:
        example = example_class().FromString(record)
    except message.DecodeError as error:
        raise ValueError(f"is no tf.train.Example: {error}") from error
    values = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values[name] = list(getattr(feature, kind).value) if kind else []
    return values


def one(values: dict[str, list], name: str) -> Any:
    """The only value of a feature."""
    found = values.get(name)
    if found is None or len(found) != 1:
        known = ", ".join(sorted(values)) or "none"
        count = "is missing" if found is None else f"has {len(found)} values"
        raise ValueError(f"its feature {name!r} {count}; its features are: {known}")
    return found[0]


def example_image(values: dict[str, list], name: str) -> bytes:
    data = one(values, name)
    if not isinstance(data, bytes):
        raise ValueError(f"its feature {name!r} is no bytes of an image file")
    return data


def example_captions(values: dict[str, list], name: str) -> list[tuple[str, float]]:
    texts = values.get(name)
    if not texts or not all(isinstance(text, bytes) for text in texts):
        raise ValueError(f"its feature {name!r} is no text")
    try:
        return stripped(to_captions(texts))
    except UnicodeDecodeError as error:
        raise ValueError(f"its caption is not in UTF-8 ({error})") from error


def example_label(values: dict[str, list], name: str) -> int:
    label = one(values, name)
    if type(label) is not int or not 0 <= label < 2**31:
        raise ValueError(f"its feature {name!r} is {label!r}; it must be a class number")
    return label


# ----------------------------------------------------------------------------------------- TFRecord


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files."""
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError("TFRecord needs google-crc32c: pip install imagen_jax[train]") from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_frames(file: Any, length: int) -> Iterator[tuple[int, int, str | None]]:
    """(offset, size, fault) of each record's data; after a damaged length nothing can be found."""
    position = 0
    while position < length:
        file.seek(position)
        header = file.read(LENGTH)
        fault = None
        if len(header) == LENGTH:
            size, checksum = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != checksum:
                fault = "the length of a record is damaged"
            elif position + LENGTH + size + CHECKSUM > length:
                fault = "the file is cut off"
        else:
            fault = "the file is cut off"
        if fault is not None:
            yield position, 0, f"{fault} at byte {position:,}, and all after it is lost"
            return
        too_large = f"has {size:,} bytes, more than {LARGEST_RECORD:,}"
        yield position + LENGTH, size, too_large if size > LARGEST_RECORD else None
        position += LENGTH + size + CHECKSUM


def read_tfrecord(shard: Shard, span: tuple[int, int]) -> bytes:
    """The bytes of a record; ValueError where they are not as they were written."""
    offset, size = span
    data = shard.read(offset, offset + size + CHECKSUM)
    record, checksum = data[:size], data[size:]
    if len(checksum) != CHECKSUM or masked_crc32c(record) != struct.unpack("<I", checksum)[0]:
        raise ValueError("its bytes are damaged: the checksum differs")
    return record


def scan_tfrecord(shard: Shard, text: str, parse: bool) -> Index:
    """The records of a file; with `parse` also their sizes and numbers, which reads all of it."""
    rows = []
    with shard.open() as file:
        for number, (offset, size, fault) in enumerate(read_frames(file, shard.size)):
            row = Row(record_key(shard, number), ((offset, size),))
            if fault is not None:
                if number == 0:
                    check_uncompressed(shard)
                row = Row(row.key, ((0, 0),), faults={"image": fault})
            elif parse:
                row = _parsed(row, functools.partial(read_tfrecord, shard, (offset, size)), text)
            rows.append(row)
    return from_rows(rows, members=1)


def record_key(shard: Shard, number: int) -> str:
    return f"{shard.name}/{number}"


def _parsed(row: Row, read: Any, text: str) -> Row:
    """A row with what its record says of itself; what cannot be read is found when it is used."""
    try:
        values = parse_example(read())
    except ValueError as error:
        return Row(row.key, row.spans, faults={"image": str(error)})
    single = {name: value[0] for name, value in values.items() if len(value) == 1}
    try:
        length = len(example_captions(values, text)[0][0])
    except ValueError:
        length = 0
    return Row(row.key, row.spans, size_of(single), length, numbers(single))


# -------------------------------------------------------------------------------------- ArrayRecord


@functools.lru_cache(maxsize=256)  # each holds a file, and 1024 is a common limit for a process
def array_records(path: str) -> Any:
    """An ArrayRecord file: len, and records by number; readers are kept open."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(path)


def read_array_record(shard: Shard, number: int) -> bytes:
    try:
        return array_records(shard.path)[number]
    except Exception as error:  # of the C++ reader: RuntimeError, ValueError, IndexError
        raise ValueError(f"cannot be read: {str(error)[:200]}") from error


def scan_array_record(shard: Shard, text: str, parse: bool) -> Index:
    """The records of a file; with `parse` also their sizes and numbers, which reads all of it."""
    try:
        count = len(array_records(shard.path))
    except Exception as error:
        row = Row(shard.name, ((0, 0),), faults={"image": f"no ArrayRecord file: {error}"[:200]})
        return from_rows([row], members=1)
    rows = []
    for number in range(count):
        row = Row(record_key(shard, number), ((number, 1),))
        if parse:
            row = _parsed(row, functools.partial(read_array_record, shard, number), text)
        rows.append(row)
    return from_rows(rows, members=1)
