"""Protocol buffers of other projects' files, without their generated code."""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format


@functools.cache
def message_class(description: str, name: str) -> type[message.Message]:
    """The class of a message, in a pool of its own, so that it may stand beside TensorFlow's.

    Args:
        description: a FileDescriptorProto as text, in the package imagen_jax.
        name: of the message in it.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(description, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"imagen_jax.{name}"))
