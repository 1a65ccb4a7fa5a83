"""The float constants of a frozen TensorFlow graph (a GraphDef in protobuf's wire format).

Read without TensorFlow: of tensorflow/core/framework's graph.proto, node_def.proto,
attr_value.proto, tensor.proto and tensor_shape.proto a dozen fields are needed.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_BYTES = 2**31  # protobuf's own limit
DT_FLOAT = 1
MAX_AXES = 32
# Field numbers.
GRAPH_NODE = 1
NODE_NAME, NODE_OP, NODE_ATTRIBUTE = 1, 2, 5
ENTRY_KEY, ENTRY_VALUE = 1, 2
ATTRIBUTE_TENSOR = 8
TENSOR_DTYPE, TENSOR_SHAPE, TENSOR_CONTENT, TENSOR_FLOATS = 1, 2, 4, 5
SHAPE_AXIS, AXIS_SIZE = 2, 1

Field = tuple[int, int | memoryview]


def read_constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The constants of type float32 by their nodes' names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole GraphDef.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.stat().st_size >= MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than a graph can have")
        constants = dict(_constants(memoryview(path.read_bytes())))
    except ValueError as error:
        raise ValueError(f"{path} is not a whole TensorFlow graph: {error}.") from None
    if not constants:
        raise ValueError(f"{path} is not a frozen TensorFlow graph: it has no constants.")
    return constants


def _constants(graph: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    for number, node in _fields(graph):
        if number != GRAPH_NODE:
            continue
        name, is_constant, attributes = "", False, []
        for field, value in _fields(_message(node)):
            if field == NODE_NAME:
                name = bytes(_message(value)).decode()
            elif field == NODE_OP:
                is_constant = bytes(_message(value)) == b"Const"
            elif field == NODE_ATTRIBUTE:
                attributes.append(dict(_fields(_message(value))))
        for attribute in attributes if is_constant else ():
            if bytes(_message(attribute.get(ENTRY_KEY, 0))) == b"value":
                content = dict(_fields(_message(attribute.get(ENTRY_VALUE, 0))))
                array = _tensor(name, _message(content.get(ATTRIBUTE_TENSOR, 0)))
                if array is not None:
                    yield name, array


def _tensor(name: str, tensor: memoryview) -> np.ndarray | None:
    """A float32 array; None for another type."""
    fields = list(_fields(tensor))
    values = dict(fields)
    if values.get(TENSOR_DTYPE) != DT_FLOAT:
        return None
    shape = []
    for number, axis in _fields(_message(values.get(TENSOR_SHAPE, memoryview(b"")))):
        if number == SHAPE_AXIS:
            size = dict(_fields(_message(axis))).get(AXIS_SIZE, 0)
            shape.append(size if isinstance(size, int) else -1)
    count = math.prod(shape)
    # Either the bytes of all, or the floats of each, packed or one by one; a single one fills all.
    parts = [values.get(TENSOR_CONTENT, memoryview(b""))]
    if not len(_message(parts[0])):
        parts = [value for number, value in fields if number == TENSOR_FLOATS]
    content = b"".join(_message(part) for part in parts)
    sound = len(shape) <= MAX_AXES and 0 < 4 * count < MAX_BYTES
    if not sound or len(content) not in (4 * count, 4):
        raise ValueError(f"the constant {name!r} of shape {shape} has {len(content)} bytes")
    array = np.frombuffer(content, "<f4")
    return np.broadcast_to(array, count).reshape(shape) if len(array) == 1 else array.reshape(shape)


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it has a number where a message belongs")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message: numbers, and everything else as bytes."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"it has a field of the unknown kind {kind}")
        if place + size > end:
            raise ValueError(f"a field ends at byte {place + size} of {end}")
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it ends within a number")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it has a number of more than 64 bits")
