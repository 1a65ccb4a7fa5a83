"""jax functions as StableHLO, which jax alone runs: `jax.export.deserialize(bytes).call(**arrays)`."""

from collections.abc import Sequence
from pathlib import Path

import jax
from jax import export

from imagen_jax.export.directory import check_parts, write_export
from imagen_jax.export.parts import Part
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.codec import require

PLATFORMS = ("cpu", "cuda", "tpu")


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
        def program(**arrays):
            return part.function(**arrays)

        program.__name__ = part.name
        exported = export.export(jax.jit(program), platforms=PLATFORMS)(**part.inputs)
        path.write_bytes(exported.serialize())

    made_with = {"format": "stablehlo", "platforms": list(PLATFORMS), "jax": jax.__version__}
    return write_export(pipeline, Path(directory), parts, dtype, made_with, ".stablehlo", write)
