"""The float constants of a frozen TensorFlow graph (a GraphDef), read without TensorFlow.

Of tensorflow/core/framework's graph.proto, node_def.proto, attr_value.proto, tensor.proto and
tensor_shape.proto a few fields are needed; protobuf skips the others.
"""

import functools
import math
import os
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

MAX_BYTES = 2**31  # protobuf's own limit
MAX_AXES = 32
DT_FLOAT = 1
PACKAGE = "imagen_jax.graph"
FIELD = descriptor_pb2.FieldDescriptorProto
ONE, MANY = FIELD.LABEL_OPTIONAL, FIELD.LABEL_REPEATED
# Message -> its fields: name, number, how often, type (a message's name, or a plain type).
MESSAGES = {
    "Axis": [("size", 1, ONE, FIELD.TYPE_INT64)],
    "Shape": [("dim", 2, MANY, "Axis")],
    "Tensor": [
        ("dtype", 1, ONE, FIELD.TYPE_INT32),
        ("tensor_shape", 2, ONE, "Shape"),
        ("tensor_content", 4, ONE, FIELD.TYPE_BYTES),
        ("float_val", 5, MANY, FIELD.TYPE_FLOAT),
    ],
    "Value": [("tensor", 8, ONE, "Tensor")],
    "Attribute": [("key", 1, ONE, FIELD.TYPE_STRING), ("value", 2, ONE, "Value")],
    "Node": [
        ("name", 1, ONE, FIELD.TYPE_STRING),
        ("op", 2, ONE, FIELD.TYPE_STRING),
        ("attr", 5, MANY, "Attribute"),
    ],
    "Graph": [("node", 1, MANY, "Node")],
}


@functools.cache
def graph_class() -> type[message.Message]:
    """The protocol buffer GraphDef, in a pool of its own beside TensorFlow's."""
    file = descriptor_pb2.FileDescriptorProto(name="graph.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        entry = file.message_type.add(name=name)
        for field, number, label, kind in fields:
            named = isinstance(kind, str)
            what = {"type_name": f".{PACKAGE}.{kind}"} if named else {"type": kind}
            entry.field.add(name=field, number=number, label=label, **what)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Graph"))


def read_constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The constants of type float32 by their nodes' names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole GraphDef.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.stat().st_size >= MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than a graph can have")
        graph = graph_class().FromString(path.read_bytes())
        tensors = {
            node.name: attribute.value.tensor
            for node in graph.node
            for attribute in node.attr
            if node.op == "Const" and attribute.key == "value"
        }
        constants = {name: _array(name, t) for name, t in tensors.items() if t.dtype == DT_FLOAT}
    except message.DecodeError:
        raise ValueError(f"{path} is not a whole TensorFlow graph: it is cut or damaged.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a whole TensorFlow graph: {error}.") from None
    if not constants:
        raise ValueError(f"{path} is not a frozen TensorFlow graph: it has no constants.")
    return constants


def _array(name: str, tensor: message.Message) -> np.ndarray:
    """Either the bytes of all its numbers, or each; a single one fills all."""
    shape = [axis.size for axis in tensor.tensor_shape.dim]
    content = tensor.tensor_content or np.asarray(tensor.float_val, "<f4").tobytes()
    count = math.prod(shape)
    sound = len(shape) <= MAX_AXES and 0 < 4 * count < MAX_BYTES
    if not sound or len(content) not in (4 * count, 4):
        raise ValueError(f"the constant {name!r} of shape {shape} has {len(content)} bytes")
    array = np.frombuffer(content, "<f4")
    return np.broadcast_to(array, count).reshape(shape) if len(array) == 1 else array.reshape(shape)
