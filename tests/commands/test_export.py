"""scripts/export.py: a model as files for other engines, and what it refuses."""

import sys
from pathlib import Path

import pytest
from tiny_cascade import tiny_pipeline

from imagen_jax.commands.export import main
from imagen_jax.pipeline.model_directory import write_model

pytest.importorskip("onnxruntime", reason="the extra 'export'")


@pytest.fixture
def model(tmp_path: Path) -> str:
    pipeline = tiny_pipeline()
    write_model(tmp_path / "model", pipeline.cascade, pipeline.params)
    return str(tmp_path / "model")


def test_a_part_is_written_and_compared(model: str, tmp_path: Path, capsys):
    out = tmp_path / "out"
    main(["--model", model, "--format", "onnx", "--out", str(out), "--parts", "text_encoder",
          "--compare"])  # fmt: skip
    names = {path.name for path in out.iterdir()}
    assert names == {"text_encoder.onnx", "export.json"}
    printed = capsys.readouterr().out
    assert "text_encoder.onnx: 0." in printed
    assert "relative L2" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onnx", "--opset", "9"], "opset 9 is too low; an export needs 18 or more"),
        (["--format", "stablehlo", "--opset", "20"], "--opset is for --format onnx"),
        (["--format", "stablehlo", "--parts", "sr"], "no part 'sr' in the model"),
    ],
)
def test_mistakes_are_one_line(model: str, tmp_path: Path, options: list[str], message: str):
    with pytest.raises(SystemExit) as stopped:
        main(["--model", model, "--out", str(tmp_path / "out"), *options])
    assert len(stopped.value.code.splitlines()) == 1
    assert message in stopped.value.code
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(model: str, tmp_path: Path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("imagen_jax.export.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--model", model, "--format", "onnx", "--out", str(tmp_path / "out")])
    assert "pip install 'imagen_jax[export]'" in stopped.value.code
