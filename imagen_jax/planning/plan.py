"""Plans a run on accelerators that are not here, by compiling its step for them."""

import math
import os
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.devices import sharding
from imagen_jax.devices.chips import Chip, find_chip
from imagen_jax.planning.costs import Cost, Costs, estimate
from imagen_jax.planning.lowering import Lowered, lower_sampling, lower_training
from imagen_jax.training.run_config import RunConfig

FORMS = "v5p:4x4x4 (chips along three axes), v5e:16x16 or v6e:16x16 (along two)"
SHOWN = 12  # of the layers that take longest


def topology_devices(name: str) -> tuple[list[Any], Chip]:
    """The devices of a TPU topology such as v5p:4x4x4, and their chip.

    Raises:
        ValueError: there is no topology of this name, or the TPU compiler is not installed.
    """
    from jax.experimental import topologies

    # Nothing runs on a TPU here, so another process may have loaded the compiler as well.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "planning needs the TPU compiler, which runs without a TPU: pip install -e '.[tpu]'"
        ) from error
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"there is no topology {name!r}; known forms are {FORMS}") from error
    chip = find_chip(found[0].device_kind)
    if chip is None:
        raise ValueError(f"the peaks of {found[0].device_kind!r} are not in devices/chips.py")
    if chip.name == "v4":
        # Its compiler takes the two cores of a chip for devices unless it runs on one.
        raise ValueError(f"{name!r}: v4 cannot be compiled for without a v4; plan another TPU")
    return found, chip


def bytes_a_chip(tree: Any, mesh: Any) -> int:
    """Bytes of a pytree's arrays that one device keeps, by the rules of training."""

    def size(leaf: Any, where: jax.sharding.Sharding) -> int:
        return math.prod(where.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, sharding.state_shardings(tree, mesh))))


def plan(
    config: RunConfig, topology: str, *, sample: bool = False, images: int | None = None
) -> dict[str, Any]:
    """Memory, FLOPs, bytes, collectives and time of a run on a TPU topology, as JSON values.

    sample: plan the sampler, on `images` images at a time (None: one a chip), not the train step.

    Raises:
        ValueError: no such topology, a mesh or batch that does not divide, or a program that does
            not fit the chips' memory.
    """
    devices, chip = topology_devices(topology)
    mesh = sharding.make_mesh(config.mesh, devices)
    if sample:
        lowered = lower_sampling(config, mesh, images or len(devices))
    else:
        lowered = lower_training(config, mesh)
    began = time.monotonic()
    compiled, text = compile_with_text(lowered.program, topology)
    seconds = time.monotonic() - began
    costs = estimate(text, chip, len(devices), loops=lowered.loops, kernels=lowered.kernels)
    return {
        "stage": config.stage.name,
        "what": "sampling" if sample else "training",
        "embedded": config.data.embeddings is not None,
        "topology": topology,
        "chip": chip.name,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": lowered.images,
        "num_steps": config.num_steps,
        "remat": config.stage.network.remat,
        "accumulation": config.optimizer.accumulation,
        "memory": _memory(lowered, compiled, mesh, chip),
        "flops": _flops(lowered, compiled, costs.flops * len(devices)),
        "roofline": {  # named so in earlier plans
            "exposed_collectives": costs.waits["links"],
            "exposed_copies": costs.waits["copies"],
            "bytes": costs.hbm_bytes,
            "collectives": costs.collectives,
        },
        "heaviest": by_layer(costs.kernels)[:SHOWN],
        "without_cycles": by_layer(costs.without_cycles),
        "by_compiler": _speed(lowered, costs, chip, len(devices), config.num_steps, sample),
        "compiler": {
            "seconds": round(seconds),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "jax": jax.__version__,
        },
    }


def compile_with_text(
    program: jax.stages.Lowered, topology: str
) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its schedule as text, with the compiler's cycles where it has any.

    The text is what the compiler itself writes: `compiled.as_text()` fails for a program that
    leaves a lookup of embeddings to the SparseCores (libtpu 0.0.51). ValueError where the program
    does not fit the memory of the topology's chips.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = program.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"does not fit {topology}: {first}") from None
        files = list(Path(folder).glob("*.jit_*.after_codegen.txt"))
        files = files or list(Path(folder).glob("*.jit_*.after_optimizations.txt"))
        largest = max(files, key=lambda path: path.stat().st_size)
        return compiled, largest.read_text()


def _memory(lowered: Lowered, compiled: Any, mesh: Any, chip: Chip) -> dict[str, Any]:
    """Bytes a chip. `temporaries` hold activations, gathered parameters and gradients."""
    stats = compiled.memory_analysis()
    needed = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    total = sum(needed.values()) + stats.output_size_in_bytes - stats.alias_size_in_bytes
    kept = {name: bytes_a_chip(tree, mesh) for name, tree in lowered.parts.items()}
    return kept | needed | {"total": total, "hbm": int(chip.hbm), "fits": total <= chip.hbm}


