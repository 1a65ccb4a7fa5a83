"""Whole models and text encoders, rewritten as foreign files or as ours."""

from collections.abc import Sequence
from pathlib import Path

from imagen_jax.cascade.cascade import TEXT_ENCODER, stage_index
from imagen_jax.compress.quantization import renamed
from imagen_jax.convert import diffusers_export
from imagen_jax.convert.t5 import save_huggingface
from imagen_jax.models.quantized import dequantized
from imagen_jax.pipeline.encoder_files import is_encoder, read_encoder, write_encoder
from imagen_jax.pipeline.loading import Kept, load_encoder, load_model
from imagen_jax.pipeline.model_directory import Stored, write_model
from imagen_jax.pipeline.quantized_params import check_quantize
from imagen_jax.text.tokenizers import copy_tokenizer


def _memory_dtype(dtype: str | None) -> str:
    """The dtype to read weights in that are written in `dtype`: no larger than that needs."""
    return "bfloat16" if dtype == "bfloat16" else "float32"


def to_diffusers(
    source: str | Sequence[str],
    directory: Path,
    *,
    stage: str | None = None,
    dtype: str | None = None,
    variant: str | None = None,
) -> list[str]:
    """Writes a stage of a model as a diffusers pipeline, with its text encoder.

    Args:
        source: whatever `load_model` reads.
        stage: its name; not needed for a model of one stage.
        dtype, variant: of the weights on disk, as of `diffusers_export.save_pipeline`.

    Returns:
        Lines to tell the user: the arguments to call the pipeline with, and notes.

    Raises:
        ValueError: diffusers cannot express the stage; the message names each feature.
    """
    model = load_model(source, dtype=_memory_dtype(dtype))
    index = stage_index(model.cascade, stage)
    chosen, settings = model.cascade.stages[index], model.cascade.sampling[index]
    encoder = model.cascade.encoder if chosen.conditioning == "text" else None
    notes = diffusers_export.save_pipeline(
        directory,
        chosen,
        settings,
        dequantized(model.params[chosen.name]),
        encoder,
        None if encoder is None else dequantized(model.params[TEXT_ENCODER]),
        dtype=dtype,
        variant=variant,
    )
    arguments = diffusers_export.call_arguments(chosen, settings)
    call = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return [f"call it with {call}", *(f"note: {note}" for note in notes)]


def network_to_diffusers(
    source: str,
    directory: Path,
    *,
    stage: str | None = None,
    dtype: str | None = None,
    variant: str | None = None,
) -> None:
    """Writes the network of a stage alone; arguments and errors as of `to_diffusers`."""
    model = load_model(source, dtype=_memory_dtype(dtype))
    chosen = model.cascade.stages[stage_index(model.cascade, stage)]
    params = dequantized(model.params[chosen.name])
    diffusers_export.save_unet(directory, chosen, params, dtype=dtype, variant=variant)


def text_encoder_to_huggingface(
    source: str, directory: Path, dtype: str | None = None, variant: str | None = None
) -> None:
    """Writes a model's text encoder, or one by itself, as Hugging Face's T5."""
    config, params = load_encoder(source, dtype=_memory_dtype(dtype))
    save_huggingface(directory, config, dequantized(params), dtype=dtype, variant=variant)


def to_text_encoder(
    source: str,
    directory: Path,
    dtype: str,
    variant: str | None = None,
    quantize: str | None = None,
) -> None:
    """Writes a text encoder by itself, or that of a whole model, in our form.

    Args:
        quantize: its kernels, as of `load_model`; `dtype` is then of the rest.

    Raises:
        ValueError: the model has none, or its kernels are in another scheme already.
    """
    if is_encoder(source):
        check_quantize(quantize)
        place = Kept(quantize=quantize).place(TEXT_ENCODER) if quantize else None
        config, params = read_encoder(source, None, place, variant)
        params = params if quantize is None else renamed(params, quantize)
        write_encoder(directory, config, params, dtype=dtype, tokenizer_from=source)
        return
    model = load_model(source, dtype=_memory_dtype(dtype), variant=variant, quantize=quantize)
    encoder = model.cascade.encoder
    if encoder is None:
        raise ValueError(f"{source} holds no text encoder")
    write_encoder(directory, encoder.config, model.params[TEXT_ENCODER], dtype=dtype)
    copy_tokenizer(encoder.tokenizer, directory)


def to_model_directory(
    source: str | Sequence[str],
    directory: Path,
    dtype: str,
    variant: str | None = None,
    quantize: str | None = None,
    name: str | None = None,
) -> None:
    """Writes a whole model, such as a diffusers directory, in our form.

    Args:
        source: whatever `load_model` reads.
        quantize: its kernels, as of `load_model`; `dtype` is then of the rest.
        name: what the model calls itself; its own when None.
    """
    model = load_model(source, dtype=_memory_dtype(dtype), variant=variant, quantize=quantize)
    write_model(
        directory,
        model.cascade,
        model.params,
        Stored(dtype),
        name=name or model.name,
        notes=model.notes,
        release=model.params.free,
    )
