"""Plans a run on accelerators that are not here, by compiling its step for them."""

import math
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.devices import sharding
from imagen_jax.devices.chips import Chip
from imagen_jax.devices.compile_options import compiler_options
from imagen_jax.planning.costs import Cost, Costs, estimate
from imagen_jax.planning.lowering import Lowered, lower_sampling, lower_training
from imagen_jax.planning.targets import GPU_SHARE, TPU_SHARE, Target, find_target
from imagen_jax.training.run_config import RunConfig

SHOWN = 12  # of the layers that take longest


def bytes_a_chip(tree: Any, mesh: Any) -> int:
    """Bytes of a pytree's arrays that a device keeps, as they lie, or by the rules of training."""

    def size(leaf: Any, where: jax.sharding.Sharding) -> int:
        where = leaf.sharding or where
        return math.prod(where.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, sharding.state_shardings(tree, mesh))))


def plan(
    config: RunConfig, topology: str, *, sample: bool = False, images: int | None = None
) -> dict[str, Any]:
    """Memory, FLOPs, bytes, kernels, collectives and time of a run on a topology, as JSON values.

    Of TPUs, `by_compiler` is the time that the compiler expects, with kernels of which it expects
    nothing at the peak, and `reached` with these at a share of it. NVIDIA's expects none: `floor`
    is what a step takes at least, every kernel at the share of the peak that the best ones reach or
    at the full bandwidth of the memory.

    sample: plan the sampler, on `images` images at a time (None: one a device), not the train step.

    Raises:
        ValueError: no such topology, no compiler for it, a mesh or batch that does not divide, or a
            program that does not fit the memory of TPUs.
    """
    target = find_target(topology)
    devices, chip = target.devices, target.chip
    mesh = sharding.make_mesh(config.mesh, devices)
    if sample:
        lowered = lower_sampling(config, mesh, images or len(devices))
    else:
        lowered = lower_training(config, mesh)
    compiled, text, compiler = _timed(lowered.program, target)

    def timed(at: Chip) -> tuple[Costs, dict[str, float]]:
        found = estimate(text, at, len(devices), loops=lowered.loops, kernels=lowered.kernels)
        return found, _speed(lowered, found, chip, len(devices), config.num_steps, sample)

    costs, speed = timed(target.reached)
    if target.unit == "GPU":
        times = {"kernels": costs.by_kind, "share_of_peak": GPU_SHARE, "floor": speed}
    else:
        at_peak, peak_speed = timed(chip)
        times = {
            "without_cycles": by_layer(at_peak.without_cycles),
            "by_compiler": peak_speed,
            "share_of_peak": TPU_SHARE,
            "reached": speed,
        }
    return {
        "stage": config.stage.name,
        "what": "sampling" if sample else "training",
        "embedded": config.data.embeddings is not None,
        "topology": topology,
        "unit": target.unit,
        "chip": chip.name,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": lowered.images,
        "num_steps": config.num_steps,
        "remat": config.stage.network.remat,
        "accumulation": config.optimizer.accumulation,
        "memory": _memory(lowered, compiled, mesh, target),
        "flops": _flops(lowered, compiled, costs.flops * len(devices)),
        "roofline": _traffic(costs),  # named so in earlier plans
        "heaviest": by_layer(costs.kernels)[:SHOWN],
        **times,
        "compiler": compiler,
    }


def _timed(program: jax.stages.Lowered, target: Target) -> tuple[Any, str, dict[str, Any]]:
    """The compiled program, its text, and what compiling took."""
    began, processor = time.monotonic(), _processor_seconds()
    compiled, text = compile_with_text(program, target)
    return (
        compiled,
        text,
        {
            "seconds": round(time.monotonic() - began),
            "processor_seconds": round(_processor_seconds() - processor),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "jax": jax.__version__,
        },
    )


def _processor_seconds() -> float:
    """What this process and those that it started, such as NVIDIA's assembler, have used."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def compile_with_text(
    program: jax.stages.Lowered, target: Target
) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its schedule as text, with the compiler's cycles where it has any.

    ValueError where the program does not fit the memory of TPUs. For GPUs it is compiled all the
    same.
    """
    if target.unit == "GPU":
        compiled = program.compile(compiler_options("gpu"))
        return compiled, compiled.as_text()
    # The text is what the compiler itself writes: `compiled.as_text()` fails for a program that
    # leaves a lookup of embeddings to the SparseCores (libtpu 0.0.51).
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = program.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"does not fit {target.name}: {first}") from None
        files = list(Path(folder).glob("*.jit_*.after_codegen.txt"))
        files = files or list(Path(folder).glob("*.jit_*.after_optimizations.txt"))
        largest = max(files, key=lambda path: path.stat().st_size)
        return compiled, largest.read_text()


def _memory(lowered: Lowered, compiled: Any, mesh: Any, target: Target) -> dict[str, Any]:
    """Bytes a device. `temporaries` hold activations, gathered parameters and gradients."""
    stats = compiled.memory_analysis()
    needed = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    total = sum(needed.values()) + stats.output_size_in_bytes - stats.alias_size_in_bytes
    kept = {name: bytes_a_chip(tree, mesh) for name, tree in lowered.parts.items()}
    fits = total <= target.usable * target.memory
    return kept | needed | {"total": total, "hbm": target.memory, "fits": fits}


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


def _traffic(costs: Costs) -> dict[str, Any]:
    """Bytes of HBM and of the links, and the seconds that the core waits for them."""
    return {
        "exposed_collectives": costs.waits["links"],
        "exposed_copies": costs.waits["copies"],
        "bytes": costs.hbm_bytes,
        "collectives": costs.collectives,
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
