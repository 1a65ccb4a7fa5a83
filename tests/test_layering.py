"""Who may import whom: imports run downward between files, and each outside library has its rooms.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up; rooms of one floor never import each other.
FLOORS = [
    {"typing"},
    {"devices"},
    {"storage"},
    {"images"},
    {"diffusion", "models", "data"},
    {"text"},
    {"cascade"},
    {"convert", "compress"},
    {"pipeline"},
    {"evaluation"},
    {"bulk_data", "human_study", "training"},
    {"benchmark", "planning", "export", "app", "sweeps"},
    {"commands"},
    {"__init__"},
    {"configs", "scripts"},
    {"tests"},
]
FLOOR = {room: depth for depth, rooms in enumerate(FLOORS) for room in rooms}
LOOSE = {"__init__", "typing"}  # the only files that stand in no room of the package
# {(file, what it imports): why that may run upward}
EXCEPTIONS: dict[tuple[str, str], str] = {}
# An outside library, and the only rooms that may import it (tests may import anything).
HOMES = {
    "c2pa": {"images"},
    "flax.linen": {"models"},
    "tensorflow": {"data"},
    "tensorflow_datasets": {"data"},
    "tensorflow_text": {"data"},
    "seqio": {"data"},
    "fastapi": {"app"},
    "gradio": {"app"},
    "gradio_client": set(),
    "uvicorn": {"app"},
    "huggingface_hub": {"convert"},
    "msgpack": {"convert"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "optuna": {"sweeps"},
    "tensorstore": {"convert"},
    "tokenizers": {"text"},
    "torch": {"benchmark", "commands"},
    "wandb": {"training"},
    "qwix": {"compress", "models"},
    "resvg_py": {"commands", "data"},
    "transformers": {"benchmark"},
    "diffusers": {"benchmark"},
}


def name_of(path: Path) -> str:
    """imagen_jax/data/order.py -> imagen_jax.data.order; a package's __init__.py is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


FILES = {
    name_of(path): path
    for folder in ("imagen_jax", "configs", "scripts", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def room_of(name: str) -> str:
    first, *rest = name.split(".")
    return rest[0] if first == "imagen_jax" and rest else first


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


@functools.cache
def defined_names(path: Path) -> set[str]:
    """What stands at a file's top level: classes, functions, constants and what it imports."""
    names = (
        {"__all__", "load_model", "list_models", "Pipeline"}
        if path == ROOT / "imagen_jax/__init__.py"
        else set()
    )
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def target_of(name: str, files: Iterable[str]) -> str | None:
    """The file of ours that an imported name comes from; None for an outside library's."""
    if name.split(".")[0] not in ("imagen_jax", "configs", "scripts"):
        return None
    while name not in files:
        if "." not in name:
            return "imagen_jax.__init__" if name == "imagen_jax" else name
        name = name.rpartition(".")[0]
    return name


def faults(name: str, path: Path, files: Iterable[str]) -> list[str]:
    room, found = room_of(name), []
    if room not in FLOOR:
        return [f"{name} is in no room of tests/test_layering.py"]
    for imported in sorted(imported_names(path)):
        target = target_of(imported, files)
        if target is not None and imported != "imagen_jax.__version__":  # a string: no floor
            other = room_of(target)
            downward = FLOOR[other] < FLOOR[room] or other == room
            if room == "tests" and other == "scripts":
                found.append(f"{name} imports a script, {target}")
            elif not downward and (name, target) not in EXCEPTIONS:
                found.append(f"{name} (floor {FLOOR[room]}) imports {target}, {FLOOR[other]}")
        for library, homes in HOMES.items():
            outside = imported == library or imported.startswith(library + ".")
            if outside and room not in homes | {"tests"}:
                found.append(f"{name} imports {imported}; only {sorted(homes) or 'tests'} may")
    return found


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Files that can be reached from themselves."""

    def reached(name: str) -> set[str]:
        seen, waiting = set(), [name]
        while waiting:
            new = arrows.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    return [name for name in arrows if name in reached(name)]


@pytest.mark.parametrize("name", FILES)
def test_imports_run_downward(name: str):
    assert not faults(name, FILES[name], FILES)


def test_no_circle_of_files():
    arrows = {
        name: {target_of(imported, FILES) for imported in imported_names(path)} - {None, name}
        for name, path in FILES.items()
        if not name.startswith("tests")
    }
    # Naming the package for its version reads a string.
    assert not circles({k: v - {"imagen_jax.__init__"} for k, v in arrows.items()})


def test_what_a_file_imports_is_there():
    """Of every name of ours: importing all files would bring TensorFlow."""
    missing = {
        f"{name} imports {imported}"
        for name, path in FILES.items()
        for imported in imported_names(path)
        if (target := target_of(imported, FILES)) is not None
        and imported not in {*FILES, "imagen_jax"}
        and imported.rpartition(".")[2] not in defined_names(FILES[target])
    }
    assert not missing


def test_no_loose_file():
    assert {path.stem for path in (ROOT / "imagen_jax").glob("*.py")} == LOOSE


def test_files_are_named_after_a_noun():
    assert not [path for path in FILES.values() if path.name == "utils.py"]


def test_exceptions_are_still_needed():
    for name, target in EXCEPTIONS:
        assert target in {target_of(imported, FILES) for imported in imported_names(FILES[name])}


def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "imagen_jax" / "diffusion" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "from typing import TYPE_CHECKING\n"
        "from ..typing import Mask\n"
        "def f():\n    from ..training import loop\n"
        "if TYPE_CHECKING:\n    from flax import linen\n    from ..models import t5\n"
    )
    assert len(faults("imagen_jax.diffusion.bad", bad, FILES)) == 3
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
