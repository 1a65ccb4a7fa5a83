"""Averages put together after a real training run, beside those that it kept at the same widths."""

import jax
import numpy as np
import pytest

from imagen_jax.data import ArraySource
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.pipeline.snapshots import snapshot_steps, synthesize, write_snapshot
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.storage.trees import flatten
from imagen_jax.training import batches, build
from imagen_jax.training.loop import Run, train
from imagen_jax.training.run_config import read_config
from tests.training.test_config import tiny

STEPS = 3200
STORED, WANTED = (0.05, 0.1), (0.07, 0.12)
DTYPES = ("float32", "float16", "bfloat16")


def discs(count: int, side: int = 8) -> np.ndarray:
    """Two discs of random colour, place and size on a plain ground."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:side, :side]
    images = np.empty((count, side, side, 3), np.uint8)
    for image in images:
        image[:] = rng.integers(0, 256, 3)
        for across, down, radius in rng.uniform(0, [side, side, side / 2], (2, 3)):
            image[(x - across) ** 2 + (y - down) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return images


def run(workdir, decay_steps: int | None) -> None:
    """A U-Net of 100,000 parameters, which keeps averages of all four widths."""
    raw = tiny(
        data__source="memory",
        num_steps=str(STEPS),
        checkpoint__every=str(STEPS),
        log_every="800",
        ema=repr({"widths": STORED + WANTED}),
        stage__conditioning="None",
        stage__text_width="None",
        text="None",
        stage__network__levels__0__channels="16",
        stage__network__levels__1__channels="32",
        optimizer__learning_rate="2e-3",
        optimizer__decay_steps=str(decay_steps),
    )
    config, mesh = read_config(raw), make_mesh(MeshConfig(1), jax.devices()[:1])
    train_step, init, _ = build.make_training(config, None, mesh)
    source = ArraySource(discs(1024), [[("discs", 1.0)]] * 1024)
    stream = batches.make_batches(config, None, source)
    checkpoints = Checkpoints(workdir / "checkpoints")
    description = build.describe(config, None, raw)
    train(config, Run(train_step, init, mesh, stream, checkpoints, workdir, description))
    checkpoints.close()


def distance(one, other) -> float:
    one, other = flatten(one), flatten(other)
    return sum(float(np.sum((one[path] - other[path]) ** 2)) for path in one) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("decay_steps", [None, STEPS], ids=["constant rate", "rate to zero"])
def test_what_is_put_together_is_what_would_have_been_kept(tmp_path, decay_steps, record_property):
    """Within 1 % of the distance between the two stored averages, from float32 snapshots."""
    run(tmp_path / "all", decay_steps)
    for step in snapshot_steps(tmp_path / "all"):
        kept = {f"{w:g}": synthesize(tmp_path / "all", w, step)[1] for w in STORED}
        for dtype in DTYPES:
            write_snapshot(tmp_path / dtype, step, kept, dtype)
    apart = distance(kept["0.05"], kept["0.1"])
    size = sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(kept["0.05"])) ** 0.5
    record_property("distance of the stored averages, of their norm", f"{apart / size:.3%}")
    for width in WANTED:
        true = synthesize(tmp_path / "all", width)[1]
        errors = {
            dtype: distance(true, synthesize(tmp_path / dtype, width)[1]) / apart
            for dtype in DTYPES
        }
        shown = ", ".join(f"{dtype} {error:.3%}" for dtype, error in errors.items())
        record_property(f"error at width {width}", shown)
        assert errors["float32"] < 0.01
        assert distance(true, kept["0.05"]) > 0.2 * apart
