"""jax functions as StableHLO, which jax alone runs.

`jax.export.deserialize(bytes).call(**arrays)`; where weights lie in a file beside the program,
`.call(dict(numpy.load(FILE)), **arrays)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.core import jaxpr_as_fun

from imagen_jax.export.directory import check_parts, write_export
from imagen_jax.export.parts import Part
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.codec import require

PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 1.5e9  # bytes of weights within a program; the file's limit is 2 GB


def export_stablehlo(
    pipeline: Pipeline,
    directory: str | Path,
    parts: Sequence[str] | None = None,
    dtype: str = "float32",
) -> list[Path]:
    """Writes a cascade as StableHLO: a file a part with its weights, `export.json` and the
    tokenizer. Returns the parts' files.

    Args:
        parts: of `export.parts.part_names`; all when None.
        dtype: of the networks' arithmetic; inputs and outputs are float32.

    Raises:
        ValueError: an unknown part or dtype.
    """
    require((dtype != "int8", "dtype int8 is for weights in ONNX files, not for StableHLO"))
    parts = check_parts(pipeline.cascade, parts, dtype)

    def write(part: Part, path: Path, metadata: dict[str, str]) -> None:
        save(part, path)

    made_with = {"format": "stablehlo", "platforms": list(PLATFORMS), "jax": jax.__version__}
    return write_export(pipeline, Path(directory), parts, dtype, made_with, ".stablehlo", write)


def save(part: Part, path: Path) -> None:
    """Writes a part as a program that holds its weights; large ones as numpy's .npz beside it."""
    beside = path.with_suffix(".npz")
    beside.unlink(missing_ok=True)
    traced = jax.make_jaxpr(part.function)(**part.inputs)
    weights = {f"w{i}": np.asarray(value) for i, value in enumerate(traced.consts)}
    names = sorted(part.inputs)  # as jax orders what is given by name
    inside = sum(value.nbytes for value in weights.values()) <= LARGEST

    def program(consts: dict[str, Any], **arrays: jax.Array) -> list[jax.Array]:
        bound = traced.replace(jaxpr=traced.jaxpr, consts=[consts[name] for name in weights])
        return jaxpr_as_fun(bound)(*(arrays[name] for name in names))

    def closed(**arrays: jax.Array) -> list[jax.Array]:
        return program(weights, **arrays)

    function = closed if inside else program
    function.__name__ = part.name
    given = (
        () if inside else (jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), weights),)
    )
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*given, **part.inputs)
    path.write_bytes(exported.serialize())
    if not inside:
        np.savez(beside, **weights)
