"""Checkpoints are whole or not there, come back exactly on any mesh, and say what does not fit."""

import gc
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.storage import checkpoint
from imagen_jax.storage.checkpoint import CheckpointError, Checkpoints
from imagen_jax.storage.digest import checked
from imagen_jax.training.loop import init_sharded
from tests.training import toy


def make_state(seed=0, mesh=None, hidden=16):
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    return init_sharded(lambda key: toy.init(key, hidden), jax.random.key(seed), mesh)


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def open_in(folder, **options):
    return Checkpoints(folder / "checkpoints", **options)


def truncate_largest(folder: Path):
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with open(largest, "r+b") as file:
        file.truncate(largest.stat().st_size // 2)


def test_what_is_saved_comes_back(tmp_path):
    state = make_state()
    checkpoints = open_in(tmp_path)
    checkpoints.save(3, state, run={"step": 3, "x": [0.1]}, loss=1.0)
    checkpoints.close()
    again = open_in(tmp_path)
    restored, run = again.restore(make_state(seed=1))
    assert_equal(restored, state)
    assert (run["step"], run["x"]) == (3, [0.1])
    again.close()


def test_saving_does_not_see_what_later_steps_write(tmp_path):
    state = make_state(hidden=4096)
    expected = jax.device_get(jax.tree.map(jnp.copy, state))
    add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints = open_in(tmp_path)
    checkpoints.save(1, state, run={}, loss=1.0)
    for _ in range(5):
        state = add(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(state)
    assert_equal(jax.device_get(restored), expected)
    checkpoints.close()


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = open_in(tmp_path, keep=2, keep_best=1)
    state = make_state()
    for step, loss in enumerate([9.0, 1.0, 5.0, 4.0, 3.0], start=1):
        checkpoints.save(step, state, run={}, loss=loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.close()


def test_the_best_is_known_after_a_restart(tmp_path):
    state = make_state()
    for step, loss in enumerate([1.0, 5.0, 4.0], start=1):
        checkpoints = open_in(tmp_path, keep=1, keep_best=1)
        checkpoints.save(step, state, run={}, loss=loss)
        checkpoints.close()
    assert open_in(tmp_path).steps() == [1, 3]


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_another_mesh_restores_it(tmp_path, shape):
    state = make_state(mesh=make_mesh(MeshConfig(1, 4, 2)))
    checkpoints = open_in(tmp_path)
    checkpoints.save(1, state, run={}, loss=1.0)
    checkpoints.wait()
    other = make_state(seed=1, mesh=make_mesh(MeshConfig(*shape)))
    restored, _ = checkpoints.restore(other)
    assert_equal(jax.device_get(restored), jax.device_get(state))
    places = [[leaf.sharding for leaf in jax.tree.leaves(tree)] for tree in (restored, other)]
    assert places[0] == places[1]
    step, params, _ = checkpoints.read_parameters("ema")
    assert step == 1
    assert_equal(params, jax.device_get(state.ema))
    checkpoints.close()


class Averaged(NamedTuple):
    """With power-law averages beside the ordinary one, or in its place."""

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    power_ema: Any = None


def averaged(with_ema: bool = True) -> Averaged:
    state = make_state()
    powers = {
        width: jax.tree.map(lambda leaf, width=width: leaf + float(width), state.params)
        for width in ("0.1", "0.05")
    }
    return Averaged(*state._replace(ema=state.ema if with_ema else None), powers)


@pytest.mark.parametrize("with_ema", [True, False])
def test_power_law_averages_come_back_and_the_narrowest_stands_in(tmp_path, with_ema):
    state, checkpoints = averaged(with_ema), open_in(tmp_path)
    checkpoints.save(3, state, run={"step": 3}, loss=1.0)
    checkpoints.wait()
    assert_equal(checkpoints.restore(state)[0], state)
    wanted = state.ema if with_ema else state.power_ema["0.05"]
    assert_equal(checkpoints.read_parameters()[1], jax.device_get(wanted))
    assert checkpoints.read_description()["step"] == 3
    # Without them a run may go on; with those of other widths it may not.
    plain = state._replace(power_ema=None)
    assert_equal(checkpoints.restore(plain)[0], plain)
    other = state._replace(power_ema={"0.2": state.params})
    with pytest.raises(ValueError, match=r"Of its power_ema, .* missing: 0\.2/network"):
        checkpoints.restore(other)
    checkpoints.close()


def test_a_checkpoint_of_before_has_no_power_law_averages(tmp_path):
    checkpoints, state = open_in(tmp_path), averaged()
    checkpoints.save(3, state._replace(power_ema=None), run={}, loss=1.0)
    checkpoints.wait()
    assert_equal(checkpoints.restore(make_state(seed=1))[0], make_state())
    with pytest.raises(ValueError, match=r"Of its power_ema, .* missing: 0\.05/network"):
        checkpoints.restore(state)
    checkpoints.close()


def test_a_checkpoint_of_another_config_names_what_differs(tmp_path):
    checkpoints = open_in(tmp_path)
    checkpoints.save(7, make_state(hidden=16), run={}, loss=1.0)
    checkpoints.wait()
    with pytest.raises(ValueError, match="does not fit the config") as caught:
        checkpoints.restore(make_state(hidden=32))
    message = str(caught.value)
    assert "checkpoint 7" in message
    assert "network/first/kernel is (8, 16), not (8, 32)" in message
    assert checkpoints.steps() == [7]
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[list, Path]:
    """Two states, saved as steps 1 and 2, and where."""
    states, folder = [make_state(0), make_state(1)], tmp_path_factory.mktemp("saved")
    checkpoints = open_in(folder)
    for step, state in enumerate(states, 1):
        checkpoints.save(step, state, run={"step": step}, loss=1.0)
    checkpoints.close()
    return states, folder


@pytest.fixture
def newest(saved, tmp_path) -> Path:
    """The newest checkpoint of a copy of `saved` in `tmp_path`."""
    shutil.copytree(saved[1], tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints" / "2"


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def of_nothing_but_zeros(folder: Path) -> None:
    """As after a power failure, where the disk had promised more than it had done."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * path.stat().st_size)


def cut(folder: Path) -> None:
    for path in folder.rglob("d/*"):
        os.truncate(path, 10)


# All are of what `read_parameters` reads, too.
DAMAGES = {
    "cut": lambda folder: cut(folder / "ema"),
    "no item": lambda folder: shutil.rmtree(folder / "ema"),
    "metadata": lambda folder: (folder / "ema" / "_METADATA").write_text("{"),
    "no description": lambda folder: shutil.rmtree(folder / "run"),
    "empty": empty,
    "zeros": of_nothing_but_zeros,
    "a file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "half-written": lambda folder: folder.rename(f"{folder}.orbax-checkpoint-tmp"),
}
UNSEEN = ("a file", "half-written")  # never taken for a checkpoint: nothing to warn of


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, saved, newest, damage):
    first, second = saved[0]
    DAMAGES[damage](newest)
    again = open_in(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        restored, run = again.restore(first)
    assert run["step"] == 1
    assert_equal(restored, first)
    if damage not in UNSEEN:
        (line,) = (str(warning.message) for warning in told if warning.category is UserWarning)
        assert "\n" not in line
        assert "checkpoint 2 in " in line
        assert "renamed to damaged-2, and 1 is taken" in line
        # What was damaged is still there to look at.
        assert (tmp_path / "checkpoints" / "damaged-2").is_dir()
    if damage != "a file":  # its step can be written again
        again.save(2, second, run={"step": 2}, loss=1.0)
        again.wait()
        assert again.steps() == [1, 2]
    again.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reader_takes_the_one_before_and_leaves_all_as_it_is(tmp_path, saved, newest, damage):
    first, _ = saved[0]
    DAMAGES[damage](newest)
    before = sorted(tmp_path.rglob("*"))
    reader = open_in(tmp_path, read_only=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        step, params, run = reader.read_parameters()
    assert (step, run["step"]) == (1, 1)
    assert_equal(params, jax.device_get(first.ema))
    lines = [str(warning.message) for warning in told if warning.category is UserWarning]
    assert len(lines) == (damage not in UNSEEN)
    assert all("checkpoint 2 in " in line and "1 is read instead" in line for line in lines)
    assert sorted(tmp_path.rglob("*")) == before
    reader.close()


def test_a_step_that_is_asked_for_is_read_and_no_other(tmp_path, saved, newest):
    first, _ = saved[0]
    reader = open_in(tmp_path, read_only=True)
    step, params, _ = reader.read_parameters("params", 1)
    assert step == 1
    assert_equal(params, jax.device_get(first.params))
    with pytest.raises(ValueError, match=r"no checkpoint of step 3; it has 1, 2\."):
        reader.read_parameters(step=3)
    with pytest.raises(ValueError, match=r"checkpoint 2 in .* has no raw, only params, ema"):
        reader.read_parameters("raw")
    cut(newest / "ema")
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* is damaged"):
        reader.read_parameters(step=2)
    cut(newest.with_name("1") / "ema")
    with pytest.raises(
        CheckpointError, match=r"all checkpoints .* are damaged \(2: .*; 1: "
    ) as all:
        reader.read_parameters()
    assert "\n" not in str(all.value)
    reader.close()


def test_what_is_left_after_a_failure_says_nothing(tmp_path, saved, newest, capfd):
    """Orbax and TensorStore print thousands of lines about what they also raise."""
    first, _ = saved[0]
    cut(newest)
    again = open_in(tmp_path)
    with pytest.warns(UserWarning, match="checkpoint 2 .* is damaged"):
        again.restore(first)
    again.close()
    gc.collect()
    assert capfd.readouterr() == ("", "")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def test_a_flipped_byte_in_any_file_never_gives_another_state(tmp_path, saved, rng):
    """What was saved, or the checkpoint before: nothing in between, and never an end."""
    states, whole = saved
    newest = whole / "checkpoints" / "2"
    files = [p.relative_to(newest) for p in sorted(newest.rglob("*")) if p.stat().st_size]
    seen = set()
    for number, name in enumerate(path for path in files if (newest / path).is_file()):
        place = tmp_path / str(number)
        shutil.copytree(whole, place)
        size = (newest / name).stat().st_size
        flip(place / "checkpoints" / "2" / name, int(rng.integers(size)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = open_in(place)
            restored, run = again.restore(states[0])
            again.close()
        assert_equal(restored, states[run["step"] - 1])
        seen.add(run["step"])
    assert 1 in seen


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_changed_array_is_named(tmp_path, where):
    """Damage that no file format notices: another value in the place of one."""
    state, other = make_state(0), make_state(0)
    kernel = np.array(state.params["network"]["out"]["kernel"])
    kernel[(0, 0) if where == "first" else (-1, -1)] += 1e-6
    other.params["network"]["out"]["kernel"] = jnp.asarray(kernel)
    for name, kept in (("one", state), ("other", other)):
        checkpoints = open_in(tmp_path / name)
        checkpoints.save(1, kept, run={}, loss=1.0)
        checkpoints.close()
    stored = tmp_path / "one" / "checkpoints" / "1" / "params"
    shutil.rmtree(stored)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "1" / "params", stored)
    again = open_in(tmp_path / "one")
    with pytest.raises(CheckpointError, match="params/network/out/kernel is not what was saved"):
        again.restore(state)
    with pytest.raises(CheckpointError, match="params/network/out/kernel is not what was saved"):
        again.read_parameters("params")


def test_nothing_readable_is_an_error_and_not_a_fresh_start(tmp_path):
    checkpoints = open_in(tmp_path)
    checkpoints.save(1, make_state(), run={}, loss=1.0)
    checkpoints.close()
    truncate_largest(tmp_path / "checkpoints" / "1")
    again = open_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint 1 in .* is damaged"):
        again.restore(make_state())
    assert again.steps() == [1]


def test_no_checkpoint_is_none(tmp_path):
    checkpoints = open_in(tmp_path)
    assert checkpoints.restore(make_state()) is None
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoints.read_parameters()


def test_a_disk_without_room_is_named_before_training(tmp_path, monkeypatch):
    checkpoints = open_in(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(CheckpointError, match=r"100 bytes free, and a checkpoint needs .* kB"):
        checkpoints.check_space(make_state())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.storage.test_checkpoint import make_state, open_in
from imagen_jax.storage.checkpoint import CheckpointError
folder = Path(sys.argv[1])
checkpoints = open_in(folder)
checkpoints.save(1, make_state(0, hidden=4096), run={"step": 1}, loss=1.0)
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, make_state(1, hidden=4096), run={"step": 2}, loss=1.0)
    checkpoints.wait()
except CheckpointError as error:
    print("CheckpointError:", error)
    sys.exit(7)
"""


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, repository):
    """A limit on file sizes fails writes as a full disk does, and needs no rights to set."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    # One line, and nothing but it.
    assert done.stdout.count("\n") == 1
    assert not done.stderr
    assert "the checkpoint of step 2 could not be written: " in done.stdout
    assert f"{tmp_path / 'checkpoints'}: File too large (" in done.stdout
    assert " free, " in done.stdout
    assert " needed). The checkpoints of steps [1] are whole" in done.stdout
    again = open_in(tmp_path)
    assert again.steps() == [1]
    restored, run = again.restore(make_state(hidden=4096))
    assert run["step"] == 1
    # The other process may have compiled the random numbers for another count of devices, which
    # changes their last digit.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        jax.device_get(restored),
        jax.device_get(make_state(0, hidden=4096)),
    )
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_checkpoint_from_before_the_digests_is_read(tmp_path, monkeypatch):
    state = make_state()
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "signed", lambda run: {"step": run["step"]})
        checkpoints = open_in(tmp_path)
        checkpoints.save(1, state, run={"step": 1}, loss=1.0)
        checkpoints.close()
    again = open_in(tmp_path)
    restored, run = again.restore(state)
    assert_equal(restored, state)
    assert run == {"step": 1}
    assert_equal(again.read_parameters("params")[1], state.params)
    again.close()


def test_a_changed_description_is_named_with_its_place(tmp_path, monkeypatch):
    checkpoints = open_in(tmp_path)
    checkpoints.save(1, make_state(), run={"step": 1}, loss=1.0)
    checkpoints.close()
    monkeypatch.setattr(checkpoint, "checked", lambda run: checked(run | {"step": 2}))
    with pytest.raises(CheckpointError, match=r"checkpoint 1 in .* \(its description is not what"):
        open_in(tmp_path).read_parameters()
