"""A PRXPixel pipeline in diffusers' layout: its stage, how it is sampled, its parameters.

Its text encoder, a Qwen3-VL, is not read: whoever samples gives `TextEmbeddings` of its last hidden
states. What the files leave open is as diffusers' pipeline has it, and the loss is JiT's.
"""

from collections.abc import Mapping
from math import log
from typing import Any

import jax

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.convert.diffusers_directory import INDEX, PRXDirectory
from imagen_jax.convert.diffusers_prx import (
    config_from_diffusers,
    prx_layout,
    text_width_from_diffusers,
)
from imagen_jax.convert.fields import Fields, known_fields
from imagen_jax.diffusion.losses import Loss
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Flow
from imagen_jax.models.bounds import FACTOR, MAX_SIDE
from imagen_jax.storage.layout_files import ShardingOf, read_layout
from imagen_jax.storage.safetensors import open_tensors
from imagen_jax.typing import Params

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# What a field that scheduler_config.json leaves out stands for.
DEFAULTS = {"num_train_timesteps": 1000, "shift": 1.0}
# Of no effect, as dynamic shifting is refused like every other field that is set.
IDLE = {
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
}
# What a field that model_index.json leaves out stands for.
PIPELINE_DEFAULTS = {"default_sample_size": 1024, "noise_scale": 2.0}
TIME_STEPS = 1000
# Of diffusers' pipeline: its defaults, and the time below which it divides by no less.
STEPS, GUIDANCE, TIME_FLOOR = 28, 4.0, 0.05


def schedule_of(values: Mapping[str, Any], noise_scale: float = 1.0) -> Flow:
    """The schedule of a scheduler_config.json; ValueError names what is not supported.

    Its `shift` s takes time t to s t / (1 + (s - 1) t) (arXiv 2403.03206, eq. 23), which is -2 log
    s more of log-SNR.
    """
    owner = "The diffusers scheduler"
    name = values.get("_class_name", SCHEDULER)
    Fields(owner, {"_class_name": name}).choice("_class_name", {SCHEDULER: None})
    fields = known_fields(owner, values, DEFAULTS, IDLE, "a fixed shift alone")
    if fields.count("num_train_timesteps") != TIME_STEPS:
        fields.refuse("num_train_timesteps", str(TIME_STEPS))
    shift = fields.positive("shift", FACTOR[1])
    return Flow(shift=-2.0 * log(shift), noise_scale=noise_scale)


def stage_from_diffusers(directory: PRXDirectory, dtype: str = "float32") -> tuple[Stage, Sampling]:
    """The pipeline's transformer and scheduler as a stage, named after its resolution.

    Args:
        dtype: that the network computes in.

    Raises:
        ValueError: a value that is not supported; the message names its field.
    """
    network = config_from_diffusers(directory.network_config, dtype=dtype)
    index = Fields(str(directory.path / INDEX), {**PIPELINE_DEFAULTS, **directory.index})
    resolution = index.count("default_sample_size", MAX_SIDE)
    if resolution % network.patch_size:
        index.refuse("default_sample_size", f"a multiple of the patches' {network.patch_size}")
    stage = Stage(
        f"base{resolution}",
        resolution,
        network,
        text_width=text_width_from_diffusers(directory.network_config),
        schedule=schedule_of(directory.scheduler, index.positive("noise_scale", FACTOR[1])),
        prediction="x0",
        loss=Loss("v", min_scale=TIME_FLOOR),
        channels=network.in_channels,
        min_scale=TIME_FLOOR,
    )
    sampling = Sampling(
        sampler="ddim",  # on the flow, Euler's method
        steps=STEPS,
        spacing="flow_match",
        guidance=GUIDANCE,
        threshold="none",
    )
    return stage, check_sampling(sampling)


def cascade_from_diffusers(directory: PRXDirectory, dtype: str = "float32") -> Cascade:
    """The pipeline as a cascade of one stage, without a text encoder."""
    stage, settings = stage_from_diffusers(directory, dtype)
    return Cascade((stage,), (settings,))


def read_network(
    directory: PRXDirectory,
    stage: Stage,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
) -> Params:
    """The stage's parameters, read tensor by tensor; arguments and errors as of `read_layout`."""
    return read_layout(
        prx_layout(stage.network),
        open_tensors(*directory.network),
        jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0)),
        dtype=dtype,
        sharding=sharding,
        where=str(directory.network.directory),
    )
