"""Traced programs between processes: the same numbers, traced once, and never a stale one."""

import inspect
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from imagen_jax.devices import program_cache
from imagen_jax.devices.program_cache import KeptProgram, cache_folder, remembered


class Pair(NamedTuple):
    """What the program below returns."""

    total: jax.Array
    noise: jax.Array


@pytest.fixture
def cache(tmp_path):
    """A folder of compiled programs, of which all are kept, however soon they are traced."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield tmp_path / program_cache.FOLDER
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def process():
    """What starts a process anew: the program of one, and the list of its traces."""

    def start() -> tuple[KeptProgram, list]:
        traces = []

        def mixed(power, tree, key):
            traces.append(power)
            noise = jax.random.normal(key, tree["x"].shape)
            return Pair(jnp.sin(tree["x"]) ** power + tree["y"], noise)

        return KeptProgram(mixed, results=(Pair,), static_argnums=0), traces

    return start


def inputs(rng, size=5, dtype=np.float32):
    x = jax.device_put(rng.standard_normal(size).astype(dtype), jax.devices()[0])
    return {"x": x, "y": np.float32(rng.standard_normal())}, jax.random.key(rng.integers(2**31))


def test_the_next_process_does_not_trace(cache, process, rng):
    (first, traced), (second, untraced) = process(), process()
    tree, key = inputs(rng)
    wanted = jax.jit(first.__wrapped__, static_argnums=0)(3, tree, key)
    traced.clear()
    for _ in range(2):
        found = first(3, tree, key)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert traced == [3]
    assert len(list(cache.iterdir())) == 1
    found = second(3, tree, key)
    assert isinstance(found, Pair)
    assert untraced == []
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    other, key = inputs(rng)
    wanted = jax.jit(first.__wrapped__, static_argnums=0)(3, other, key)
    jax.tree.map(np.testing.assert_array_equal, second(3, other, key), wanted)
    assert untraced == []
    assert second._cache_size() == 1


@pytest.mark.parametrize("change", ["static", "shape", "dtype", "tree", "settings", "source"])
def test_what_a_trace_depends_on_is_not_taken_from_another(
    cache, process, rng, monkeypatch, change
):
    tree, key = inputs(rng)
    process()[0](3, tree, key)
    program, traces = process()
    power = 2 if change == "static" else 3
    if change == "source":
        versions = {**program_cache._versions(), "source": "another"}
        monkeypatch.setattr(program_cache, "_versions", lambda: versions)
    new = {
        "shape": lambda: inputs(rng, 6)[0],
        "dtype": lambda: inputs(rng, dtype=np.float16)[0],
        "tree": lambda: {**tree, "z": np.float32(0)},
    }
    tree = new.get(change, lambda: tree)()
    with jax.default_matmul_precision("float32" if change == "settings" else "highest"):
        found = program(power, tree, key)
    assert traces == [power]
    np.testing.assert_allclose(found.total, np.sin(tree["x"]) ** power + tree["y"], rtol=1e-3)


@pytest.mark.parametrize("damage", [b"", b"nothing of ours", "cut", "changed"])
def test_a_damaged_file_is_made_anew(cache, process, rng, damage):
    tree, key = inputs(rng)
    process()[0](3, tree, key)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    middle = len(whole) * 3 // 4
    damaged = {"cut": whole[:middle], "changed": whole[:middle] + b"?!" + whole[middle + 2 :]}
    path.write_bytes(damaged.get(damage, damage))
    program, traces = process()
    np.testing.assert_allclose(
        program(3, tree, key).total, np.sin(tree["x"]) ** 3 + tree["y"], 1e-5
    )
    assert traces == [3]
    program, traces = process()
    program(3, tree, key)
    assert traces == []
    assert list(cache.iterdir()) == [path]


def test_a_folder_that_others_own_is_read(cache, process, rng, monkeypatch):
    tree, key = inputs(rng)
    process()[0](3, tree, key)

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(program_cache.os, "utime", refused)
    program, traces = process()
    program(3, tree, key)
    assert traces == []


def test_nothing_is_kept_of_source_that_was_edited_after_the_start(monkeypatch):
    versions = inspect.unwrap(program_cache._versions)
    assert versions() == versions()
    monkeypatch.setattr(program_cache, "STARTED", 0.0)
    assert versions()["source"] != versions()["source"]


def test_attention_by_cudnn_can_be_kept():
    """By its name; it is compiled for a GPU alone."""
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    program = jax.jit(jax.ffi.ffi_call("__cudnn$fmhaSoftmax", shape))
    kept = export.export(program, disabled_checks=program_cache.UNPROMISED)(shape)
    assert "fmhaSoftmax" in str(export.deserialize(kept.serialize()).mlir_module())


def test_old_files_make_room(cache, process, rng, monkeypatch):
    program, _ = process()
    for size in (2, 3, 4):
        program(3, *inputs(rng, size))
    newest = max(cache.iterdir(), key=lambda path: path.stat().st_mtime)
    monkeypatch.setattr(program_cache, "LARGEST", 5 * newest.stat().st_size // 2)
    program(3, *inputs(rng, 5))
    assert newest in cache.iterdir()
    assert len(list(cache.iterdir())) <= 2


def test_nothing_is_kept_without_a_compilation_cache(cache, process, rng):
    tree, key = inputs(rng)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert cache_folder() is None
        process()[0](3, tree, key)
        assert remembered("numbers", "anything", lambda: [1]) == [1]
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not cache.exists()
    jax.config.update("jax_compilation_cache_dir", "gs://a-bucket/programs")
    assert cache_folder() is None


def test_other_programs_and_several_devices_have_it_as_their_part(cache, process, rng):
    program, _ = process()
    tree, key = inputs(rng, 8)
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    alone = program(3, tree, key)
    (path,) = cache.iterdir()
    inside = jax.jit(lambda tree, key: program(3, tree, key))(tree, key)
    whole = jax.NamedSharding(mesh, jax.P())
    placed = jax.device_put((tree, key), ({"x": spread, "y": whole}, whole))
    meshed = program(3, *placed)
    assert list(cache.iterdir()) == [path]
    assert meshed.total.sharding.num_devices == 8
    for other in (inside, meshed):
        np.testing.assert_allclose(other.total, alone.total, rtol=1e-6)


@pytest.mark.parametrize("fixed", [(), ("x",), ("x", "y")])
def test_what_is_prepared_runs_and_may_be_moved_where_all_that_it_takes_may(
    cache, process, rng, fixed
):
    """As of `jax.jit`: what was put onto a device stays there."""
    program, traces = process()
    tree, key = inputs(rng)
    for name, x in tree.items():
        tree[name] = jax.device_put(x, jax.devices()[0]) if name in fixed else np.asarray(x)
    shape = jax.ShapeDtypeStruct(tree["x"].shape, tree["x"].dtype)
    if fixed:
        shape = shape.update(sharding=tree["x"].sharding)
    wanted = jax.jit(program.__wrapped__, static_argnums=0)(3, tree, key)
    traces.clear()
    given = program.prepare(3, {**tree, "x": shape}, key)
    assert jax.tree.map(jax.typeof, given) == jax.tree.map(jax.typeof, wanted)
    found = program(3, tree, key)
    assert traces == [3]
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert found.total.committed == wanted.total.committed == bool(fixed)


def test_a_function_has_no_description_that_another_process_would_know(cache, rng):
    program = KeptProgram(lambda act, x: act(x), static_argnums=0)
    x = rng.standard_normal(3).astype(np.float32)
    np.testing.assert_allclose(program(lambda x: 2 * x, x), 2 * x)
    assert not cache.exists()


def test_errors_of_the_function_are_its_own(cache):
    program = KeptProgram(lambda x: x @ jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="dot_general"):
        program(np.ones(4, np.float32))


def test_remembered_values_follow_from_what_they_are_of(cache):
    calls = []

    def make(value):
        calls.append(value)
        return {"a": [value]}

    assert remembered("numbers", 1, lambda: make(1)) == {"a": [1]}
    assert remembered("numbers", 1, lambda: make(2)) == {"a": [1]}
    assert remembered("numbers", 2, lambda: make(2)) == {"a": [2]}
    assert calls == [1, 2]


STAGE = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from imagen_jax.cascade import sample
from imagen_jax.cascade.stage import Stage
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.models import EfficientLevel, EfficientUNetConfig
network = EfficientUNetConfig((EfficientLevel(8, stride=2),), stem_channels=8, num_heads=1)
stage = Stage("base", 4, network, conditioning=None)
traces, upsample = [], sample.split_noise
sample.split_noise = lambda *given: traces.append(1) or upsample(*given)
keys = jax.device_put(jax.random.split(jax.random.key(0), 2), jax.devices()[0])
given = keys, None, traced(Sampling())
state, _ = sample.start_stage(stage, (4, 4, 3), *given)
print(len(traces), "scipy.linalg" in sys.modules, np.asarray(state.x).tobytes().hex())
"""


def test_two_processes_say_the_same_of_a_stage(tmp_path, repository):
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "random"}
    said = [
        subprocess.run(
            [sys.executable, "-c", STAGE],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [traces for traces, _, _ in said] == ["1", "0"]
    assert said[1][1] == "False"
    assert said[0][2] == said[1][2]


def test_a_program_of_linear_algebra_is_read_as_jax_reads_it(cache, rng):
    half = rng.standard_normal((3, 3)).astype(np.float32)
    x = jax.device_put(half @ half.T + np.eye(3, dtype=np.float32), jax.devices()[0])
    for _ in range(2):
        found = KeptProgram(jnp.linalg.cholesky)(x)
        np.testing.assert_allclose(found @ found.T, x, rtol=1e-5)
    of_lapack, other = (export.export(jax.jit(f))(x) for f in (jnp.linalg.cholesky, jnp.sin))
    assert program_cache._without_lapack(of_lapack) is of_lapack
    assert "cpu" not in program_cache._without_lapack(other).platforms
