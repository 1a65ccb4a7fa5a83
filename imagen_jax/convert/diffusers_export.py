"""A stage as a diffusers directory: what one of DeepFloyd IF's pipelines there is loaded from.

What diffusers cannot express is refused before anything is written. What its pipelines would do
otherwise when called, and a caller can set right, comes back as notes.
"""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from imagen_jax.cascade.stage import Stage
from imagen_jax.convert.diffusers_directory import INDEX, UNET_WEIGHTS
from imagen_jax.convert.diffusers_scheduler import DDPM, PREDICTIONS, SPACINGS
from imagen_jax.convert.diffusers_unet import CLASS_NAME, config_to_diffusers, unet_layout
from imagen_jax.convert.t5 import config_to_huggingface, save_huggingface
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta, Schedule, network_time
from imagen_jax.diffusion.time_grids import fixed_steps
from imagen_jax.models import EfficientUNetConfig, PRXConfig, TransformerConfig
from imagen_jax.storage.json_file import write_object
from imagen_jax.storage.layout_files import save_layout
from imagen_jax.storage.safetensors import SHARD_BYTES
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizers import SentencePieceTokenizer, copy_tokenizer, vocab_size
from imagen_jax.typing import Params

# Class names of the pipelines.
BASE, SUPER_RESOLUTION = "IFPipeline", "IFSuperResolutionPipeline"
# Tokens to which IF's pipelines pad every prompt.
PROMPT_LENGTH = 77
# Stands for dynamic thresholding without a cap: JSON has no infinity.
NO_CAP = 1e9
SCHEDULER_FILE = "scheduler_config.json"
# Settings that no scheduler of diffusers has, and their value where they do nothing.
UNKNOWN_SETTINGS = {
    "guidance_interval": (0.0, 1.0),
    "guidance_rescale": 0.0,
    "guidance_kind": "cfg",
}


def _network_faults(stage: Stage) -> Iterator[str]:
    """What UNet2DConditionModel cannot express of a stage's network."""
    network = stage.network
    if isinstance(network, TransformerConfig | PRXConfig):
        yield f"{type(network).__name__}: {CLASS_NAME} is a U-Net"
    elif isinstance(network, EfficientUNetConfig):
        used = [name for name in ("input_skip", "draft") if getattr(network, name)]
        more = f", nor its {' and '.join(used)}" if used else ""
        yield f"network.kind 'efficient_unet': {CLASS_NAME} has no such blocks{more}"
    elif stage.is_flow_map:
        yield f"network.target_time: {CLASS_NAME} is not told where a step leads to"
    elif stage.conditioning != "text":
        yield f"conditioning {stage.conditioning!r}: its attention always reads text"
    else:
        try:
            config_to_diffusers(network, stage.text_width)
        except ValueError as error:
            yield str(error).rstrip(".")


def _schedule_faults(name: str, schedule: Schedule) -> Iterator[str]:
    if not isinstance(schedule, DiscreteBeta):
        yield (
            f"{name} {type(schedule).__name__}: it runs in continuous time, and diffusers' named "
            "betas have other noise at the times that the network was shown (those of "
            "discrete_beta agree)"
        )


def _pipeline_faults(stage: Stage, encoder: TextEncoder | None) -> Iterator[str]:
    """What IF's pipelines cannot express of all around the network."""
    yield from _schedule_faults("schedule", stage.schedule)
    if stage.network.out_channels != 2 * stage.channels:
        yield (
            f"network.out_channels {stage.network.out_channels}: IF's pipelines split off a "
            f"learned variance, {2 * stage.channels} channels"
        )
    if stage.low_resolution is not None:
        yield from _schedule_faults("aug_schedule", stage.aug_schedule)
        if stage.upsampling != "bilinear_align_corners":
            yield (
                f"upsampling {stage.upsampling!r}: IF's pipelines upsample by "
                "'bilinear_align_corners'"
            )
    if encoder is not None and not isinstance(encoder.tokenizer, SentencePieceTokenizer):
        yield "tokenizer 'bytes': IF's pipelines have T5's, a SentencePiece model"


