"""Functions stay short and take few arguments; what may not is listed with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST, MOST_ARGUMENTS, MOST_EXCEPTIONS = 50, 8, 10
KEYS = "its parameters are keys of a config's section data"
# {file::function: why it is longer, or takes more}
LONG = {
    "imagen_jax/training/loop.py::train": "a run reads top to bottom",
    "imagen_jax/training/run_config.py::RunConfig.__post_init__": "a table of rules",
}
INPUTS = "the inputs of a network"
MANY = {
    "imagen_jax/cascade/stage.py::apply_network": INPUTS,
    "imagen_jax/data/shard_sources.py::read_array_record": KEYS,
    "imagen_jax/data/shard_sources.py::read_tar": KEYS,
    "imagen_jax/data/shard_sources.py::read_tfrecord": KEYS,
    "imagen_jax/models/__init__.py::apply": INPUTS,
    "imagen_jax/pipeline/loading.py::load_model": "keyword options of a user",
    "imagen_jax/pipeline/pipeline.py::Pipeline.generate_images": "keyword options of a user",
    "imagen_jax/pipeline/pipeline.py::Pipeline.inpaint": "keyword options of a user",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """("imagen_jax/pipeline/loading.py::load_model", the function) of all of the code."""
    for folder in ("imagen_jax", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from _within(tree, f"{path.relative_to(ROOT)}::")


def _within(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(parent):
        named = isinstance(node, Function | ast.ClassDef)
        if isinstance(node, Function):
            yield prefix + node.name, node
        yield from _within(node, f"{prefix}{node.name}." if named else prefix)


def length(function: Function) -> int:
    """Lines from `def` to the end, without the docstring's."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = function.end_lineno - function.lineno + 1
    return lines if docstring is None else lines - (docstring.end_lineno - docstring.lineno + 1)


def arguments(function: Function) -> int:
    """As ruff's PLR0913 counts: all but *args and **kwargs, and not a method's first."""
    given = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    own = given[:1] in (["self"], ["cls"])
    return len(given) + len(function.args.kwonlyargs) - own


def test_functions_are_at_most_50_lines():
    long = {name: length(node) for name, node in functions() if length(node) > LONGEST}
    assert long.keys() == LONG.keys(), long


def test_functions_take_at_most_8_arguments():
    many = {name: arguments(node) for name, node in functions() if arguments(node) > MOST_ARGUMENTS}
    assert many.keys() == MANY.keys(), many


def test_exceptions_are_few_and_have_reasons():
    assert len(LONG) + len(MANY) <= MOST_EXCEPTIONS
    assert all([*LONG.values(), *MANY.values()])
