"""The float constants of a frozen TensorFlow graph (a GraphDef), read without TensorFlow.

Of tensorflow/core/framework's graph.proto, node_def.proto, attr_value.proto, tensor.proto and
tensor_shape.proto a few fields are needed; protobuf skips the others.
"""

import math
import os
from pathlib import Path

import numpy as np
from google.protobuf import message

from imagen_jax.storage.protobuf import message_class
from imagen_jax.storage.wrong_files import absent, refusal

MAX_BYTES = 2**31  # protobuf's own limit
MAX_AXES = 32
DT_FLOAT = 1
GRAPH_PROTO = """
name: "imagen_jax/graph.proto" package: "imagen_jax" syntax: "proto3"
message_type { name: "Dim"
  field { name: "size" number: 1 type: TYPE_INT64 label: LABEL_OPTIONAL } }
message_type { name: "TensorShape"
  field { name: "dim" number: 2 type_name: "Dim" label: LABEL_REPEATED } }
message_type { name: "Tensor"
  field { name: "dtype" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL }
  field { name: "tensor_shape" number: 2 type_name: "TensorShape" label: LABEL_OPTIONAL }
  field { name: "tensor_content" number: 4 type: TYPE_BYTES label: LABEL_OPTIONAL }
  field { name: "float_val" number: 5 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "AttrValue"
  field { name: "tensor" number: 8 type_name: "Tensor" label: LABEL_OPTIONAL } }
message_type { name: "NodeDef"
  nested_type { name: "AttrEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type_name: "AttrValue" label: LABEL_OPTIONAL } }
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "op" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "attr" number: 5 type_name: "AttrEntry" label: LABEL_REPEATED } }
message_type { name: "GraphDef"
  field { name: "node" number: 1 type_name: "NodeDef" label: LABEL_REPEATED } }
"""


def read_constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The constants of type float32 by their nodes' names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole GraphDef.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(absent(path))
    try:
        if path.stat().st_size >= MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than a graph can have")
        graph = message_class(GRAPH_PROTO, "GraphDef").FromString(path.read_bytes())
        tensors = {
            node.name: node.attr["value"].tensor for node in graph.node if node.op == "Const"
        }
        constants = {name: _array(name, t) for name, t in tensors.items() if t.dtype == DT_FLOAT}
    except (ValueError, message.DecodeError) as error:
        reason = error if isinstance(error, ValueError) else "it is cut or damaged"
        raise ValueError(refusal(path, "a whole TensorFlow graph", reason)) from None
    if not constants:
        reason = "it has no constants"
        raise ValueError(refusal(path, "a frozen TensorFlow graph", reason))
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