def _refuse(stage: Stage, faults: Iterator[str]) -> None:
    if said := "; ".join(faults):
        raise ValueError(f"diffusers cannot express stage {stage.name!r}: {said}.")


def _betas(schedule: DiscreteBeta) -> dict[str, Any]:
    return {
        "num_train_timesteps": schedule.num_steps,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
    }


def _variance(stage: Stage, settings: Sampling) -> tuple[str, list[str]]:
    if settings.learned_variance and stage.network.out_channels == 2 * stage.channels:
        return "learned_range", []
    kinds = {0.0: "fixed_small", 1.0: "fixed_large"}
    kind = kinds.get(float(settings.gamma), "fixed_small")
    same = settings.sampler != "ddpm" or settings.gamma in kinds
    return kind, [] if same else [f"gamma {settings.gamma} has no counterpart; {kind} is written"]


def scheduler_to_diffusers(stage: Stage, settings: Sampling) -> tuple[dict[str, Any], list[str]]:
    """(scheduler_config.json, notes on what it cannot say) of a stage with a discrete schedule."""
    _refuse(stage, _schedule_faults("schedule", stage.schedule))
    spacing = settings.spacing
    variance, notes = _variance(stage, settings)
    if settings.sampler != "ddpm":
        notes.append(f"{DDPM} is written in place of sampler {settings.sampler!r}")
    if spacing == "time" and stage.schedule.num_steps % settings.steps == 0:
        spacing = "trailing"  # every so many steps from the last one on: the same times
    if fixed_steps(spacing) is None and spacing not in SPACINGS[DDPM]:
        notes.append(f"{DDPM} has no spacing {spacing!r}; 'leading' is written")
    values = {
        "_class_name": DDPM,
        **_betas(stage.schedule),
        "prediction_type": {ours: name for name, ours in PREDICTIONS.items()}[stage.prediction],
        "variance_type": variance,
        "thresholding": settings.threshold == "dynamic",
        "dynamic_thresholding_ratio": settings.percentile / 100,
        "sample_max_value": float(NO_CAP if settings.cap is None else settings.cap),
        "clip_sample": settings.threshold == "static",
        "clip_sample_range": 1.0,
        "timestep_spacing": spacing if spacing in SPACINGS[DDPM] else "leading",
        "steps_offset": settings.steps_offset,
    }
    used = {name: getattr(settings, name) for name in UNKNOWN_SETTINGS}
    unknown = [f"{name} {value}" for name, value in used.items() if value != UNKNOWN_SETTINGS[name]]
    return values, notes + [f"no scheduler of diffusers has {each}" for each in unknown]


def call_arguments(stage: Stage, settings: Sampling) -> dict[str, Any]:
    """What to call the pipeline with for our sampling settings: they are in no file of it."""
    steps = None if settings.spacing == "time" else fixed_steps(settings.spacing)
    values = {"num_inference_steps": settings.steps} if steps is None else {"timesteps": [*steps]}
    values["guidance_scale"] = settings.guidance
    if stage.low_resolution is not None:
        values["noise_level"] = round(float(network_time(stage.aug_schedule, settings.aug_level)))
    return values


