"""Reports are the means of their steps; curves are read back."""

import errno
import io
import json
import math
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from imagen_jax.images.grid import image_grid
from imagen_jax.training.metrics import (
    Curve,
    MetricLog,
    read_curve,
    read_losses,
    split,
)


def sums(loss, t_sums=(), t_counts=(), **scalars):
    """A step's metrics, as `split` gives them."""
    values = {"sums": {"loss": loss, **scalars}, "t_sums": list(t_sums)}
    return {"steps": 1, **values, "t_counts": list(t_counts)}


def fill(log, steps, every=2):
    for step in steps:
        log.step(step, sums(1 / step, grad_norm=2.0, t_sums=[1.0, 0.0], t_counts=[2.0, 0.0]))
        if step % every == 0:
            log.report(step, {})


def test_a_report_is_the_mean_of_its_steps(tmp_path):
    log = MetricLog(tmp_path)
    fill(log, [1, 2])
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": 1.0, "grad_norm": 2.0}
    assert lines[2]["window"] == 2
    assert lines[2]["mean"] == {"loss": 0.75, "grad_norm": 2.0}
    assert lines[2]["loss_by_t"] == [0.5, None]


def test_the_place_of_a_report_is_written_beside_its_means(tmp_path):
    log = MetricLog(tmp_path)
    log.step(1, sums(0.5, [1.0], [2.0]))
    told = log.report(1, {"speed/images_per_second": 3.0}, {"learning_rate": 1e-4, "epoch": 0.25})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert told == {"loss": 0.5, "learning_rate": 1e-4, "epoch": 0.25}
    assert (line["learning_rate"], line["epoch"]) == (1e-4, 0.25)
    assert "speed/images_per_second" not in line  # of no other run
    values = {name: value for _, _, found in events_of(tmp_path) for name, value in found.items()}
    assert values["epoch"] == pytest.approx(0.25)
    assert values["learning_rate"] == pytest.approx(1e-4)


def test_losses_are_kept_to_the_last_bit(tmp_path):
    log = MetricLog(tmp_path)
    values = {i: np.float32(1 / (3 * i)) for i in range(1, 50)}
    for step, value in values.items():
        log.step(step, split({"loss": value}))
    log.close()
    read = read_losses(tmp_path)
    assert {step: np.float32(loss) for step, loss in read.items()} == values


def test_a_half_line_is_skipped_and_a_repeated_step_counts_once(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo\n')
    log = MetricLog(tmp_path, start_step=1)
    log.step(1, sums(6.0))
    log.close()
    assert read_losses(tmp_path) == {1: 6.0}


def test_a_window_goes_through_a_checkpoint(tmp_path):
    whole = MetricLog(tmp_path / "whole")
    fill(whole, range(1, 4), every=100)
    first = MetricLog(tmp_path / "parts")
    fill(first, [1], every=100)
    saved = json.loads(json.dumps(first.window))
    second = MetricLog(tmp_path / "parts", window=saved)
    fill(second, [2, 3], every=100)
    assert whole.report(3, {}) == second.report(3, {})


def test_a_curve_is_read_back_and_interpolated(tmp_path):
    log = MetricLog(tmp_path)
    for step in range(1, 41):
        log.step(step, sums(float(step), [float(step)] * 10, [1.0] * 10))
        if step % 2 == 0:
            log.report(step, {})
    log.close()
    curve = read_curve(tmp_path, points=5)
    assert len(curve.step) == 5
    curve.write(tmp_path / "curve.json")
    again = Curve.read(tmp_path / "curve.json")
    loss, by_t = again.at(20)
    assert loss == pytest.approx(19.5, abs=0.01)
    assert by_t == pytest.approx([19.5] * 10, abs=0.01)
    assert again.at(10_000) is None


def test_the_reference_is_reported_beside(tmp_path):
    rows = ((0.0,) * 10, (10.0,) * 10)
    log = MetricLog(tmp_path, reference=Curve((0.0, 4.0), (0.0, 8.0), rows))
    log.step(2, sums(1.0, [1.0] * 10, [1.0] * 10))
    assert log.report(2, {})["reference/loss"] == pytest.approx(4.0)
    log.close()


def test_images_are_written(tmp_path):
    log = MetricLog(tmp_path)
    log.images(12, Image.new("RGB", (8, 6), "red"))
    log.close()
    with Image.open(tmp_path / "samples" / "samples_0000012.png") as image:
        assert image.size == (8, 6)


def events_of(folder):
    """(step, {name: value or PNG bytes}) of each event, in TensorBoard's record layout."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, events = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        values = {
            value.tag: value.image.encoded_image_string or value.simple_value
            for value in event.summary.value
        }
        events.append((event.step, event.session_log.status, values))
        content = content[12 + size + 4 :]
    return events


def test_tensorboard_gets_the_means_and_the_images(tmp_path):
    log = MetricLog(tmp_path, start_step=4)
    fill(log, [5, 6])
    log.images(6, Image.new("RGB", (8, 6), "red"))
    log.close()
    _, _, (step, status, _), *events = events_of(tmp_path)
    assert (step, status) == (5, SessionLog.START)
    values = {name: value for step, _, found in events for name, value in found.items()}
    assert {step for step, _, _ in events} == {6}
    assert values["loss"] == pytest.approx((1 / 5 + 1 / 6) / 2)
    assert values["loss_by_t/00"] == pytest.approx(0.5)
    with Image.open(io.BytesIO(values["samples"])) as image:
        assert image.size == (8, 6)
        assert image.getpixel((0, 0))[:3] == (255, 0, 0)


@pytest.mark.parametrize("full", ["metrics.jsonl", "events", "samples/samples_0000002.png"])
def test_a_full_disk_is_an_error_of_the_caller(tmp_path, full, monkeypatch):
    """It names the file, of TensorBoard the folder."""

    def write(path, content):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    named = tmp_path / full
    if full == "events":
        monkeypatch.setattr(time, "time", lambda: 1e9)
        name = f"events.out.tfevents.{str(1e9)[:10]}.{socket.gethostname()}"
        (tmp_path / name).symlink_to("/dev/full")
        named = tmp_path
    elif full == "metrics.jsonl":
        named.symlink_to("/dev/full")
    else:
        monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left") as caught:  # noqa: PT012
        log = MetricLog(tmp_path)
        fill(log, range(1, 3))
        log.images(2, image_grid([Image.new("RGB", (500, 500))]))
    assert caught.value.filename == str(named)
    assert not list(tmp_path.rglob("*.png"))


def test_a_run_goes_on_after_half_a_line(tmp_path):
    log = MetricLog(tmp_path)
    fill(log, [1, 2])
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    with pytest.warns(UserWarning, match="half a line"):
        log = MetricLog(tmp_path, start_step=2)
    log.step(3, sums(7.0))
    log.close()
    assert read_losses(tmp_path) == {1: 1.0, 2: 0.5, 3: 7.0}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_other_hosts_write_nothing(tmp_path):
    log = MetricLog(tmp_path, write=False)
    fill(log, [1, 2])
    log.images(2, Image.new("RGB", (8, 6)))
    log.close()
    assert not list(tmp_path.iterdir())


def test_non_finite_values_are_json_that_python_reads(tmp_path):
    log = MetricLog(tmp_path)
    log.step(1, sums(math.nan))
    log.close()
    assert math.isnan(read_losses(tmp_path)[1])
