"""The folder of an export: a file a part, the tokenizer, and `export.json`, which says what each
array is.
"""

import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax import __version__
from imagen_jax.cascade import description
from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.cascade.sample import plan_steps
from imagen_jax.export.parts import CASCADE, Part, make_part, needs_noise, part_names
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.codec import nearest, require
from imagen_jax.storage.json_file import write_object
from imagen_jax.text.tokenizers import copy_tokenizer

FILE = "export.json"
DTYPES = ("float32", "float16", "int8")  # int8: of the weights alone, computed in float32
RUNNER = "onnx_images.py"  # makes images of text from a cascade without this package
Write = Callable[[Part, Path, dict[str, str]], None]  # a part, its file, settings for its metadata


def check_parts(cascade: Cascade, parts: Sequence[str] | None, dtype: str) -> list[str]:
    """The parts to export; all when None.

    Raises:
        ValueError: an unknown part or dtype; a kind of guidance that needs a second network.
    """
    known = part_names(cascade)
    kinds = {
        stage.name: s.guidance_kind
        for stage, s in zip(cascade.stages, cascade.sampling, strict=True)
    }
    auto = [name for name, kind in kinds.items() if kind == "auto"]
    text = TEXT_ENCODER in known or TEXT_ENCODER not in (parts or ())
    wrong = [part for part in parts or () if part not in known]
    require(
        (dtype in DTYPES, f"dtype {dtype!r} cannot be exported, only {' and '.join(DTYPES)}"),
        (text, f"The model has no text encoder to export; its parts are {', '.join(known)}"),
        (
            not wrong,
            f"There is no part {' or '.join(map(repr, wrong))} in the model, only "
            f"{', '.join(known)}{nearest(wrong[0], known) if wrong else ''}",
        ),
        (
            not auto,
            f"guidance_kind 'auto' of stage {auto and auto[0]!r} needs a second network, which an "
            "export does not have; choose another kind",
        ),
    )
    return list(parts or known)


def write_export(
    pipeline: Pipeline,
    directory: Path,
    parts: Sequence[str],
    dtype: str,
    made_with: dict[str, Any],
    ending: str,
    write: Write,
) -> list[Path]:
    """Writes parts, checked before, one after the other; the files.

    Args:
        made_with: what `export.json` says first: the format, versions.
        ending: of the parts' files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    values = {"name": pipeline.name, **made_with, "dtype": dtype, **settings(pipeline)}
    metadata = {key: str(value) for key, value in made_with.items()}
    metadata |= {"model": pipeline.name, "dtype": dtype}
    written, entries = [], {}
    for name in parts:
        part, path = make_part(pipeline, name, dtype), directory / f"{name}{ending}"
        write(part, path, metadata)
        entries[name] = {"file": path.name, **arrays(part)}
        written.append(path)
    write_object(directory / FILE, {**values, "parts": entries})
    if pipeline.cascade.encoder is not None:
        copy_tokenizer(pipeline.cascade.encoder.tokenizer, directory)
    if ending == ".onnx" and CASCADE in parts and pipeline.cascade.encoder is not None:
        runner = files("imagen_jax.export").joinpath(RUNNER)
        shutil.copyfile(str(runner), directory / RUNNER)
    return written


def settings(pipeline: Pipeline) -> dict[str, Any]:
    """The stages with the times that they are sampled at, and how prompts become tokens."""
    cascade = pipeline.cascade
    stages = []
    for stage, sampling in zip(cascade.stages, cascade.sampling, strict=True):
        grid = plan_steps(stage, sampling)
        stages.append({
            "name": stage.name,
            "resolution": stage.resolution,
            "low_resolution": stage.low_resolution,
            "channels": stage.channels,
            "noise_scale": float(stage.schedule.noise_scale),
            "sampler": sampling.sampler,
            "adds_noise": bool(needs_noise(sampling)),
            "guidance": float(np.max(sampling.guidance)),
            "spacing": str(sampling.spacing),
            "times": [float(t) for t in grid.times[int(grid.start) : int(grid.stop) + 1]],
        })  # fmt: skip
    described = description.to_dict(cascade)
    encoder = described.pop("text_encoder")
    tokens = None
    if encoder is not None:
        keys = ("tokenizer", "max_length", "null", "padding", "caption")
        tokens = {key: encoder[key] for key in keys} | {"end": 1, "padding_id": 0}
    return {"version": __version__, "text": tokens, "stages": stages, "model": described}


def arrays(part: Part) -> dict[str, Any]:
    """The inputs and outputs of a part as JSON values."""
    shapes = jax.eval_shape(lambda kwargs: part.function(**kwargs), part.inputs)
    outputs = dict(zip(part.outputs, shapes, strict=True))

    def entry(name: str, shape: Any) -> dict[str, Any]:
        sizes = [int(size) if isinstance(size, int) else str(size) for size in shape.shape]
        return {
            "name": name,
            "dtype": str(np.dtype(shape.dtype)),
            "shape": sizes,
            "meaning": part.meanings[name],
        }

    return {
        "inputs": [entry(name, shape) for name, shape in part.inputs.items()],
        "outputs": [entry(name, shape) for name, shape in outputs.items()],
    }
