"""The real train step computes the same on every mesh."""

import shutil

import jax
import numpy as np
import pytest

from imagen_jax.cascade.description import from_dict
from imagen_jax.data import ArraySource
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.pipeline.snapshots import snapshot_steps, synthesize
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.training import batches, build
from imagen_jax.training.loop import Run, train
from imagen_jax.training.metrics import read_losses
from imagen_jax.training.run_config import read_config
from tests.training.test_config import tiny

MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}


def source():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    return ArraySource(images, [[(f"no {i}", 1.0)] for i in range(40)])


def run(workdir, mesh, steps, **overrides):
    overrides |= {"data__source": "memory", "num_steps": str(steps), "checkpoint__every": "5"}
    config = read_config(tiny(**overrides))
    encoder = build.make_text_encoder(config)
    count = int(np.prod(MESHES[mesh]))
    mesh = make_mesh(MeshConfig(*MESHES[mesh]), jax.devices()[:count])
    train_step, init, _ = build.make_training(config, encoder, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = train(
        config,
        Run(
            train_step,
            init,
            mesh,
            batches.make_batches(config, encoder, source()),
            checkpoints,
            workdir,
            build.describe(config, encoder, tiny()),
        ),
    )
    checkpoints.close()
    return state


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    return workdir, jax.device_get(run(workdir, "one", 8))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """(workdir, state) after five steps with all parameters sharded."""
    workdir = tmp_path_factory.mktemp("fsdp")
    return workdir, run(workdir, "fsdp", 5, ema="{'every': 2}")


@pytest.mark.parametrize("mesh", ["data", "fsdp", "all"])
def test_the_first_losses_are_those_of_one_device(tmp_path, one_device, sharded, mesh):
    workdir, state = sharded if mesh == "fsdp" else (tmp_path, run(tmp_path, mesh, 5))
    expected, losses = read_losses(one_device[0]), read_losses(workdir)
    assert list(losses) == [1, 2, 3, 4, 5]
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5)
    kernel = state.params["network"]["down1_block0"]["conv1"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (mesh == "data")


def test_power_law_averages_lie_as_the_parameters_do(sharded):
    """The snapshots too are those of the averages, of the text encoder as of the network."""
    workdir, state = sharded
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert shardings.power_ema == {"0.05": shardings.params, "0.1": shardings.params}
    assert snapshot_steps(workdir) == [2, 4, 5]
    for width, average in state.power_ema.items():
        jax.tree.map(np.testing.assert_array_equal, synthesize(workdir, float(width))[1], average)


def test_a_checkpoint_goes_from_mesh_to_mesh(tmp_path, one_device, sharded):
    workdir = shutil.copytree(sharded[0], tmp_path / "run")
    run(workdir, "all", 8)
    expected, losses = read_losses(one_device[0]), read_losses(workdir)
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)


def test_a_workdir_holds_what_a_pipeline_needs(one_device):
    workdir, state = one_device
    step, params, run_values = Checkpoints(workdir / "checkpoints").read_parameters("ema")
    assert step == 8
    jax.tree.map(np.testing.assert_array_equal, params, state.ema)
    cascade = from_dict(run_values["model"], str(workdir))
    assert cascade.stages[0] == read_config(tiny()).stage
