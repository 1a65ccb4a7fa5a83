"""The loop resumes bit for bit, stops as it should, and reports what it did."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.storage.checkpoint import CheckpointError, Checkpoints
from imagen_jax.training.feed import Feed, LabelError
from imagen_jax.training.loop import NonFiniteError
from imagen_jax.training.metrics import read_losses
from tests.training import toy


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def reports(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "window" in line}


def test_a_run_in_pieces_equals_one_in_one_piece(tmp_path):
    whole = toy.run(tmp_path / "whole", steps=20, every=5)
    for steps in (7, 13, 20):  # each ends off the grid of checkpoints and of reports
        parts = toy.run(tmp_path / "parts", steps=steps, every=5)
    assert_equal(jax.device_get(whole), jax.device_get(parts))
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "parts")
    assert int(whole.step) == 20


def test_a_finished_run_is_left_alone(tmp_path):
    first = toy.run(tmp_path, steps=6)
    said = []
    again = toy.run(tmp_path, steps=6, say=said.append)
    assert_equal(jax.device_get(first), jax.device_get(again))
    assert "already trained" in said[-1]


def signal_at(step, number=signal.SIGTERM):
    stream = toy.batches()

    def batches(start, state):
        for index, batch in enumerate(stream(start, state), start=start):
            if index == step:
                os.kill(os.getpid(), number)
            yield batch

    return batches


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tmp_path, number):
    before = signal.getsignal(number)
    said = []
    toy.run(
        tmp_path / "stopped",
        steps=30,
        every=10,
        batches=signal_at(13, number),
        say=said.append,
    )
    assert "stopped by a signal" in said[-1]
    assert signal.getsignal(number) == before
    stopped = Checkpoints(tmp_path / "stopped" / "checkpoints").steps()[-1]
    assert 13 <= stopped <= 15
    toy.run(tmp_path / "stopped", steps=30, every=10)
    toy.run(tmp_path / "whole", steps=30, every=10)
    assert read_losses(tmp_path / "stopped") == read_losses(tmp_path / "whole")
    # A report whose steps lie on both sides of the stop is the same too.
    assert reports(tmp_path / "stopped")[20] == reports(tmp_path / "whole")[20]


@pytest.mark.parametrize("where", ["loss", "grad_norm"])
def test_a_non_finite_number_stops_the_run(tmp_path, where):
    with pytest.raises(NonFiniteError) as caught:
        toy.run(tmp_path, steps=20, every=5, nan_at=13, nan_in=where)
    message = str(caught.value)
    assert f"step 13: {where} is nan" in message
    assert "last good checkpoint is step 10" in message.lower()
    assert "learning_rate" in message
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 10


def test_a_run_goes_on_without_the_batches_that_broke_it(tmp_path):
    with pytest.raises(NonFiniteError) as caught:
        toy.run(tmp_path / "run", steps=20, every=5, nan_batch=12)
    # Batches 10, 11 and 12 are those since the checkpoint of step 10.
    assert "--config.skip_batches=10:12." in str(caught.value)
    toy.run(tmp_path / "run", steps=14, every=5, nan_batch=12, skip_batches="10:12")
    toy.run(tmp_path / "run", steps=20, every=5, nan_batch=12, skip_batches="10:12")
    toy.run(tmp_path / "whole", steps=20, nan_batch=12, skip_batches="10:12")
    assert list(read_losses(tmp_path / "run")) == list(range(1, 21))
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")


def numbers(start, steps, skipped, stream=False):
    """The batches that `steps` steps from `start` on use, and those that were asked for."""
    opened = []

    class Numbers:
        def __init__(self, number):
            self.number = number

        def __next__(self):
            self.number += 1
            return {"image": np.full((8, 1), self.number - 1)}

        def get_state(self):
            return {}

    def batches(number, state):
        opened.append(number)
        return Numbers(number) if stream else iter(lambda n=Numbers(number): next(n), None)

    mesh = make_mesh(MeshConfig())
    feed = Feed(batches, start, None, skipped, mesh)
    used = [int(feed.batch["image"][0, 0])]
    used += [int(feed.next()["image"][0, 0]) for _ in range(steps - 1)]
    return used, opened


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "skipped", [(), ((3, 5),), ((0, 0), (2, 2)), ((4, 8), (2, 5)), ((1, 2), (3, 3), (7, 9))]
)
def test_batches_are_left_out_wherever_a_run_starts(skipped, stream):
    left = [n for n in range(30) if not any(low <= n <= high for low, high in skipped)]
    for start in range(8):
        used, opened = numbers(start, 6, skipped, stream)
        assert used == left[start : start + 6]
        # A stream is opened where its saved state is: after the last batch that was used.
        assert opened[0] == (left[start - 1] + 1 if start else 0)
        assert len(opened) == 1 or not stream


def test_what_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(NonFiniteError, match="no checkpoint yet"):
        toy.run(tmp_path, steps=20, every=5, nan_at=5)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        toy.run(tmp_path, steps=20, every=5)


def test_samples_are_drawn_from_the_average(tmp_path):
    seen = []

    def sample(params):
        seen.append(jax.device_get(params))
        return Image.new("RGB", (4, 4))

    state = toy.run(tmp_path, steps=9, every=5, sample=sample, sample_every=4)
    assert len(seen) == 3
    assert_equal(seen[-1], jax.device_get(state.ema))
    names = [path.name for path in sorted((tmp_path / "samples").iterdir())]
    assert names == ["samples_0000004.png", "samples_0000008.png", "samples_0000009.png"]


def test_samples_do_not_change_the_run(tmp_path):
    image = Image.new("RGB", (4, 4))
    toy.run(tmp_path / "with", steps=9, sample=lambda params: image, sample_every=2)
    toy.run(tmp_path / "without", steps=9)
    assert read_losses(tmp_path / "with") == read_losses(tmp_path / "without")


def test_a_trace_is_written_on_request(tmp_path):
    toy.run(tmp_path, steps=6, profile=(2, 3))
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8), MeshConfig(2, 2, 2)])
def test_meshes_agree(tmp_path, mesh):
    toy.run(tmp_path / "data", steps=6)
    toy.run(tmp_path / "other", steps=6, mesh=mesh)
    one, other = (read_losses(tmp_path / name) for name in ("data", "other"))
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)


def test_a_run_goes_on_where_another_mesh_left_it(tmp_path):
    toy.run(tmp_path / "mixed", steps=8, mesh=MeshConfig(fsdp=8))
    toy.run(tmp_path / "mixed", steps=16, mesh=MeshConfig(2, 2, 2))
    toy.run(tmp_path / "data", steps=16)
    one, other = (read_losses(tmp_path / name) for name in ("data", "mixed"))
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)


def test_weights_to_start_from(tmp_path):
    weights = jax.device_get(toy.run(tmp_path / "first", steps=8).params)
    toy.run(tmp_path / "second", steps=1, weights=weights)
    first, second = (read_losses(tmp_path / name) for name in ("first", "second"))
    assert second[1] < first[1]
    with pytest.raises(ValueError, match="first/kernel"):
        toy.run(tmp_path / "third", steps=1, weights=weights, hidden=32)


def test_a_stream_is_restored_with_the_state_of_the_saved_step(tmp_path):
    class Stream:
        def __init__(self, start):
            self.step, self.inner = start, toy.batches()(start, None)

        def __iter__(self):
            return self

        def __next__(self):
            self.step += 1
            return next(self.inner)

        def get_state(self):
            return {"step": self.step}

    states = []

    def batches(start, state):
        states.append((start, state))
        return Stream(start)

    toy.run(tmp_path, steps=7, every=3, batches=batches)
    toy.run(tmp_path, steps=9, every=3, batches=batches)
    assert states == [(0, None), (7, {"step": 7})]


@pytest.mark.parametrize("wrong", [-1, 3, 1000])
def test_labels_without_a_class_are_named_in_whatever_batch(wrong):
    """Also where the label would be the model's own null class, num_classes."""

    def batches(number, state):
        yield {"label": np.arange(8) % 3}
        yield {"label": np.asarray([0, wrong, *[2] * 6])}

    feed = Feed(batches, 0, None, (), make_mesh(MeshConfig()), num_classes=3)
    assert feed.batch["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(LabelError, match=f" {wrong}.*, but stage.network.num_classes is 3"):
        feed.next()


@pytest.mark.parametrize(("count", "given"), [(2, "second"), (3, None)])
def test_a_host_gets_its_own_stream_back(monkeypatch, count, given):
    """Where as many hosts go on as saved; otherwise the stream is told that it has no state."""
    mesh = make_mesh(MeshConfig())
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    states = []

    def batches(number, state):
        states.append(state)
        yield {"image": np.zeros((8, 1))}

    local = "imagen_jax.training.feed.shard_batch"
    monkeypatch.setattr(local, lambda batch, mesh: jax.tree.map(jax.numpy.asarray, batch))
    Feed(batches, 5, ["first", "second"], (), mesh)
    assert states == [given]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"steps": 0}, "num_steps"),
        ({"log_every": 0}, "log_every"),
        ({"sample_every": 0}, "sample.every"),
        ({"score_every": 0}, "evaluate.every"),
        ({"skip_batches": "5:2"}, "skip_batches"),
    ],
)
def test_bad_settings_are_named(bad, named):
    with pytest.raises(ValueError, match=named):
        toy.make_config(**bad)
