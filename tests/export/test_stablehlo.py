"""StableHLO programs give what the package gives, where jax is installed alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exported import distance, run_part, sampled, tiny

from imagen_jax.export import stablehlo_file
from imagen_jax.export.examples import example_inputs
from imagen_jax.export.parts import make_part, part_names
from imagen_jax.storage.json_file import read_object

# Runs programs on the inputs of a folder: NAME-BATCH.npz gives NAME-BATCH-out.npz.
ALONE = """
import sys
for name in ("imagen_jax", "flax", "onnx", "optax", "orbax"):
    sys.modules[name] = None
import json, pathlib
import jax, numpy
from jax import export
folder = pathlib.Path(sys.argv[1])
description = json.loads((folder / "export.json").read_text())
for path in folder.glob("inputs-*.npz"):
    name = path.stem.split("-")[1]
    program = export.deserialize((folder / f"{name}.stablehlo").read_bytes())
    weights = folder / f"{name}.npz"
    given = (dict(numpy.load(weights)),) if weights.exists() else ()
    results = program.call(*given, **dict(numpy.load(path)))
    named = zip((entry["name"] for entry in description["parts"][name]["outputs"]), results)
    numpy.savez(path.with_name(path.name.replace("inputs", "outputs")), **dict(named))
"""


def run_alone(folder: Path, inputs: dict[tuple[str, int], dict]) -> dict[tuple[str, int], dict]:
    """The outputs of parts, by name and batch, from a process that has neither us nor flax."""
    for (name, batch), given in inputs.items():
        np.savez(folder / f"inputs-{name}-{batch}.npz", **given)
    subprocess.run([sys.executable, "-c", ALONE, str(folder)], check=True)
    return {key: dict(np.load(folder / f"outputs-{key[0]}-{key[1]}.npz")) for key in inputs}


def check(pipeline, folder: Path, names: list[str], steps: int) -> None:
    parts = {name: make_part(pipeline, name) for name in names}
    inputs = {
        (name, batch): example_inputs(parts[name], batch, steps, seed=batch)
        for name in names
        for batch in (1, 5)
    }
    outputs = run_alone(folder, inputs)
    for (name, batch), given in inputs.items():
        found = outputs[name, batch]
        within = 1e-5 if name == "cascade" or name.endswith("steps") else 1e-6
        for output, wanted in zip(parts[name].outputs, run_part(parts[name], given), strict=True):
            assert distance(found[output], wanted) < within, (name, output)
        if name == "cascade":
            assert distance(found["images"], sampled(pipeline, given)) < 1e-5


def test_parts_run_with_jax_alone(tmp_path: Path, monkeypatch):
    pipeline = tiny(sampler="ddim", threshold="static")
    names = ["base_network", "cascade"]
    files = stablehlo_file.export_stablehlo(pipeline, tmp_path, names)
    assert [file.stem for file in files] == names
    description = read_object(tmp_path / "export.json", "an export")
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    monkeypatch.setattr(stablehlo_file, "LARGEST", 100)  # weights in a file beside
    stablehlo_file.export_stablehlo(pipeline, tmp_path / "beside", ["base_network"])
    assert (tmp_path / "beside/base_network.npz").is_file()
    check(pipeline, tmp_path, names, 3)
    part = make_part(pipeline, "base_network")
    given = example_inputs(part, 2, 3)
    (found,) = run_alone(tmp_path / "beside", {("base_network", 2): given}).values()
    assert distance(found["prediction"], run_part(part, given)[0]) < 1e-6


@pytest.mark.slow
def test_the_shipped_model_with_jax_alone(tmp_path: Path):
    from imagen_jax import load_model

    pipeline = load_model("icons")
    stablehlo_file.export_stablehlo(pipeline, tmp_path)
    check(pipeline, tmp_path, part_names(pipeline.cascade), 4)
