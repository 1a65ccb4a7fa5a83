"""Accelerators that are not here: the devices of a topology, to compile a program for."""

import dataclasses
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from imagen_jax.devices.chips import Chip, find_chip
from imagen_jax.devices.gpus import GPUS, description

FORMS = (
    "v5p:4x4x4 (chips along three axes), v5e:16x16 or v6e:16x16 (along two); for GPUs "
    f"({', '.join(GPUS)}) h100, h100:8 (on one host) or h100:2x8 (on each of two)"
)
# The best that large matrix products reach on an H100 or H200 of its peak.
GPU_SHARE = 0.8
# What a custom kernel of a TPU, of which the compiler gives no cycles, is taken to reach.
TPU_SHARE = 0.6
# What a program may use of a GPU's memory; the rest is CUDA's, cuDNN's and NCCL's.
GPU_USABLE = 0.95


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices of a topology.

    name: of the topology. unit: what a device is called, "chip" of a TPU or "GPU". reached: the
    chip with the FLOP/s that a kernel of which the compiler says nothing is taken to reach. memory:
    bytes of a device. usable: the share of it that a program may use.
    """

    name: str
    unit: str
    devices: list[Any]
    chip: Chip
    reached: Chip
    memory: int
    usable: float = 1.0


def find_target(name: str) -> Target:
    """The accelerators of a topology such as v5p:4x4x4 or h100:2x8.

    Raises:
        ValueError: there is no topology of this name, or its compiler is not installed.
    """
    kind = name.partition(":")[0]
    if kind in GPUS:
        return _gpus(name)
    if re.match(r"v\d", kind):
        return _tpus(name)
    raise unknown(name)


def unknown(name: str) -> ValueError:
    """The error for a topology that is not known."""
    return ValueError(f"there is no topology {name!r}; known forms are {FORMS}")


def gpu_shape(name: str) -> tuple[int, int]:
    """Hosts, and GPUs on each, of a name such as h100:2x8; ValueError where it names none."""
    shape = re.fullmatch(r"\w+(?::(?:([1-9]\d*)x)?([1-9]\d*))?", name)
    if not shape:
        raise unknown(name)
    hosts, each = (int(size or 1) for size in shape.groups())
    return hosts, each


def slower(chip: Chip, share: float = GPU_SHARE) -> Chip:
    """A chip with the share of its peak that kernels reach."""
    return dataclasses.replace(chip, flops=share * chip.flops)


def _gpus(name: str) -> Target:
    (hosts, each), gpu = gpu_shape(name), GPUS[name.partition(":")[0]]
    install = "in Python 3.12, pip install 'imagen_jax[cuda-plan]'"
    if jax.__version_info__ < (0, 11):
        raise ValueError(f"planning for GPUs needs jax 0.11, this is {jax.__version__}: {install}")
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology=f"1x{hosts}x{each}", target_config=description(gpu)
        ).devices
    except NotImplementedError:  # jax knows no such platform
        raise ValueError(
            f"planning for GPUs needs jax's CUDA compiler, which runs without a GPU: {install}"
        ) from None
    return Target(name, "GPU", found, gpu.chip, slower(gpu.chip), gpu.memory, GPU_USABLE)


def _tpus(name: str) -> Target:
    # Nothing runs on a TPU here, so another process may have loaded the compiler as well.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "planning needs the TPU compiler, which runs without a TPU: "
            "pip install 'imagen_jax[tpu]'"
        ) from error
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise unknown(name) from error
    chip = find_chip(found[0].device_kind)
    if chip is None:
        raise ValueError(f"the peaks of {found[0].device_kind!r} are not in devices/chips.py")
    if chip.name == "v4":
        # Its compiler takes the two cores of a chip for devices unless it runs on one.
        raise ValueError(f"{name!r}: v4 cannot be compiled for without a v4; plan another TPU")
    return Target(name, "chip", found, chip, slower(chip, TPU_SHARE), int(chip.hbm))
