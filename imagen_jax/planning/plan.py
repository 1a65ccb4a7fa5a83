"""What a run needs of accelerators that are not here: the step, compiled for them and read."""

import dataclasses
import math
import os
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.cascade.sample import plan_steps, run_steps
from imagen_jax.cascade.stage import Conditions, init_params
from imagen_jax.devices import sharding
from imagen_jax.devices.chips import Chip, find_chip
from imagen_jax.diffusion.samplers import initial_state
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.models import t5
from imagen_jax.planning.roofline import Roofline, estimate
from imagen_jax.training import build, flops
from imagen_jax.training.batches import abstract_batch
from imagen_jax.training.loop import lower_step
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.state import NETWORK
from imagen_jax.training.table import forward_call
from imagen_jax.typing import TextEmbeddings

FORMS = "v5p:4x4x4 (chips along three axes), v5e:16x16 or v6e:16x16 (along two)"
SHOWN = 12  # of the operations that take longest


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program before it is compiled.

    parts: what it keeps on the chips, for the table of memory. counted: its FLOPs over all chips by
    kind, from shapes alone. useful: those of one forward pass, by network and text encoder, and how
    often each is needed: three times for what is trained. loops: how often a loop runs whose length
    is decided when it runs.
    """

    program: jax.stages.Lowered
    parts: dict[str, Any]
    counted: dict[str, float]
    useful: dict[str, tuple[float, int]]
    images: int
    loops: int = 1


def topology_devices(name: str) -> tuple[list[Any], Chip]:
    """The devices of a TPU topology such as v5p:4x4x4, and their chip.

    Raises:
        ValueError: there is none of this name, or the TPU compiler is not installed.
    """
    from jax.experimental import topologies

    # Nothing is run on a TPU: another process that has loaded the compiler is none in the way.
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
        raise ValueError(f"there is no topology {name!r}; there are {FORMS}") from error
    chip = find_chip(found[0].device_kind)
    if chip is None:
        raise ValueError(f"the peaks of {found[0].device_kind!r} are not in training/chips.py")
    if chip.name == "v4":
        # Its compiler takes the two cores of a chip for devices unless it runs on one.
        raise ValueError(f"{name!r}: v4 cannot be compiled for from afar; plan another TPU")
    return found, chip


def without_files(config: RunConfig) -> RunConfig:
    """The config with a tokenizer that needs no file: which one made the ids does not matter."""
    if config.text is None:
        return config
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer="bytes"))


def _forward_useful(config: RunConfig, encoder: Any, network: Any) -> dict[str, float]:
    """FLOPs of one forward pass for one image: of the network, and of the text encoder."""
    forward, arguments = forward_call(config, network)
    counted = {"network": flops.total(forward, *arguments)}
    if encoder is not None:
        params = jax.eval_shape(lambda key: t5.init(encoder.config, key), jax.random.key(0))
        ids = jax.ShapeDtypeStruct((1, encoder.max_length), np.int32)
        mask = jax.ShapeDtypeStruct(ids.shape, bool)
        encode = flops.count(
            lambda params, ids, mask: t5.encode(encoder.config, params, ids, mask),
            params,
            ids,
            mask,
        )
        counted["text_encoder"] = sum(encode.values())
    return counted


def lower_training(config: RunConfig, mesh: Any) -> Lowered:
    """The very train step of a run, for a mesh of devices that need not be here."""
    sharding.check_batch(mesh, config.batch_size)
    config = without_files(config)
    encoder = build.make_text_encoder(config)
    train_step, init, frozen = build.make_training(config, encoder, mesh)
    state, batch = jax.eval_shape(init, jax.random.key(0)), abstract_batch(config)
    params = {} if frozen is None else {"frozen": frozen}
    network = frozen.network if config.lora is not None else state.params[NETWORK]
    forward = _forward_useful(config, encoder if "ids" in batch else None, network)
    times = dict.fromkeys(forward, 3)
    if frozen is not None and frozen.text_encoder is not None:
        times["text_encoder"] = 1
    return Lowered(
        lower_step(train_step, state, batch, mesh, frozen),
        {
            "parameters": state.params,
            "optimizer": state.opt_state,
            "ema": state.ema,
            **params,
        },
        flops.count(train_step, state, batch, jax.random.key(0), frozen),
        {name: (config.batch_size * value, times[name]) for name, value in forward.items()},
        config.batch_size,
    )


def lower_sampling(config: RunConfig, mesh: Any, batch: int) -> Lowered:
    """The very sampler of a run's stage: all its steps on `batch` images at the full size."""
    sharding.check_batch(mesh, batch)
    stage, rows = config.stage, sharding.batch_sharding(mesh)
    sampling = config.sample.sampling if config.sample else Sampling()
    side = stage.resolution

    def shape(*sizes: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *sizes), dtype, sharding=rows)

    conditions = {}
    if stage.conditioning == "text":
        length = config.text.max_length
        text = TextEmbeddings(shape(length, stage.text_width), shape(length, dtype=bool))
        conditions = {"text": text, "null": text}
    elif stage.conditioning == "label":
        conditions = {"label": shape(dtype=np.int32)}
    if stage.low_resolution is not None:
        conditions["low_res"] = shape(side, side, stage.channels)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=rows)
    state = jax.eval_shape(initial_state, shape(side, side, stage.channels))
    state = jax.tree.map(
        lambda leaf: shape(*leaf.shape[1:]) if leaf.shape else leaf,
        state,
    )
    params = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    shardings = sharding.state_shardings(params, mesh)
    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        params,
        shardings,
    )
    arguments = (
        params,
        keys,
        Conditions(**conditions),
        traced(sampling),
        plan_steps(stage, sampling),
        state,
    )
    forward, inputs = forward_call(
        dataclasses.replace(config, stage=dataclasses.replace(stage, crop=None)), params
    )
    runs = sampling.steps * (2 if stage.conditioning is not None else 1)  # guidance doubles it
    once = batch * sum(flops.count(forward, *inputs).values())
    return Lowered(
        run_steps.lower(stage, *arguments),
        {"parameters": params},
        {"network": once * runs},
        {"network": (once, runs)},
        batch,
        sampling.steps,
    )


