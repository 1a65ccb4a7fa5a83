"""Snapshots of averages: what is written, what is read of them, and what cannot be."""

import re
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.devices.sharding import MeshConfig, make_mesh, state_shardings
from imagen_jax.pipeline.snapshots import (
    remove_snapshots_after,
    snapshot_steps,
    synthesize,
    write_snapshot,
)


def averages(seed: int, shape: tuple[int, ...] = (8, 16)) -> dict:
    rng = np.random.default_rng(seed)
    return {
        width: {"network": {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}}
        for width in ("0.05", "0.1")
    }


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    for step in (100, 20, 40, 80, 60):
        write_snapshot(tmp_path, step, averages(step))
    return tmp_path


def test_a_kept_width_is_read_as_it_is(workdir: Path):
    assert snapshot_steps(workdir) == [20, 40, 60, 80, 100]
    for step, wanted in ((100, None), (60, 60), (60, np.int64(60))):
        found, params = synthesize(workdir, 0.1, wanted)
        assert found == step
        jax.tree.map(np.testing.assert_array_equal, params, averages(step)["0.1"])


def test_snapshots_after_the_step_are_not_used(workdir: Path):
    _, before = synthesize(workdir, 0.08, 60)
    assert remove_snapshots_after(workdir, 60) == [80, 100]
    assert snapshot_steps(workdir) == [20, 40, 60]
    step, after = synthesize(workdir, 0.08)
    assert step == 60
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize(
    ("width", "step", "message"),
    [
        (0.07, 50, r"no snapshot of step 50; it has 20, 40, 60, 80, 100\."),
        (0.3, None, "below 0.2887, not 0.3"),
        (0.01, None, r"The 5 snapshots up to step 100 are too few for .* 0.01 .* they give widths"),
    ],
)
def test_what_cannot_be_put_together_is_told(workdir: Path, width, step, message):
    with pytest.raises(ValueError, match=message) as caught:
        synthesize(workdir, width, step)
    if found := re.search(r"widths of (\S+) to (\S+)\.$", str(caught.value)):
        for reached in map(float, found.groups()):
            synthesize(workdir, reached, step)


def test_a_run_without_snapshots_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no snapshots.* needs a section ema"):
        synthesize(tmp_path, 0.07)


def test_half_a_snapshot_is_none(workdir: Path):
    half = workdir / "ema" / "120"
    half.mkdir()
    (half / ".averages.safetensors.1.tmp").write_bytes(b"half")
    assert snapshot_steps(workdir)[-1] == 100
    (workdir / "ema" / "100" / "averages.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"100/averages\.safetensors is not a whole safetensors"):
        synthesize(workdir, 0.07)


def test_a_snapshot_of_another_network_is_named(workdir: Path):
    write_snapshot(workdir, 40, averages(40, (8, 4)))
    with pytest.raises(ValueError, match=r"ema/40 does not fit .*kernel is \(8, 4\), not \(8, 16"):
        synthesize(workdir, 0.07)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imagen_jax.storage.safetensors.save_file", full)
    with pytest.raises(OSError, match=r"averages\.safetensors: No space left on device"):
        write_snapshot(tmp_path, 20, averages(0))
    assert snapshot_steps(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_averages_on_a_mesh_give_the_file_of_one_device(tmp_path: Path, dtype: str):
    one = averages(3)
    spread = jax.device_put(one, state_shardings(one, make_mesh(MeshConfig(2, 2, 2))))
    assert not spread["0.1"]["network"]["kernel"].sharding.is_fully_replicated
    files = []
    for name, tree in (("one", one), ("spread", spread)):
        write_snapshot(tmp_path / name, 5, tree, dtype)
        files.append((tmp_path / name / "ema/5/averages.safetensors").read_bytes())
    assert files[0] == files[1]
    assert len(files[0]) < 2 * 8 * 16 * np.dtype(jnp.dtype(dtype)).itemsize + 500


def test_memory_is_that_of_one_copy(tmp_path: Path):
    leaves = {f"kernel{i}": jnp.full((32, 1024), float(i)) for i in range(16)}
    size = 16 * 32 * 1024 * 4
    for step in range(10, 130, 10):
        write_snapshot(tmp_path, step, {"0.05": leaves, "0.1": leaves})
    tracemalloc.start()
    _, params = synthesize(tmp_path, 0.07)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.6 * size
    np.testing.assert_allclose(params["kernel7"], 7, rtol=1e-6)
