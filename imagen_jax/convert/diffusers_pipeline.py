"""A DeepFloyd IF pipeline in diffusers' layout: its stage, its text encoder, their parameters.

What its files leave open is as diffusers' pipelines have it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imagen_jax.cascade import Cascade
from imagen_jax.convert import t5
from imagen_jax.convert.diffusers_directory import DiffusersDirectory, Weights
from imagen_jax.convert.diffusers_unet import (
    config_from_diffusers,
    text_width_from_diffusers,
    unet_layout,
)
from imagen_jax.convert.fields import Fields
from imagen_jax.convert.reading import ShardingOf, read_layout
from imagen_jax.convert.safetensors import TensorFiles
from imagen_jax.diffusion.schedules import BETAS, DiscreteBeta
from imagen_jax.sampling_settings import SamplingSettings
from imagen_jax.stage import Stage, init_params
from imagen_jax.text import SentencePieceTokenizer, TextEncoder, check_vocabulary
from imagen_jax.typing import Params

SCHEDULER = "DDPMScheduler"
TEXT_LENGTH = 77
ENLARGEMENT = 4  # of stages II and III; no file says it
NOISE_STEP = 250  # noise on the low-resolution input, in time steps
# Stage I, and those that enlarge.
BASE = {"steps": 100, "guidance": 7.0}
SUPER_RESOLUTION = {"steps": 50, "guidance": 4.0}

# What a field that scheduler_config.json leaves out stands for.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "linspace"}
# Whether the network's own variance is taken, and the gamma of ddpm otherwise.
VARIANCES = {
    "learned_range": (True, 0.0),
    "fixed_small": (False, 0.0),
    "fixed_small_log": (False, 0.0),
    "fixed_large": (False, 1.0),
}


def _scheduler_fields(values: Mapping[str, Any], owner: str) -> Fields:
    name = values.get("_class_name", SCHEDULER)
    if name != SCHEDULER:
        Fields(owner, {"_class_name": name}).refuse(
            "_class_name", f"{SCHEDULER}; other samplers are chosen when pictures are drawn"
        )
    for field in sorted(set(values) - set(DEFAULTS)):
        # Names that start with "_" are notes.
        if not field.startswith("_") and values[field] not in (None, False):
            raise ValueError(
                f"{owner} has an unknown field, {field} = {values[field]!r}; supported are those "
                f"of {SCHEDULER}."
            )
    fields = Fields(owner, {name: values.get(name, value) for name, value in DEFAULTS.items()})
    if fields.values["trained_betas"] is not None:
        fields.refuse("trained_betas", "null")
    if fields.flag("rescale_betas_zero_snr"):
        fields.refuse("rescale_betas_zero_snr", "false")
    return fields


def _schedule(fields: Fields) -> DiscreteBeta:
    kind = fields.choice("beta_schedule", {name: name for name in BETAS})
    start, end = fields.positive("beta_start"), fields.positive("beta_end")
    if not start <= end < 1:
        fields.refuse("beta_end", "a number from beta_start to below 1")
    return DiscreteBeta(kind, start, end, fields.count("num_train_timesteps"))


def _threshold(fields: Fields) -> dict[str, Any]:
    if fields.flag("thresholding"):
        ratio = fields.positive("dynamic_thresholding_ratio")
        cap = fields.positive("sample_max_value")
        if ratio > 1:
            fields.refuse("dynamic_thresholding_ratio", "a share, at most 1")
        if cap < 1:
            fields.refuse("sample_max_value", "a number from 1")
        return {"threshold": "dynamic", "percentile": 100 * ratio, "cap": cap}
    if not fields.flag("clip_sample"):
        return {"threshold": "none"}
    if fields.positive("clip_sample_range") != 1:
        fields.refuse("clip_sample_range", "1")
    return {"threshold": "static"}


def _settings(fields: Fields, learns_variance: bool) -> dict[str, Any]:
    """The part of SamplingSettings that a scheduler's file holds."""
    learned, gamma = fields.choice("variance_type", VARIANCES)
    if learned and not learns_variance:
        fields.refuse("variance_type", "one without a learned variance, as the U-Net gives none")
    if fields.values["steps_offset"] != 0:
        fields.count("steps_offset")
    return {
        "spacing": fields.choice("timestep_spacing", SPACINGS),
        "steps_offset": fields.values["steps_offset"],
        "learned_variance": learned,
        "gamma": gamma,
        **_threshold(fields),
    }


def stage_from_diffusers(
    directory: DiffusersDirectory, dtype: str = "float32"
) -> tuple[Stage, SamplingSettings]:
    """The pipeline's U-Net and schedulers as a stage, named after what it does and its resolution.

    Args:
        dtype: that the network computes in.

    Raises:
        ValueError: a value that is not supported; the message names its field.
    """
    network = config_from_diffusers(directory.unet_config, dtype=dtype)
    unet = Fields("The diffusers U-Net", {"sample_size": None, **directory.unet_config})
    resolution, enlarging = unet.count("sample_size"), bool(network.low_res_channels)
    if enlarging != directory.super_resolution:
        raise ValueError(
            f"{directory.path} is an {directory.pipeline}, but its U-Net's class_embed_type is "
            f"{directory.unet_config.get('class_embed_type')!r}; it must be "
            f"{'timestep' if directory.super_resolution else None!r}."
        )
    if enlarging and resolution % ENLARGEMENT:
        unet.refuse("sample_size", f"a multiple of {ENLARGEMENT}")
    fields = _scheduler_fields(directory.scheduler, "The diffusers scheduler")
    schedule, augmentation, more = _schedule(fields), {}, BASE
    if enlarging:
        owner = "The diffusers image_noising_scheduler"
        noise = _schedule(_scheduler_fields(directory.low_res_scheduler, owner))
        level = (min(NOISE_STEP, noise.num_steps - 1) + 1) / noise.num_steps
        augmentation = {
            "low_resolution": resolution // ENLARGEMENT,
            "aug_schedule": noise,
            "upsampling": "bilinear_align_corners",
        }
        more = {**SUPER_RESOLUTION, "aug_level": level}
    stage = Stage(
        f"{'sr' if enlarging else 'base'}{resolution}",
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
    return stage, SamplingSettings(**{**more, "steps": steps, **_settings(fields, learns)})


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


def _files(weights: Weights) -> TensorFiles:
    return TensorFiles(weights.directory, weights.name, weights.variant)


def read_unet(
    directory: DiffusersDirectory,
    stage: Stage,
    dtype: str | None = "float32",
    sharding: ShardingOf | None = None,
) -> Params:
    """The stage's parameters, read tensor by tensor; arguments and errors as of `read_layout`."""
    return read_layout(
        unet_layout(stage.network),
        _files(directory.unet),
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
        _files(directory.text_encoder),
        dtype,
        sharding=sharding,
        where=str(directory.text_encoder.directory),
    )


def read_encoder_marks(
    directory: DiffusersDirectory, encoder: TextEncoder, paths: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Those of these parameters of the encoder that it has, each in one tensor; nothing else."""
    files, layout = _files(directory.text_encoder), t5.encoder_layout(encoder.config)
    wanted = {path: layout[path].names for path in paths if path in layout}
    return {path: files.read(name) for path, (name,) in wanted.items() if name in files}
