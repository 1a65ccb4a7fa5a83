"""What a run that does not fit is told to change is possible, and not done yet."""

import re
from dataclasses import replace

import jax
import pytest

from imagen_jax.devices.sharding import MeshConfig, check_batch, make_mesh
from imagen_jax.training.memory import training_advice
from imagen_jax.training.optimizer import OptimizerConfig
from tests.training import toy


def advised(devices: int = 1, *, mesh=MeshConfig(), **changes) -> tuple[dict[str, str], str]:
    """({key: value that is advised}, the advice) of a run."""
    network = {name: changes.pop(name) for name in ("remat", "dtype") if name in changes}
    stage = replace(toy.STAGE, network=replace(toy.STAGE.network, **network))
    config = replace(toy.make_config(), stage=stage, **changes)
    advice = training_advice(config, make_mesh(mesh, jax.devices()[:devices]))
    return dict(re.findall(r"--config\.([\w.]+)=(\w+)", advice)), advice


def test_present_values_are_named():
    _, advice = advised(8, mesh=MeshConfig(fsdp=2), optimizer=OptimizerConfig(accumulation=2))
    assert advice.startswith(
        "Now: batch_size 16, optimizer.accumulation 2, stage.network.remat False, mesh.fsdp 2 of 8 "
        "devices, stage.network.dtype float32. "
    )


def test_what_leaves_the_result_as_it_is_comes_first():
    keys, _ = advised()
    assert list(keys) == [
        "optimizer.accumulation",
        "stage.network.remat",
        "stage.network.dtype",
        "batch_size",
    ]


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 16), (1, 9), (4, 24), (8, 48), (8, 8)])
def test_the_batch_that_is_advised_divides(devices, batch_size):
    keys, _ = advised(devices, batch_size=batch_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    smaller = int(keys.get("batch_size", batch_size))
    check_batch(mesh, smaller)
    assert (smaller < batch_size) == (batch_size > devices)
    micro = int(keys.get("optimizer.accumulation", 1))
    assert batch_size % micro == 0
    check_batch(mesh, batch_size // micro)
    assert (micro > 1) == (batch_size > devices)
    assert (keys.get("mesh.fsdp") == str(devices)) == (devices > 1)


def test_what_is_done_already_is_not_advised():
    keys, advice = advised(batch_size=1, remat=True, dtype="bfloat16")
    assert not keys
    assert advice.endswith("Try one after the other: a smaller network.")