def bytes_a_chip(tree: Any, mesh: Any) -> int:
    """Bytes of a pytree's arrays that one device keeps, by the rules of training."""
    total = 0
    shardings = sharding.state_shardings(tree, mesh)
    for leaf, where in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        total += math.prod(where.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    return total


def plan(
    config: RunConfig,
    topology: str,
    *,
    sample: bool = False,
    images: int | None = None,
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
    try:
        compiled, text = compile_with_text(lowered.program)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"does not fit {topology}: {first}") from None
    seconds = time.monotonic() - began
    roofline = estimate(text, chip, len(devices), loops=lowered.loops)
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
        "flops": _flops(lowered, compiled, roofline, len(devices)),
        "roofline": roofline.to_dict(),
        **speeds(lowered, roofline, chip, len(devices), None if sample else config.num_steps),
        "heaviest": heaviest(roofline),
        "compiler": {
            "seconds": round(seconds),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "jax": jax.__version__,
        },
    }


def compile_with_text(program: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its schedule as text, with the compiler's cycles where it has any.

    The text is what the compiler itself writes: `compiled.as_text()` fails for a program that
    leaves a lookup of embeddings to the SparseCores (libtpu 0.0.51).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = program.compile(compiler_options=options)
        files = list(Path(folder).glob("*.jit_*.after_codegen.txt"))
        files = files or list(Path(folder).glob("*.jit_*.after_optimizations.txt"))
        largest = max(files, key=lambda path: path.stat().st_size)
        return compiled, largest.read_text()


def _memory(lowered: Lowered, compiled: Any, mesh: Any, chip: Chip) -> dict[str, Any]:
    """Bytes a chip. `temporaries` hold activations, gathered parameters and gradients."""
    stats = compiled.memory_analysis()
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    return {
        **{name: bytes_a_chip(tree, mesh) for name, tree in lowered.parts.items()},
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
        "total": total,
        "hbm": int(chip.hbm),
        "fits": total <= chip.hbm,
    }


def _flops(lowered: Lowered, compiled: Any, roofline: Roofline, devices: int) -> dict[str, Any]:
    """FLOPs of a step over all chips, as compiled and as counted from shapes."""
    analytic = sum(times * value for value, times in lowered.useful.values())
    counted = sum(lowered.counted.values())
    return {
        "forward": {name: value for name, (value, _) in lowered.useful.items()},
        "analytic": analytic,
        "with_recomputation": counted,
        "by_kind": lowered.counted,
        "compiled": roofline.flops * devices,
        "compiled_over_counted": roofline.flops * devices / counted,
        # XLA counts a loop's body once, and every addition.
        "xla": float(compiled.cost_analysis().get("flops", 0.0)) * devices,
    }


def speeds(
    lowered: Lowered, roofline: Roofline, chip: Chip, devices: int, num_steps: int | None
) -> dict[str, Any]:
    """Step time, images a second, days for the schedule (None: there is none), and shares of the
    peak.

    mfu: FLOPs that the model needs, without recomputation (three forward passes of what is trained,
    one of a frozen encoder). mfu_network: those of the diffusion network alone. hfu: all that were
    compiled.
    """
    useful = {name: times * value for name, (value, times) in lowered.useful.items()}
    result = {}
    for name, seconds in (
        ("by_roofline", roofline.seconds),
        ("by_compiler", roofline.compiler_seconds),
    ):
        if seconds is None:
            continue
        peak = seconds * chip.flops * devices
        days = {} if num_steps is None else {"days": num_steps * seconds / 86400}
        result[name] = {
            "seconds": seconds,
            "images_per_second": lowered.images / seconds,
            **days,
            "mfu": sum(useful.values()) / peak,
            "mfu_network": useful["network"] / peak,
            "hfu": roofline.flops * devices / peak,
        }
    return result


def heaviest(roofline: Roofline) -> list[dict[str, Any]]:
    """The layers' operations that take longest, blocks of the same kind together."""
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for cost in roofline.costs:
        group = groups[cost.layer]
        for i, value in enumerate((cost.seconds, cost.flops, cost.bytes, cost.cycles)):
            group[i] += value * cost.times
    longest = sorted(groups.items(), key=lambda item: -item[1][0])[:SHOWN]
    return [
        {"what": name, "seconds": group[0], "flops": group[1], "bytes": group[2]}
        for name, group in longest
    ]


def summary(figures: dict[str, Any]) -> str:
    """A plan as lines to read."""
    memory, counted, roofline = figures["memory"], figures["flops"], figures["roofline"]
    shape = " x ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    lines = [
        f"{figures['what']} of {figures['stage']}: batch {figures['batch_size']} on "
        f"{figures['chips']} {figures['chip']} chips ({figures['topology']}; {shape}; remat "
        f"{figures['remat']}, accumulation {figures['accumulation']})",
        "memory a chip: "
        + ", ".join(
            f"{name} {value / 1e9:.2f} GB"
            for name, value in memory.items()
            if name not in ("total", "hbm", "fits")
        ),
        f"  in all {memory['total'] / 1e9:.1f} of {memory['hbm'] / 1e9:.0f} GB: "
        + ("fits" if memory["fits"] else "does not fit"),
        f"FLOPs: compiled {counted['compiled'] / 1e12:,.0f} T, counted from shapes "
        f"{counted['with_recomputation'] / 1e12:,.0f} T, of which the model needs "
        f"{counted['analytic'] / 1e12:,.0f} T",
        f"HBM traffic a chip: {roofline['bytes'] / 1e9:.1f} GB",
    ]
    for kind, traffic in roofline["collectives"].items():
        lines.append(
            f"{kind}: {traffic['count']} times, {traffic['bytes'] / 1e9:.2f} GB a chip, "
            f"{traffic['seconds'] * 1e3:.0f} ms of the links"
        )
    lines.append(
        f"the cores wait {roofline['exposed_collectives'] * 1e3:.0f} ms for collectives, "
        f"{roofline['exposed_copies'] * 1e3:.0f} ms for copies"
    )
    for name in ("by_roofline", "by_compiler"):
        if name in figures:
            speed = figures[name]
            lines.append(
                f"{name.replace('_', ' ')}: {speed['seconds']:.3f} s, "
                f"{speed['images_per_second']:,.0f} images/s, MFU {speed['mfu']:.1%} (diffusion "
                f"network alone {speed['mfu_network']:.1%}), HFU {speed['hfu']:.1%}"
            )
            if "days" in speed:
                lines[-1] += f", {speed['days']:.1f} days for {figures['num_steps']:,} steps"
    lines.append("what takes longest by the roofline, on one chip:")
    for item in figures["heaviest"]:
        lines.append(
            f"  {item['seconds'] * 1e3:7.1f} ms {item['flops'] / 1e12:7.2f} TFLOP "
            f"{item['bytes'] / 1e9:7.1f} GB  {item['what']}"
        )
    compiler = figures["compiler"]
    lines.append(
        f"compiled in {compiler['seconds']} s with {compiler['peak_memory'] / 1e9:.1f} GB here"
    )
    return "\n".join(lines)
