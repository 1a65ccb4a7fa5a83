"""Where arrays live: the device mesh, and the one table from parameter paths to mesh axes.

Three axes. `data`: copies of the model on different images. `fsdp`: also different images, and
each device keeps only its share of parameters, optimizer state and EMA, gathered layer by layer.
`tensor`: one image's channels and heads split over devices. Nothing else in the package names a
mesh axis.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Path regex -> which axis of the kernel the `tensor` mesh axis splits (counted from the end), first
# match wins. Projections that end a block (attention's and the MLP's output, a block's second
# convolution) split their input, as in Megatron-LM (1909.08053, section 3), so that the pair needs
# one reduction; everything else splits its output.
TENSOR_RULES: tuple[tuple[str, int | None], ...] = (
    (r"(^|/)(relative_bias|time_embed\w*|norm\w*|\w*_norm)(/|$)", None),
    (r"(^|/)(out|patch_out|output|wo|proj_out|conv2|conv_2)/kernel$", -2),
    (r"(^|/)embedding$", -1),
    (r"/kernel$", -1),
)
# Parameters of layers that run in a loop, stacked on their first axis.
STACKED = re.compile(r"(^|/)(\w+_)?layers/")
# A quantized kernel's numbers and scales, which lie as the kernel would.
QUANTIZED = re.compile(r"(?<=/kernel)/(int8|int4|int8_dynamic|scales)$")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be None: it takes the remaining devices."""

    data: int | None = None
    fsdp: int | None = 1
    tensor: int | None = 1


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """The mesh's shape (data, fsdp, tensor) on `num_devices`; ValueError where it does not fit them
    exactly.
    """
    given = {name: size for name, size in vars(config).items() if size is not None}
    for name, size in given.items():
        if size < 1:
            raise ValueError(
                f"mesh.{name} must be 1 or more, or None for the remaining devices, not {size}"
            )
    free = [name for name in AXES if name not in given]
    if len(free) > 1:
        raise ValueError(f"only one mesh axis may be None, not {' and '.join(free)}")
    fixed = math.prod(given.values())
    named = f"mesh {_product(given)} = {fixed}"
    if not free and fixed != num_devices:
        raise ValueError(
            f"{named} devices, but there are {num_devices}; set one axis to None to use the rest"
        )
    if num_devices % fixed:
        raise ValueError(f"{named} does not divide the {num_devices} devices")
    return tuple(given.get(name, num_devices // fixed) for name in AXES)


def _product(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in sizes.items())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or those given), neighbours along `tensor` first."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError as error:
        given = dict(zip(AXES, shape, strict=True))
        raise ValueError(
            f"mesh {_product(given)} does not follow the links of the {len(devices)} devices: each "
            "axis must be a product of sides of their torus (of 4x4x4: 4, 16 or 64)"
        ) from error


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """ValueError unless the batch splits evenly over the mesh's data and fsdp axes, and so over the
    hosts.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        lower, upper = batch_size // parts * parts, -(-batch_size // parts) * parts
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        raise ValueError(
            f"batch_size {batch_size} does not split over data {mesh.shape['data']} x "
            f"fsdp {mesh.shape['fsdp']} = {parts} parts; the nearest that does is {nearest}"
        )
    host_groups(mesh)


def host_rows(mesh: Mesh, batch_size: int, host: int) -> tuple[int, ...]:
    """The rows of a whole batch that lie on a host's devices, in their order.

    A mesh follows the links of its devices, so these are seldom contiguous.
    """
    places = batch_sharding(mesh).devices_indices_map((batch_size,))
    parts = {
        part.indices(batch_size)
        for device, (part,) in places.items()
        if device.process_index == host
    }
    return tuple(row for part in sorted(parts) for row in range(*part))


def host_groups(mesh: Mesh) -> list[list[int]]:
    """The hosts that hold the same rows of a batch, as `tensor` over several hosts makes them, by
    the first of these rows.

    Raises:
        ValueError: two hosts share some of their rows and not all.
    """
    parts, groups = batch_parts(mesh), {}
    for host in sorted({device.process_index for device in mesh.devices.flat}):
        groups.setdefault(host_rows(mesh, parts, host), []).append(host)
    if sum(map(len, groups)) != parts:
        raise ValueError(
            f"mesh.tensor {mesh.shape['tensor']} gives hosts some of their images in common and "
            "others not: it must divide the devices of a host, or be a multiple of them"
        )
    return [groups[rows] for rows in sorted(groups)]


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How one parameter (or its optimizer moment, or its average) is split. `path` is joined by
    "/".

    `tensor` by TENSOR_RULES; `fsdp` on the largest remaining axis that it divides, but never that
    along which layers are stacked. What nothing divides is replicated.
    """
    path, first = QUANTIZED.sub("", path), 1 if STACKED.search(path) else 0
    if len(shape) - first < 2:  # vectors stay whole: gathering a bias costs more than it saves
        return PartitionSpec()
    axes: list[str | None] = [None] * len(shape)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    place = next((axis for pattern, axis in TENSOR_RULES if re.search(pattern, path)), None)
    if tensor > 1 and place is not None and shape[place] % tensor == 0:
        axes[place] = "tensor"
    free = [i for i in range(first, len(axes)) if axes[i] is None and shape[i] % fsdp == 0]
    if fsdp > 1 and free:
        axes[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """NamedShardings for a pytree of arrays (or shapes): parameters, EMA and optimizer state by the
    same rules.
    """

    def sharding(key_path, leaf):
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(path, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def frozen_shardings(frozen: Any, mesh: Mesh, split: bool = True) -> Any:
    """NamedShardings for parameters that are read and not trained: those of `state_shardings`, or,
    not `split`, whole on each device along `fsdp`.
    """
    shardings = state_shardings(frozen, mesh)
    return shardings if split else jax.tree.map(whole_along_fsdp, shardings)


def whole_along_fsdp(sharding: NamedSharding) -> NamedSharding:
    """The same, but not split over `fsdp`."""
    spec = (None if axis == "fsdp" else axis for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def gather_shards(params: Any, mesh: Mesh) -> Any:
    """Inside a jitted function: parameters whole along `fsdp`, as a layer uses them.

    Left to itself, XLA may split the arithmetic as the parameters are split. For a strided
    convolution whose kernel is split twice the gradient of its input is then wrong (jax issue
    16894; seen on data 2 x fsdp 2 x tensor 2). Gradients are split again where they are summed, so
    that a device receives no more of them than it keeps.
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def gather(leaf, sharding):
        @jax.custom_vjp
        def whole(part):
            return jax.lax.with_sharding_constraint(part, whole_along_fsdp(sharding))

        def gradient(_, d_whole):
            return (jax.lax.with_sharding_constraint(d_whole, sharding),)

        whole.defvjp(lambda part: (whole(part), None), gradient)
        return whole(leaf)

    return jax.tree.map(gather, params, state_shardings(params, mesh))


def by_heads(mesh: Mesh, function: Any, *arrays: Any) -> Any:
    """`function` of arrays [batch, heads, ...] and [batch], on each device of its own images and,
    where `tensor` divides the heads, its own heads: for kernels that XLA does not split. What it
    gives is [batch, heads, ...].
    """
    tensor = "tensor" if arrays[0].shape[1] % mesh.shape["tensor"] == 0 else None
    whole = PartitionSpec(*BATCH, tensor)
    specs = jax.tree.map(lambda array: whole if array.ndim > 1 else BATCH, arrays)
    run = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
    return run(*arrays)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over data and fsdp; devices along tensor see the same images."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: dict[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch (`host_rows`) -> global arrays. The arrays may be used without a
    copy: do not write to them afterwards. What is on the devices already stays as it is.
    """
    sharding = batch_sharding(mesh)
    return {
        name: value
        if isinstance(value, jax.Array)
        else jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