def save_unet(
    directory: str | os.PathLike,
    stage: Stage,
    params: Params,
    *,
    dtype: str | None = None,
    variant: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Writes only the network, for UNet2DConditionModel.from_pretrained; gives the weights' files.

    Of a stage in continuous time the network's time is 1000 t, which that model takes too.

    Args:
        params: of the stage.
        dtype: of the parameters on disk; None leaves them as they are.
        variant: such as "fp16", for diffusion_pytorch_model.fp16.safetensors.

    Raises:
        ValueError: diffusers cannot express the network; the message names each feature.
    """
    _refuse(stage, _network_faults(stage))
    values = config_to_diffusers(stage.network, stage.text_width, stage.resolution)
    files = save_layout(
        directory,
        UNET_WEIGHTS,
        unet_layout(stage.network),
        params,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        variant=variant,
    )
    write_object(Path(directory) / "config.json", values)
    return files


def check_pipeline(stage: Stage, encoder: TextEncoder | None) -> None:
    """ValueError names everything of a stage and its text encoder that diffusers cannot express."""
    _refuse(stage, chain(_network_faults(stage), _pipeline_faults(stage, encoder)))
    if encoder is not None:
        config_to_huggingface(encoder.config)


def save_pipeline(
    directory: str | os.PathLike,
    stage: Stage,
    settings: Sampling,
    params: Params,
    encoder: TextEncoder | None = None,
    encoder_params: Params | None = None,
    *,
    dtype: str | None = None,
    variant: str | None = None,
) -> list[str]:
    """Writes a stage as IFPipeline, or IFSuperResolutionPipeline where it upsamples.

    Args:
        params: of the stage.
        encoder, encoder_params: of the text; without them, the pipeline only reads embeddings.
        dtype: of the parameters on disk; None leaves them as they are. An encoder in float16
            overflows from T5-XXL on.
        variant: such as "fp16", as in diffusion_pytorch_model.fp16.safetensors.

    Returns:
        Notes: what the pipeline does otherwise unless its caller sees to it.

    Raises:
        ValueError: diffusers cannot express the stage; the message names each feature.
    """
    check_pipeline(stage, encoder)
    scheduler, notes = scheduler_to_diffusers(stage, settings)
    directory, upsamples = Path(directory), stage.low_resolution is not None
    save_unet(directory / "unet", stage, params, dtype=dtype, variant=variant)
    write_object(directory / "scheduler" / SCHEDULER_FILE, scheduler)
    index = {
        "_class_name": SUPER_RESOLUTION if upsamples else BASE,
        "unet": ["diffusers", CLASS_NAME],
        "scheduler": ["diffusers", DDPM],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "watermarker": [None, None],
        "requires_safety_checker": False,
    }
    if upsamples:
        noising = {"_class_name": DDPM, **_betas(stage.aug_schedule)}
        write_object(directory / "image_noising_scheduler" / SCHEDULER_FILE, noising)
        index["image_noising_scheduler"] = ["diffusers", DDPM]
    if encoder is not None:
        place = directory / "text_encoder"
        save_huggingface(place, encoder.config, encoder_params, dtype=dtype, variant=variant)
        (name,) = config_to_huggingface(encoder.config)["architectures"]
        index["text_encoder"] = ["transformers", name]
        index["tokenizer"] = ["transformers", "T5Tokenizer"]
        write_object(directory / "tokenizer" / "tokenizer_config.json", _tokenizer_config(encoder))
        copy_tokenizer(encoder.tokenizer, directory / "tokenizer")
        notes += _text_notes(encoder)
    write_object(directory / INDEX, index)
    return notes


def _tokenizer_config(encoder: TextEncoder) -> dict[str, Any]:
    spare = encoder.config.vocab_size - vocab_size(encoder.tokenizer)
    return {
        "tokenizer_class": "T5Tokenizer",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 100 if spare >= 100 else 0,  # names that T5 gives to ids after the last piece
        "model_max_length": PROMPT_LENGTH,
    }


def _text_notes(encoder: TextEncoder) -> Iterator[str]:
    """Where IF's pipelines make other embeddings of a prompt than this model was trained with."""
    if encoder.max_length != PROMPT_LENGTH:
        yield (
            f"prompts are padded to {PROMPT_LENGTH} tokens there, to {encoder.max_length} here: "
            "give prompt_embeds of that length"
        )
    if encoder.padding != "encoded":
        yield "the embeddings of padding are zero here: zero them in prompt_embeds"
    if encoder.null != "empty":
        yield "the null text is zeros here: give zeros as negative_prompt_embeds"
    if encoder.caption is None:
        yield "prompts are made lower-case and cleaned there, and are read as they are here"
