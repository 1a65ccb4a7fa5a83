"""An image set kept on the devices (`data.on_device`): a step is sent which rows to take."""

from collections.abc import Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from imagen_jax.data import Loader
from imagen_jax.devices import hosts
from imagen_jax.devices.memory import size_text
from imagen_jax.devices.sharding import batch_sharding, replicated, shard_batch
from imagen_jax.training.feed import Batch, Batches


def take_images(
    rows: UInt8[Array, "images bytes"],
    row: Int[Array, " batch"],
    flip: Bool[Array, " batch"],
    size: tuple[int, int],
) -> UInt8[Array, "batch height width 3"]:
    """The images at these rows, mirrored where `flip` says; size: (height, width)."""
    images = rows[row].reshape(-1, *size, 3)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def check_room(images: np.ndarray, memory: Mapping[str, int], device: str) -> None:
    """ValueError where the images are larger than what is free on a device with these statistics;
    a CPU has none.
    """
    limit = memory.get("bytes_limit", float("inf"))
    free = limit - memory.get("bytes_in_use", 0)
    if images.nbytes > free:
        count, height, width, _ = images.shape
        raise ValueError(
            f"data.on_device: {count:,} images of {width}x{height} take {size_text(images.nbytes)} "
            f"on each device, and {size_text(free)} of {size_text(limit)} are free on {device}: "
            "data.on_device=False sends only each batch's images"
        )


def from_device(loader: Loader, mesh: jax.sharding.Mesh) -> Batches:
    """The batches of a loader `on_device`: image is taken out of the set, which lies whole on
    each device of the mesh, so that any row can be taken without asking another one.

    Raises:
        ValueError: the images are larger than what is free on a device.
    """
    images = loader.images
    for device in mesh.local_devices:
        check_room(images, device.memory_stats() or {}, device.device_kind)
    # A row an image: a last axis of 3 would be padded to 128 on a TPU.
    rows = hosts.place(images.reshape(len(images), -1), replicated(mesh))
    take = jax.jit(partial(take_images, size=images.shape[1:3]), out_shardings=batch_sharding(mesh))

    def start_at(start: int, state: None) -> Iterator[Batch]:
        for batch in loader.batches(start):
            chosen = shard_batch({name: batch.pop(name) for name in ("row", "flip")}, mesh)
            yield {"image": take(rows, **chosen), **batch}

    return start_at
