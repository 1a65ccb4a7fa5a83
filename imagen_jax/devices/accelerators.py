"""Which devices JAX runs on, and accelerators of the machine that it does not see."""

import importlib.util
import os
import pkgutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jax

# Files that an NVIDIA driver makes, also in a container and below Windows.
NVIDIA = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*", "usr/lib/wsl/lib/nvidia-smi")
TPU = ("dev/accel[0-9]*",)
HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES that leave no GPU


def check_backend() -> str:
    """The platform that JAX runs on: "cpu", "gpu" or "tpu".

    Raises:
        ValueError: that which JAX_PLATFORMS asks for cannot be used.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # without a GPU, jax fails an assertion
        asked = jax.config.jax_platforms
        reason = (str(error).splitlines() or [f"no device of {asked!r} was found"])[0]
        raise ValueError(
            f"JAX_PLATFORMS is {asked!r}: {reason}. An NVIDIA GPU needs "
            "pip install 'imagen_jax[cuda]', a TPU 'imagen_jax[tpu]'; JAX_PLATFORMS=cpu runs on "
            "the CPU"
        ) from None


def runs_cudnn_attention(device: jax.Device | None = None) -> bool:
    """Whether a device (None: the first) is an NVIDIA GPU of the Ampere generation or later, for
    which cuDNN has attention in 16 bits.
    """
    device = jax.devices()[0] if device is None else device
    if device.platform != "gpu":
        return False
    try:
        return float(device.compute_capability) >= 8
    except (AttributeError, ValueError):  # AMD's, such as gfx942
        return False


def unused_accelerator(machine: Path = Path("/")) -> str | None:
    """A line on an accelerator of this machine that JAX does not see, and what to install; None
    where there is none, or where the user chose the platform.

    Raises:
        ValueError: as of `check_backend`.
    """
    if check_backend() != "cpu" or jax.config.jax_platforms:
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN
    if not hidden and _any_file(machine, NVIDIA):
        name, extra, installed = "an NVIDIA GPU", "cuda", _has_cuda()
    elif _any_file(machine, TPU):
        name, extra, installed = "a TPU", "tpu", importlib.util.find_spec("libtpu") is not None
    else:
        return None
    if installed:
        return f"this machine has {name}, but JAX runs on the CPU: its own warning says why"
    return f"this machine has {name}, which JAX does not see: pip install 'imagen_jax[{extra}]'"


def describe(devices: Iterable[jax.Device]) -> str:
    """ "8 x NVIDIA H100 80GB HBM3 on 2 hosts", or "CPU, 2 cores"."""
    kinds = Counter(device.device_kind for device in devices)
    parts = [
        f"{count} x {kind}" if kind.lower() != "cpu" else f"CPU, {os.cpu_count()} cores"
        for kind, count in kinds.items()
    ]
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return " and ".join(parts) + hosts


def _any_file(machine: Path, patterns: Iterable[str]) -> bool:
    return any(True for pattern in patterns for _ in machine.glob(pattern))


def _has_cuda() -> bool:
    """Whether JAX's plug-in for CUDA is installed, of any version."""
    plugins = importlib.util.find_spec("jax_plugins")
    folders = plugins.submodule_search_locations if plugins else []
    return any(module.name.startswith("xla_cuda") for module in pkgutil.iter_modules(folders))