def _flops(lowered: Lowered, compiled: Any, counted: float) -> dict[str, Any]:
    """FLOPs of a step over all chips: by the jaxpr and, `counted`, in the compiled program."""
    from_jaxpr = sum(lowered.counted.values())
    return {
        "forward": {name: value for name, (value, _) in lowered.useful.items()},
        "analytic": sum(lowered.needed.values()),
        "with_recomputation": from_jaxpr,
        "by_kind": lowered.counted,
        "compiled": counted,
        "compiled_over_counted": counted / from_jaxpr,
    }


def _speed(
    lowered: Lowered, costs: Costs, chip: Chip, devices: int, num_steps: int, sample: bool
) -> dict[str, float]:
    """Step time, images a second, days for the schedule of training, and shares of the peak.

    mfu: FLOPs that the model needs, without recomputation (three forward passes of what is trained,
    one of a frozen encoder). mfu_network: those of the diffusion network only. hfu: with
    recomputation.
    """
    peak = costs.seconds * chip.flops * devices
    return {
        "seconds": costs.seconds,
        "images_per_second": lowered.images / costs.seconds,
        **({} if sample else {"days": num_steps * costs.seconds / 86400}),
        "mfu": sum(lowered.needed.values()) / peak,
        "mfu_network": lowered.needed["network"] / peak,
        "hfu": sum(lowered.counted.values()) / peak,
    }


def by_layer(kernels: Iterable[Cost]) -> list[dict[str, Any]]:
    """The layers' operations, blocks of the same kind together, those that take longest first."""
    groups: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        zero = {"what": kernel.layer, "count": 0, "seconds": 0.0, "flops": 0.0, "bytes": 0.0}
        group, times = groups.setdefault(kernel.layer, zero), kernel.times
        group["count"] += times
        for name in ("seconds", "flops", "bytes"):
            group[name] += getattr(kernel, name) * times
    return sorted(groups.values(), key=lambda group: -group["seconds"])


def summary(figures: dict[str, Any]) -> str:
    """A plan as lines to read."""
    memory, counted, times = figures["memory"], figures["flops"], figures["roofline"]
    shape = " x ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    parts = [name for name in memory if name not in ("total", "hbm", "fits")]
    compiler = figures["compiler"]
    return "\n".join(
        [
            f"{figures['what']} of {figures['stage']}: batch {figures['batch_size']} on "
            f"{figures['chips']} {figures['chip']} chips ({figures['topology']}; {shape}; remat "
            f"{figures['remat']}, accumulation {figures['accumulation']})",
            "memory a chip: " + ", ".join(f"{name} {memory[name] / 1e9:.2f} GB" for name in parts),
            f"  in all {memory['total'] / 1e9:.1f} of {memory['hbm'] / 1e9:.0f} GB: "
            + ("fits" if memory["fits"] else "does not fit"),
            f"FLOPs: by the jaxpr {counted['with_recomputation'] / 1e12:,.0f} T, of which the "
            f"model needs {counted['analytic'] / 1e12:,.0f} T; compiled "
            f"{counted['compiled'] / 1e12:,.0f} T",
            f"HBM traffic a chip: {times['bytes'] / 1e9:.1f} GB",
            *_time_lines(figures),
            f"compiled in {compiler['seconds']} s with {compiler['peak_memory'] / 1e9:.1f} GB here",
        ]
    )


def _time_lines(figures: dict[str, Any]) -> list[str]:
    times, speed, rough = figures["roofline"], figures["by_compiler"], figures["without_cycles"]
    steps, days = figures["num_steps"], speed.get("days")
    lines = [
        f"{kind}: {traffic['count']} times, {traffic['bytes'] / 1e9:.2f} GB a chip, "
        f"{traffic['seconds'] * 1e3:.0f} ms of the links"
        for kind, traffic in times["collectives"].items()
    ]
    lines += [
        f"the cores wait {times['exposed_collectives'] * 1e3:.0f} ms for collectives, "
        f"{times['exposed_copies'] * 1e3:.0f} ms for copies",
        f"by the compiler's cycles: {speed['seconds']:.3f} s, "
        f"{speed['images_per_second']:,.0f} images/s, MFU {speed['mfu']:.1%} (diffusion network "
        f"only {speed['mfu_network']:.1%}), HFU {speed['hfu']:.1%}"
        + ("" if days is None else f", {days:.1f} days for {steps:,} steps"),
    ]
    if rough:
        lines += [
            f"{sum(item['count'] for item in rough)} kernels without cycles take "
            f"{sum(item['seconds'] for item in rough) * 1e3:.1f} ms by their FLOPs and bytes:",
            *map(_layer_line, rough[:SHOWN]),
        ]
    return [*lines, "what takes longest, on one chip:", *map(_layer_line, figures["heaviest"])]


def _layer_line(item: dict[str, Any]) -> str:
    return (
        f"  {item['seconds'] * 1e3:7.1f} ms {item['flops'] / 1e12:7.2f} TFLOP "
        f"{item['bytes'] / 1e9:7.1f} GB  {item['what']}"
    )
