"""The programs that a plan compiles: the very train step of a run, and its sampler."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from imagen_jax import models
from imagen_jax.cascade.sample import plan_steps, run_steps
from imagen_jax.cascade.stage import Conditions, init_params
from imagen_jax.convert.t5 import encoder_shapes
from imagen_jax.devices import sharding
from imagen_jax.diffusion.guided_steps import guided_start
from imagen_jax.diffusion.samplers import initial_state
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.models import t5
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import build, flops
from imagen_jax.training.batches import abstract_batch
from imagen_jax.training.loop import trace_step
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.state import NETWORK
from imagen_jax.training.table import forward_call


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program before it is compiled.

    parts: what it keeps on the chips, for the table of memory. counted: its FLOPs over all chips by
    kind, from the jaxpr. useful: those of one forward pass, by network and text encoder, and how
    often each is needed: three times for what is trained. loops: how often a loop runs whose length
    is decided when it runs. kernels: FLOPs of one call of each Pallas kernel, by its name.
    """

    program: jax.stages.Lowered
    parts: dict[str, Any]
    counted: dict[str, float]
    useful: dict[str, tuple[float, int]]
    images: int
    loops: int = 1
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def needed(self) -> dict[str, float]:
        """FLOPs that the model needs, without recomputation, by network and text encoder."""
        return {name: times * value for name, (value, times) in self.useful.items()}


def _encoder_flops(encoder: TextEncoder) -> float:
    """FLOPs of the text encoder for one prompt."""
    ids = jax.ShapeDtypeStruct((1, encoder.max_length), np.int32)
    mask = jax.ShapeDtypeStruct(ids.shape, bool)
    encode = functools.partial(t5.encode, encoder.config)
    return flops.total(encode, encoder_shapes(encoder.config), ids, mask)


def _there(config: RunConfig, mesh: Any) -> RunConfig:
    """A run whose network takes the form that it has on the accelerator that is not here."""
    network = models.on_platform(config.stage.network, mesh.devices.flat[0].platform)
    return dataclasses.replace(config, stage=dataclasses.replace(config.stage, network=network))


def lower_training(config: RunConfig, mesh: Any) -> Lowered:
    """The very train step of a run, for a mesh of devices that need not be here."""
    sharding.check_batch(mesh, config.batch_size)
    config = _there(config, mesh)
    if config.text is not None:  # which tokenizer makes the ids does not matter: one without a file
        text = dataclasses.replace(config.text, tokenizer="bytes")
        config = dataclasses.replace(config, text=text)
    encoder = build.make_text_encoder(config)
    train_step, init, frozen = build.make_training(config, encoder, mesh)
    state, batch = jax.eval_shape(init, jax.random.key(0)), abstract_batch(config)
    where = sharding.frozen_shardings(frozen, mesh, config.frozen_split)
    frozen = _placed(frozen, where)
    averages = state.ema, state.power_ema
    parts = {"parameters": state.params, "optimizer": state.opt_state, "ema": averages}
    if jax.tree.leaves(frozen):
        parts["frozen"] = frozen
    network = frozen.network if config.lora is not None else state.params[NETWORK]
    forward, arguments = forward_call(config, network)
    useful = {"network": (config.batch_size * flops.total(forward, *arguments), 3)}
    if "ids" in batch:
        passes = 3 if frozen.text_encoder is None else 1
        useful["text_encoder"] = (config.batch_size * _encoder_flops(encoder), passes)
    step = trace_step(train_step, state, batch, mesh, frozen)
    return Lowered(
        step.lower(),
        parts,
        flops.of_jaxpr(step.jaxpr),
        useful,
        config.batch_size,
        kernels=flops.kernels(step.jaxpr),
    )


def lower_sampling(config: RunConfig, mesh: Any, batch: int) -> Lowered:
    """The very sampler of a run's stage: all its steps on `batch` images at the full size."""
    sharding.check_batch(mesh, batch)
    config = _there(config, mesh)
    stage = config.stage
    sampling = config.sample.sampling if config.sample else Sampling()
    params = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    params = _placed(params, sharding.state_shardings(params, mesh))
    uncropped = dataclasses.replace(config, stage=dataclasses.replace(stage, crop=None))
    forward, (_, x_t, t, conditions) = forward_call(uncropped, params, batch)
    once = flops.count(forward, params, x_t, t, conditions)
    runs = sampling.steps * (2 if stage.conditioning is not None else 1)  # guidance doubles it
    conditions.pop("aug_level", None)
    if stage.conditioning == "text":
        conditions["null"] = conditions["text"]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    state = jax.eval_shape(
        lambda x: guided_start(initial_state(x, sampling.sampler), sampling), x_t
    )
    inputs = (keys, Conditions(**conditions), state)
    rows = sharding.batch_sharding(mesh)
    inputs = _placed(inputs, jax.tree.map(lambda leaf: rows if leaf.shape else None, inputs))
    keys, conditions, state = inputs
    grid = plan_steps(stage, sampling)
    return Lowered(
        run_steps.lower(stage, params, keys, conditions, traced(sampling), grid, state),
        {"parameters": params},
        {kind: value * runs for kind, value in once.items()},
        {"network": (sum(once.values()), runs)},
        batch,
        sampling.steps,
    )


def _placed(shapes: Any, shardings: Any) -> Any:
    """The shapes of arrays that lie on a mesh in this way."""

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, shapes, shardings)
