"""The devices and versions that this code runs with; by itself, nothing but those."""

from importlib.metadata import version
from typing import Any

import jax

from imagen_jax.benchmark.child import Work, serve
from imagen_jax.devices import accelerators, chips


def about() -> dict[str, Any]:
    """What every side tells: versions and devices; FLOP/s that one device can do at best."""
    devices = jax.devices()
    chip = chips.find_chip(devices[0].device_kind)
    return {
        "library": "imagen_jax",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "device": accelerators.describe(devices),
        "platform": jax.default_backend(),
        "count": len(devices),
        "peak_flops": chip and chip.flops,
    }


if __name__ == "__main__":
    serve(lambda spec: Work(list, 0, about()))
