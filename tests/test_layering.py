"""Who may import whom: imports run downward, and each outside library has its rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"typing", "grid", "captions", "picture_files", "compilation_cache"},
    {"diffusion", "models", "data"},
    {"text", "sampling_settings", "lora", "stage", "stage_sampling", "cascade", "pictures"},
    {"training", "evaluation", "convert", "compress", "export"},
    {
        "model_directory",
        "adapters",
        "arguments",
        "progress_bar",
        "drawing",
        "pipeline",
        "joining",
        "encoder_files",
        "feature_files",
        "scores",
        "loading",
        "__init__",
    },
    {"configs", "scripts"},
]
# Inside one layer a room may import these of its neighbours, and no others.
NEIGHBOURS = {
    "stage": {"text", "sampling_settings"},
    "stage_sampling": {"sampling_settings", "stage"},
    "cascade": {"text", "sampling_settings", "stage", "stage_sampling"},
    "export": {"compress"},
    "adapters": {"model_directory"},
    "drawing": {"model_directory", "arguments", "progress_bar"},
    "pipeline": {"model_directory", "adapters", "arguments", "drawing"},
    "joining": {"model_directory", "pipeline"},
    "loading": {"encoder_files", "model_directory", "joining", "pipeline"},
    "scores": {"feature_files"},
    "__init__": {"pipeline", "loading"},
    "scripts": {"configs"},
}
LAYER = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
# An outside library, and the only rooms that may import it (tests may import anything).
HOMES = {
    "flax.linen": {"models"},
    "tensorflow": {"data"},
    "tensorflow_datasets": {"data"},
    "tensorflow_text": {"data"},
    "seqio": {"data"},
    "huggingface_hub": {"convert"},
    "msgpack": {"convert"},
    "tensorstore": {"convert"},
    "tokenizers": {"evaluation"},
    "torch": {"scripts"},
    "transformers": set(),
    "diffusers": set(),
}
# Runs by itself in an environment of its own, beside PyTorch.
EXEMPT = {ROOT / "scripts" / "benchmark_imagen_pytorch.py"}
FILES = sorted(p for d in ("imagen_jax", "configs", "scripts") for p in (ROOT / d).rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "imagen_jax" else parts[0]


def imported_names(path: Path) -> set[str]:
    """Every dotted name that a file imports, anywhere in it; relative imports made absolute."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def faults(path: Path) -> list[str]:
    room, found = room_of(path), []
    if room not in LAYER:
        return [f"'{room}' is in no layer of tests/test_layering.py"]
    for name in imported_names(path):
        parts = name.split(".")
        if name == "imagen_jax.__version__":
            continue  # a string: no layer
        if parts[0] == "imagen_jax":
            target = parts[1] if len(parts) > 1 and parts[1] in LAYER else "__init__"
        else:
            target = parts[0] if parts[0] in ("configs", "scripts") else room
        allowed = LAYER[target] < LAYER[room] or target in {room, *NEIGHBOURS.get(room, ())}
        if not allowed:
            found.append(f"layer {LAYER[room]} ({room}) imports {name}, layer {LAYER[target]}")
        for library, homes in HOMES.items():
            if (name == library or name.startswith(library + ".")) and room not in homes:
                found.append(f"{room} imports {name}; only {sorted(homes) or 'tests'} may")
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_run_downward(path: Path):
    assert path in EXEMPT or not faults(path)


def test_files_are_named_after_a_noun():
    assert not [p for p in [*FILES, *(ROOT / "tests").rglob("*.py")] if p.name == "utils.py"]


def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "imagen_jax" / "diffusion" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "from flax import linen\nfrom ..training import loop\nfrom ..typing import Mask\n"
    )
    assert len(faults(bad)) == 2
