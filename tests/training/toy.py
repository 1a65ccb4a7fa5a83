"""A run without a network: linear regression on noise, with the loop's own parts. Also a program:

python -m tests.training.toy WORKDIR [--steps 40] [--every 5] [--delay 0]
    [--address HOST:PORT --processes 2 --process 0] [--fsdp 2] [--tensor 2] [--order [1,0]]
"""

import argparse
import inspect
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.modules["torch"] = None  # tensorboardX would import it, for a second

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.cascade.stage import Stage
from imagen_jax.devices.hosts import Launch, join_hosts
from imagen_jax.devices.sharding import MeshConfig, host_rows, make_mesh
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.training.loop import Run, train
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.run_config import (
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    RunConfig,
    SampleConfig,
)

BATCH, WIDTH = 16, 8
STAGE = Stage("toy", 8, UNetConfig((UNetLevel(8, 1),)), conditioning=None)  # nobody runs it
OPTIMIZER = make_optimizer(
    OptimizerConfig("adamw", learning_rate=1e-2, warmup_steps=5, clip_norm=1.0)
)


class State(NamedTuple):
    step: Any
    params: Any
    ema: Any
    opt_state: Any


def init(key, hidden: int = 16) -> State:
    first, second = jax.random.split(key)
    network = {
        "first": {
            "kernel": jax.random.normal(first, (WIDTH, hidden)) / 4,
            "bias": jnp.zeros(hidden),
        },
        "out": {"kernel": jax.random.normal(second, (hidden, WIDTH)) / 4},
    }
    params = {"network": network}
    return State(jnp.int32(0), params, jax.tree.map(jnp.copy, params), OPTIMIZER.init(params))


def make_step(nan_at: int | None = None, nan_in: str = "loss", nan_batch: int | None = None):
    """nan_at: the step whose loss is no number; nan_batch: the batch, whenever it comes."""

    def step(state, batch, key, frozen):
        x = batch["image"].astype(jnp.float32) / 255
        noisy = x + 0.1 * jax.random.normal(key, x.shape)

        def loss(params):
            net = params["network"]
            hidden = jax.nn.relu(noisy @ net["first"]["kernel"] + net["first"]["bias"])
            errors = jnp.mean((hidden @ net["out"]["kernel"] - x) ** 2, axis=1)
            return jnp.mean(errors), errors

        (value, errors), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        norm = optax.tree.norm(grads)
        if nan_at is not None:
            bad = jnp.where(state.step + 1 == nan_at, jnp.nan, 1.0)
            value, norm = (value * bad, norm) if nan_in == "loss" else (value, norm * bad)
        if nan_batch is not None:
            poison = np.random.default_rng(nan_batch).integers(0, 256, (BATCH, WIDTH), np.uint8)
            value = jnp.where(jnp.all(batch["image"] == poison), jnp.nan, value)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.ema, params)
        bins = jnp.arange(BATCH) % 10
        metrics = {
            "loss": value,
            "grad_norm": norm,
            "loss_by_t": jnp.zeros(10).at[bins].add(errors),
            "count_by_t": jnp.zeros(10).at[bins].add(1.0),
        }
        return State(state.step + 1, params, ema, opt_state), metrics

    return step


def batches(delay: float = 0.0, rows: Sequence[int] = range(BATCH)):
    """`rows`: those of this host."""

    def start_at(step, state):
        while True:
            time.sleep(delay)
            image = np.random.default_rng(step).integers(0, 256, (BATCH, WIDTH), np.uint8)
            yield {"image": image[list(rows)]}
            step += 1

    return start_at


def make_config(
    steps=20, every=5, log_every=10, sample_every=None, score_every=None, skip_batches=None
) -> RunConfig:
    return RunConfig(
        STAGE,
        DataConfig("memory"),
        BATCH,
        steps,
        log_every=log_every,
        checkpoint=CheckpointConfig(every),
        sample=SampleConfig(every=sample_every),
        evaluate=EvaluateConfig("prompts", (), every=score_every),
        skip_batches=skip_batches,
    )


CONFIGURED = tuple(inspect.signature(make_config).parameters)
BROKEN = tuple(inspect.signature(make_step).parameters)


def run(workdir, *, mesh=MeshConfig(), order=None, hidden=16, delay=0.0, **options):
    """`order`: of the devices, where it is not their own. `options`: those of `make_config`,
    `make_step`, `Run` and `train`.
    """
    devices = jax.devices()
    mesh = make_mesh(mesh, [devices[i] for i in order or range(len(devices))])
    rows = host_rows(mesh, BATCH, jax.process_index())
    checkpoints = Checkpoints(f"{workdir}/checkpoints")

    def taken(names):
        return {name: options.pop(name) for name in names if name in options}

    config, how = make_config(**taken(CONFIGURED)), taken(("profile", "say"))
    run = Run(
        train_step=make_step(**taken(BROKEN)),
        init=lambda key: init(key, hidden),
        mesh=mesh,
        batches=options.pop("batches", None) or batches(delay, rows),
        checkpoints=checkpoints,
        workdir=Path(workdir),
        description={"name": "toy"},
        **options,
    )
    try:
        return train(config, run, **how)
    finally:
        checkpoints.manager.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--order", type=json.loads)
    parser.add_argument("--address")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    arguments = parser.parse_args()
    join_hosts(Launch(arguments.address, arguments.processes, arguments.process, 10, 60))
    run(
        arguments.workdir,
        steps=arguments.steps,
        every=arguments.every,
        delay=arguments.delay,
        mesh=MeshConfig(fsdp=arguments.fsdp, tensor=arguments.tensor),
        order=arguments.order,
        log_every=1000,
    )
