"""The model table that `--dry_run` prints: parameters, shapes and FLOPs, without any array."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from imagen_jax.cascade.stage import apply_network
from imagen_jax.storage.trees import flatten, num_bytes
from imagen_jax.training import flops
from imagen_jax.training.batches import abstract_batch
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.state import NETWORK, Frozen
from imagen_jax.typing import Params, TextEmbeddings


def num_parameters(tree: Any) -> int:
    """Of parameters or their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def parameter_table(params: Mapping[str, Params]) -> str:
    """One line a module with its number of parameters; below it, its arrays and their shapes."""
    lines = []
    for part, modules in params.items():
        lines.append(f"{part:<44}{num_parameters(modules):>14,}")
        for name, module in modules.items():
            lines.append(f"  {name:<42}{num_parameters(module):>14,}")
            for path, leaf in flatten(module).items():
                shape = "x".join(map(str, leaf.shape)) or "scalar"
                lines.append(f"    {path or 'value':<48}{shape:>20}")
    return "\n".join(lines)


def forward_call(config: RunConfig, params: Params, images: int = 1) -> tuple[Callable, tuple]:
    """The network's forward pass, and its arguments' shapes for a number of training images."""
    stage = config.stage

    def shape(*sizes: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((images, *sizes), dtype)

    side, channels = stage.training_side, stage.channels
    conditions: dict[str, Any] = {}
    if stage.conditioning == "text":
        length = config.text.max_length
        values = shape(length, stage.text_width)
        conditions["text"] = TextEmbeddings(values, shape(length, dtype=bool))
    elif stage.conditioning == "label":
        conditions["label"] = shape(dtype=np.int32)
    if stage.low_resolution is not None:
        conditions["low_res"] = shape(side, side, channels)
        conditions["aug_level"] = shape()

    def forward(params, x, t, conditions):
        return apply_network(stage, params, x, t, **conditions)

    return forward, (params, shape(side, side, channels), shape(), conditions)


def model_table(
    config: RunConfig,
    train_step: Any,
    init: Any,
    mesh: jax.sharding.Mesh,
    frozen: Frozen = Frozen(),
) -> str:
    """Parameters by module, their total, the state's size in memory, and FLOPs per image."""
    state = jax.eval_shape(init, jax.random.key(0))
    lines = [f"stage {config.stage.name}: {config.stage.resolution}x{config.stage.resolution}"]
    lines.append(parameter_table(state.params))
    lines.append(f"{'trained parameters':<44}{num_parameters(state.params):>14,}")
    for part, params in frozen._asdict().items():
        if params is not None:
            label = f"frozen parameters ({part.replace('_', ' ')})"
            lines.append(f"{label:<44}{num_parameters(params):>14,}")
    lines.append(f"state (parameters, EMA, optimizer): {num_bytes(state) / 1e6:,.1f} MB")
    network = frozen.network if config.lora is not None else state.params[NETWORK]
    forward, arguments = forward_call(config, network)  # without the text encoder
    step = flops.total(train_step, state, abstract_batch(config), jax.random.key(0), frozen)
    lines.append(
        f"forward {flops.total(forward, *arguments) / 1e9:,.3f} GFLOP an image; "
        f"training {step / config.batch_size / 1e9:,.3f} GFLOP an image"
    )
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"batch {config.batch_size} on a mesh of {shape}; {config.num_steps:,} steps")
    return "\n".join(lines)
