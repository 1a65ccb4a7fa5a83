"""What accelerators can do at best: the one table of their peaks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip. flops: bfloat16 FLOP/s. hbm: bytes. bandwidth: of HBM, bytes/s. link: bytes/s that
    each chip of a ring receives, from both sides together. clock: Hz of the cores, None where it
    does not matter. kinds: how jax names the device.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    link: float
    clock: float | None
    kinds: tuple[str, ...]


# Google's and NVIDIA's published figures. Of a TPU's links (six in v4 and v5p, four in v5e and v6e)
# two carry a ring; a GPU's are NVLink. A clock is the peak over the products a cycle.
CHIPS = (
    Chip("v4", 275e12, 32e9, 1.23e12, 100e9, 1.05e9, ("TPU v4",)),
    Chip("v5e", 197e12, 16e9, 0.82e12, 100e9, 1.5e9, ("TPU v5 lite", "TPU v5e")),
    Chip("v5p", 459e12, 95e9, 2.765e12, 200e9, 1.75e9, ("TPU v5", "TPU v5p")),
    Chip("v6e", 918e12, 32e9, 1.638e12, 200e9, 1.75e9, ("TPU v6 lite", "TPU v6e")),
    Chip("A100", 312e12, 80e9, 2.04e12, 300e9, None, ("A100",)),
    Chip("H100", 989e12, 80e9, 3.35e12, 450e9, None, ("H100",)),
    Chip("H200", 989e12, 141e9, 4.8e12, 450e9, None, ("H200",)),
    Chip("B200", 2250e12, 180e9, 7.7e12, 900e9, None, ("B200",)),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of `jax.Device.device_kind`; None where we do not know it."""
    found = [
        (len(kind), chip)
        for chip in CHIPS
        for kind in chip.kinds
        if kind.lower() in device_kind.lower()
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None
