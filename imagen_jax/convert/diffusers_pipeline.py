"""A DeepFloyd IF pipeline in diffusers' layout: its stage, its text encoder, their parameters.

What its files leave open is as diffusers' pipelines have it.
"""

import jax
import numpy as np

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.convert import t5
from imagen_jax.convert.diffusers_directory import DiffusersDirectory
from imagen_jax.convert.diffusers_scheduler import (
    DDPM,
    PREDICTIONS,
    schedule_of,
    scheduler_fields,
    settings_of,
)
from imagen_jax.convert.diffusers_unet import (
    config_from_diffusers,
    text_width_from_diffusers,
    unet_layout,
)
from imagen_jax.convert.fields import Fields
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.models.bounds import MAX_SIDE
from imagen_jax.storage.layout_files import ShardingOf, read_layout
from imagen_jax.storage.safetensors import open_tensors
from imagen_jax.text.encoder import TextEncoder, check_vocabulary
from imagen_jax.text.tokenizers import SentencePieceTokenizer
from imagen_jax.typing import Params

TEXT_LENGTH = 77
UPSAMPLING = 4  # factor of stages II and III; no file says it
NOISE_STEP = 250  # noise on the low-resolution input, in time steps
# How stage I is sampled, and how stages II and III are.
BASE = {"steps": 100, "guidance": 7.0}
SUPER_RESOLUTION = {"steps": 50, "guidance": 4.0}


def stage_from_diffusers(
    directory: DiffusersDirectory, dtype: str = "float32"
) -> tuple[Stage, Sampling]:
    """The pipeline's U-Net and schedulers as a stage, named after what it does and its resolution.

    Args:
        dtype: that the network computes in.

    Raises:
        ValueError: a value that is not supported; the message names its field.
    """
    network = config_from_diffusers(directory.unet_config, dtype=dtype)
    unet = Fields("The diffusers U-Net", {"sample_size": None, **directory.unet_config})
    resolution = unet.count("sample_size", MAX_SIDE)
    super_resolution = bool(network.low_res_channels)
    if super_resolution != directory.super_resolution:
        raise ValueError(
            f"{directory.path} is an {directory.pipeline}, but its U-Net's class_embed_type is "
            f"{directory.unet_config.get('class_embed_type')!r}; it must be "
            f"{'timestep' if directory.super_resolution else None!r}."
        )
    if super_resolution and resolution % UPSAMPLING:
        unet.refuse("sample_size", f"a multiple of {UPSAMPLING}")
    scheduler, fields = scheduler_fields(directory.scheduler, "The diffusers scheduler")
    schedule, augmentation, more = schedule_of(fields), {}, BASE
    if super_resolution:
        owner = "The diffusers image_noising_scheduler"
        noise = schedule_of(scheduler_fields(directory.low_res_scheduler, owner, (DDPM,))[1])
        level = (min(NOISE_STEP, noise.num_steps - 1) + 1) / noise.num_steps
        augmentation = {
            "low_resolution": resolution // UPSAMPLING,
            "aug_schedule": noise,
            "upsampling": "bilinear_align_corners",
        }
        more = {**SUPER_RESOLUTION, "aug_level": level}
    stage = Stage(
        f"{'sr' if super_resolution else 'base'}{resolution}",
        resolution,
        network,
        text_width=text_width_from_diffusers(directory.unet_config),
        schedule=schedule,
        prediction=fields.choice("prediction_type", PREDICTIONS),
        channels=network.in_channels,
        **augmentation,
    )
    learns = network.out_channels == 2 * network.in_channels
    steps = min(more["steps"], schedule.num_steps)
    settings = settings_of(scheduler, fields, learns)
    return stage, check_sampling(Sampling(**{**more, "steps": steps, **settings}))


def encoder_from_diffusers(
    directory: DiffusersDirectory, dtype: str = "float32"
) -> TextEncoder | None:
    """The pipeline's text encoder: 77 tokens, padding read too, guided away from the empty prompt.

    None where it has none. Raises ValueError for a value that is not supported.
    """
    if directory.text_encoder_config is None:
        return None
    try:
        config = t5.config_from_huggingface(directory.text_encoder_config, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{directory.path / 'text_encoder'}: {error}") from None
    encoder = TextEncoder(
        config,
        SentencePieceTokenizer(str(directory.tokenizer)),
        TEXT_LENGTH,
        null="empty",
        padding="encoded",
        caption="clean",
    )
    check_vocabulary(encoder)
    return encoder


def cascade_from_diffusers(directory: DiffusersDirectory, dtype: str = "float32") -> Cascade:
    """The pipeline as a cascade of one stage, which may lack its text encoder."""
    stage, settings = stage_from_diffusers(directory, dtype)
    return Cascade((stage,), (settings,), encoder_from_diffusers(directory, dtype))


def read_unet(
    directory: DiffusersDirectory,
    stage: Stage,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
) -> Params:
    """The stage's parameters, read tensor by tensor; arguments and errors as of `read_layout`."""
    return read_layout(
        unet_layout(stage.network),
        open_tensors(*directory.unet),
        jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0)),
        dtype=dtype,
        sharding=sharding,
        where=str(directory.unet.directory),
    )


def read_encoder(
    directory: DiffusersDirectory,
    encoder: TextEncoder,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
) -> Params:
    """The text encoder's parameters, likewise."""
    return t5.params_from_huggingface(
        encoder.config,
        open_tensors(*directory.text_encoder),
        dtype,
        sharding=sharding,
        where=str(directory.text_encoder.directory),
    )


def probe_encoder(
    directory: DiffusersDirectory, encoder: TextEncoder, paths: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Those of these parameters of the encoder that it has, each in one tensor; nothing else."""
    files, layout = open_tensors(*directory.text_encoder), t5.encoder_layout(encoder.config)
    wanted = {path: layout[path].names for path in paths if path in layout}
    return {path: files[name][()] for path, (name,) in wanted.items() if name in files}
