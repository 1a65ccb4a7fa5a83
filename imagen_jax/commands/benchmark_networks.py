"""Times the train step of networks with about as many parameters: images a second on this machine.

    python scripts/benchmark_networks.py --case 64_17M --case 64_23M --out networks.json

Each case is one resolution and several networks. The step is that of scripts/train.py (noise,
forward, backward, AdamW, moving average of the weights) on images and text embeddings in memory.
The networks take turns in one process, and the median of the turns counts. Compilation is timed
separately. Images per processor second say what the step costs where other work disturbs the clock.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from imagen_jax.commands.benchmark_imagen_pytorch import machine
from imagen_jax.commands.command_line import count, make_parser, path, run_parsed
from imagen_jax.storage.folders import make_folder

TEXT_LENGTH, TEXT_WIDTH = 20, 256
TOLERANCE = 0.06  # between the parameters of a case's networks


def _levels(*levels: tuple[int, int, int, str | None]) -> list[dict]:
    names = ("channels", "num_res_blocks", "stride", "attention")
    return [dict(zip(names, level, strict=True)) for level in levels]


def _transformer(width: int, depth: int, patch_size: int) -> dict:
    """Heads of 64 channels, and no bottleneck, which only large patches need."""
    sizes = {"width": width, "depth": depth, "heads": width // 64, "patch_size": patch_size}
    return {"kind": "transformer", "bottleneck": None, **sizes}


def _efficient_unet(patch_size: int, *levels: tuple, **fields: Any) -> dict:
    network = {"kind": "efficient_unet", "patch_size": patch_size, "levels": _levels(*levels)}
    return network | fields


# Resolution, and networks by name. U-Nets on larger patches do less work per parameter.
CASES = {
    "32_4M": (
        32,
        {
            "unet": {
                "kind": "unet",
                "levels": [
                    {"channels": 32, "num_res_blocks": 1, "attention": None},
                    {"channels": 64, "num_res_blocks": 1, "attention": None},
                    {"channels": 108, "num_res_blocks": 2, "attention": "self"},
                ],
                "head_channels": 32,
                "embedding_width": 256,
            },
            "efficient_unet, patch 2": _efficient_unet(
                2,
                (80, 1, 1, None),
                (160, 2, 2, "self"),
                num_heads=4,
                attention_hidden_ratio=1.0,
                embedding_width=256,
            ),
            "transformer, patch 4": _transformer(192, 6, 4),
        },
    ),
    "64_17M": (
        64,
        {
            "efficient_unet, patch 2": _efficient_unet(
                2, (96, 2, 1, None), (192, 2, 2, None), (288, 2, 2, "self")
            ),
            "transformer, patch 8": _transformer(320, 9, 8),
        },
    ),
    "64_23M": (
        64,
        {
            "efficient_unet, patch 4": _efficient_unet(
                4,
                (192, 2, 1, None),
                (384, 2, 2, "self"),
                attention_hidden_ratio=1.0,
                embedding_width=384,
            ),
            "efficient_unet, patch 8": _efficient_unet(
                8,
                (320, 1, 1, "self"),
                (448, 1, 2, "self"),
                attention_hidden_ratio=1.0,
                embedding_width=384,
            ),
            "transformer, patch 8": _transformer(384, 8, 8),
        },
    ),
    "64_38M": (
        64,
        {
            "efficient_unet, patch 8": _efficient_unet(
                8, (320, 1, 1, "self"), (448, 2, 2, "self"), embedding_width=512
            ),
            "transformer, patch 8": _transformer(448, 10, 8),
        },
    ),
}


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--case", action="append", choices=CASES, help="default: all")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the networks")
    add("--batch_size", type=count, default=32, help="images a step")
    add("--rounds", type=count, default=7, help="turns of each network, a step each")
    add("--out", type=path, metavar="FILE", help="write the figures as JSON")
    return parse


def train_call(network: dict, resolution: int, batch_size: int) -> tuple[Callable[[], None], dict]:
    """A function that takes one compiled step, and what is known before it runs."""
    from imagen_jax.cascade.stage import KINDS, Stage
    from imagen_jax.devices.sharding import batch_sharding, make_mesh
    from imagen_jax.models.t5 import T5Config
    from imagen_jax.storage.codec import from_dict
    from imagen_jax.training import build, flops
    from imagen_jax.training.loop import init_sharded, lower_step
    from imagen_jax.training.optimizer import OptimizerConfig
    from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
    from imagen_jax.training.state import Frozen

    section = {"name": "base", "resolution": resolution, "network": network}
    stage = from_dict(Stage, section | {"text_width": TEXT_WIDTH}, "stage", KINDS)
    config = RunConfig(
        stage,
        DataConfig("memory"),
        batch_size,
        num_steps=1,
        text=TextConfig(T5Config()),  # not run: the texts are embedded
        optimizer=OptimizerConfig("adamw", warmup_steps=0),
        ema_decay=0.999,
    )
    key, rng = jax.random.key(0), np.random.default_rng(0)
    shape = (batch_size, resolution, resolution, 3)
    values = rng.normal(size=(batch_size, TEXT_LENGTH, TEXT_WIDTH)).astype(np.float32)
    mask = np.arange(TEXT_LENGTH) < rng.integers(4, TEXT_LENGTH + 1, (batch_size, 1))
    batch = {"image": rng.integers(0, 256, shape, np.uint8), "text": values, "mask": mask}
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    train_step, init, _ = build.make_training(config, None, mesh)
    batch, state = jax.device_put(batch, batch_sharding(mesh)), init_sharded(init, key, mesh)
    work = flops.total(train_step, state, batch, key)
    start = time.perf_counter()
    step = lower_step(train_step, state, batch, mesh).compile()
    facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "gflop_a_step": work / 1e9,
        "compile_seconds": time.perf_counter() - start,
    }

    def call() -> None:
        nonlocal state
        state, metrics = step(state, batch, key, Frozen())
        jax.block_until_ready(metrics)

    return call, facts


def measure(case: str, dtype: str, batch_size: int, rounds: int) -> dict[str, dict]:
    """The figures of each network of a case; ValueError where their sizes differ."""
    resolution, networks = CASES[case]
    calls, figures = {}, {}
    for name, network in networks.items():
        calls[name], figures[name] = train_call(network | {"dtype": dtype}, resolution, batch_size)
    sizes = [entry["parameters"] for entry in figures.values()]
    if max(sizes) > (1 + TOLERANCE) * min(sizes):
        raise ValueError(f"{case}: networks of {min(sizes):,} and of {max(sizes):,} parameters")
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - clock, time.process_time() - processor
            if turn:  # the first one warms up
                rates[name].append(tuple(batch_size / seconds for seconds in spent))
    for name, entry in figures.items():
        clock, processor = (statistics.median(each) for each in zip(*rates[name], strict=True))
        entry["images_per_second"], entry["images_per_processor_second"] = clock, processor
        entry["gflop_per_second"] = entry["gflop_a_step"] * clock / batch_size
        entry["rounds"] = [rate for rate, _ in rates[name]]
    return figures


def table(results: dict[str, dict[str, dict]]) -> str:
    """The results in Markdown, as docs/measurements.md shows them."""
    lines = [
        "| case | network | parameters | images/s | per processor second | GFLOP/s | compiled in |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, networks in results.items():
        for name, entry in networks.items():
            lines.append(
                f"| {case} | {name} | {entry['parameters'] / 1e6:.1f} M | "
                f"{entry['images_per_second']:.1f} | {entry['images_per_processor_second']:.1f} | "
                f"{entry['gflop_per_second']:.0f} | {entry['compile_seconds']:.0f} s |"
            )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    if options.out is not None:
        make_folder(options.out.parent, "--out")
    results = {}
    for case in options.case or CASES:
        results[case] = measure(case, options.dtype, options.batch_size, options.rounds)
        print(table({case: results[case]}), flush=True)
    if options.out is not None:
        about = {"machine": machine(), "jax": jax.__version__, "dtype": options.dtype}
        about |= {"batch_size": options.batch_size, "networks": results}
        options.out.write_text(json.dumps(about, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
