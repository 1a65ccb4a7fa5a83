"""Weights & Biases without a network: what runs write is read back, and its failures end no run."""

import getpass
import http.server
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import train
from imagen_jax.training import writers
from imagen_jax.training.metrics import MetricLog, read_losses, split
from imagen_jax.training.writers import WANDB_FILE, WandbRun, check_wandb
from tests.commands.in_process import call
from tests.training import toy
from tests.training.wandb_stand_in import wandb_server

CONFIG = Path(__file__).with_name("tiny_config.py")
KEY = "0" * 40


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules and sys.modules["wandb"] is not None:
        from wandb.sdk.lib.module import unset_globals

        sys.modules["wandb"].teardown()
        unset_globals()  # a run that could not finish


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("wandb", reason="needs imagen_jax[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")


def files(workdir: Path) -> list[Path]:
    """Of each part of the run, the oldest first."""
    return sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda x: x.stat().st_mtime)


def records(path: Path):
    """What a .wandb file holds: LevelDB's log format in blocks of 32 KiB, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def history(path: Path) -> list[dict]:
    """The values of each log call."""
    found = [
        record.history for record in records(path) if record.WhichOneof("record_type") == "history"
    ]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in each.item}
        for each in found
    ]


def of_kind(path: Path, kind: str) -> list:
    """The records of a kind."""
    return [getattr(each, kind) for each in records(path) if each.WhichOneof("record_type") == kind]


def metrics_of(step: int, loss: float) -> dict:
    tenths = {"loss_by_t": np.full(10, loss), "count_by_t": np.ones(10, np.float32)}
    return split({"loss": np.float32(loss), **tenths})


def test_an_offline_run_is_read_back(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "first try")
    check_wandb()
    losses = dict(enumerate(np.random.default_rng().uniform(0.1, 2, 5).tolist(), start=1))
    run = WandbRun(tmp_path, "icons", {"stage": {"name": "tiny"}, "levels": [1, 2]})
    log = MetricLog(tmp_path, writers=[run])
    for step, loss in losses.items():
        log.step(step, metrics_of(step, loss))
        log.report(step, {"speed/images_per_second": 3.0})
    log.scores(5, {"clip_score": 0.25})
    image = Image.fromarray(np.random.default_rng().integers(0, 256, (6, 8, 3), np.uint8))
    log.images(5, image)
    log.close()
    run.close()
    (path,) = files(tmp_path)
    calls = history(path)
    read = {call["step"]: call for call in calls if "loss" in call}
    assert {step: call["loss"] for step, call in read.items()} == pytest.approx(losses)
    assert read[5]["speed/images_per_second"] == 3
    assert read[5]["loss_by_t/09"] == pytest.approx(losses[5])
    assert [call["step"] for call in calls if call.get("clip_score") == 0.25] == [5]
    (shown,) = (call for call in calls if "samples/path" in call or "samples" in call)
    (sent,) = path.parent.rglob("*.png")
    with Image.open(sent) as found:
        np.testing.assert_array_equal(np.asarray(found.convert("RGB")), np.asarray(image))
    assert shown["step"] == 5
    (header,) = of_kind(path, "run")
    assert (header.project, header.display_name) == ("icons", "first try")
    config = {item.key: json.loads(item.value_json) for item in header.config.update}
    assert config["stage"] == {"name": "tiny"}
    assert config["levels"] == [1, 2]
    axes = {
        metric.glob_name or metric.name: metric.step_metric for metric in of_kind(path, "metric")
    }
    assert axes["*"] == "step"
    assert (header.host, header.git.commit) == ("", "")
    own = {socket.gethostname(), getpass.getuser(), str(CONFIG.parents[2]), "pytest"} - {"root"}
    content = b"".join(each.read_bytes() for each in (path, *path.parent.glob("files/**/*.json")))
    assert not [each for each in own if each.encode() in content]


def test_a_resumed_run_goes_on_in_the_same(offline, tmp_path):
    for steps in (2, 6):
        check_wandb()
        run = WandbRun(tmp_path / "run", "icons", {"num_steps": steps})
        toy.run(tmp_path / "run", steps=steps, every=100, log_every=2, writers=(run,))
        run.close()
    first, second = files(tmp_path / "run")
    name = (tmp_path / "run" / WANDB_FILE).read_text().strip()
    assert [of_kind(path, "run")[0].run_id for path in (first, second)] == [name, name]
    told = [call for path in (first, second) for call in history(path)]
    losses = read_losses(tmp_path / "run")
    reports = {call["step"]: call["loss"] for call in told if "loss" in call}
    assert list(reports) == [2, 4, 6]
    assert reports[6] == pytest.approx((losses[5] + losses[6]) / 2)
    (item,) = [x for x in of_kind(second, "run")[0].config.update if x.key == "num_steps"]
    assert json.loads(item.value_json) == 6


@pytest.mark.slow
def test_train_goes_on_in_the_same_run(offline, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez("set.npz", image=images, captions=np.asarray([f"no {i}" for i in range(40)]))
    asked = [f"--config={CONFIG}", "--workdir=run", "--config.data.path=set.npz"]
    asked += ["--wandb=icons", "--config.log_every=2", "--config.checkpoint.every=100"]
    ended, said = call(train, *asked, "--config.num_steps=2")
    assert ended is None
    assert "W&B         " in said
    ended, _ = call(train, *asked, "--config.num_steps=6")
    assert ended is None
    first, second = files(tmp_path / "run")
    name = (tmp_path / "run" / WANDB_FILE).read_text().strip()
    assert [of_kind(path, "run")[0].run_id for path in (first, second)] == [name, name]
    told = [call for path in (first, second) for call in history(path)]
    losses = read_losses("run")
    reports = {call["step"]: call["loss"] for call in told if "loss" in call}
    assert list(reports) == [2, 4, 6]
    assert reports[6] == pytest.approx((losses[5] + losses[6]) / 2)
    update = of_kind(second, "run")[0].config.update
    config = {item.key: json.loads(item.value_json) for item in update}
    assert config["num_steps"] == 6
    assert config["stage"]["resolution"] == 8


def test_a_step_that_is_repeated_is_taken(offline, tmp_path):
    check_wandb()
    run = WandbRun(tmp_path, "icons", {})
    for step in (4, 5, 3, 4):
        run.scalars(step, {"loss": step / 2})
    run.close()
    (path,) = files(tmp_path)
    assert [(call["step"], call["loss"]) for call in history(path)] == [
        (4, 2), (5, 2.5), (3, 1.5), (4, 2),
    ]  # fmt: skip


def test_a_run_outlives_wandb(offline, tmp_path, capsys):
    check_wandb()
    run = WandbRun(tmp_path, "icons", {})
    log = MetricLog(tmp_path, writers=[run])
    told = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
    (number,) = subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(number), signal.SIGKILL)
    time.sleep(0.2)
    for step in range(1, 4):
        log.step(step, metrics_of(step, 1.0))
        log.report(step, {})
    log.close()
    run.close()
    assert read_losses(tmp_path) == {1: 1.0, 2: 1.0, 3: 1.0}
    assert capsys.readouterr().err.count("the run goes on without it") == 1


def test_one_that_hangs_holds_nobody_up(offline, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.1")
    check_wandb()
    run = WandbRun(tmp_path, "icons", {})
    released = threading.Event()
    monkeypatch.setattr(run.run, "log", lambda values: released.wait())
    monkeypatch.setattr(writers, "GRACE_SECONDS", 0.1)
    for step in range(writers.MOST_WAITING + 10):
        run.scalars(step, {"loss": 1.0})
    run.close()
    assert run.thread.is_alive()
    released.set()
    run.waiting.put(0)  # that the thread ends, too
    run.thread.join()
    assert capsys.readouterr().err.count("it does not answer") == 1


def test_a_server_gets_the_history(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs imagen_jax[wandb]")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    losses = np.random.default_rng().uniform(0.1, 2, 4).tolist()
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        check_wandb()
        run = WandbRun(tmp_path, "icons", {"batch_size": 37})
        assert run.where == f"{server.url}/me/icons/runs/run"
        for step, loss in zip((7, 8, 7, 8), losses, strict=True):
            run.scalars(step, {"loss": loss})
        run.close()
    assert [line["step"] for line in server.history] == [7, 8, 7, 8]
    assert [line["loss"] for line in server.history] == pytest.approx(losses)
    assert b"batch_size" in server.files["config.yaml"]
    assert not {"requirements.txt", "wandb-metadata.json", "output.log"} & server.files.keys()


def test_a_server_that_goes_away_ends_no_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs imagen_jax[wandb]")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        check_wandb()
        run = WandbRun(tmp_path, "icons", {})
        server.close()
    run.scalars(1, {"loss": 2.5})
    run.close()  # a server that never answers again would hold this up for ever
    (path,) = tmp_path.glob("wandb/run-*/run-*.wandb")
    assert [call["loss"] for call in history(path)] == [2.5]  # for wandb sync


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WANDB_SILENT", "false", "nobody is logged in. Log in with `wandb login`"),
        ("WANDB_MODE", "offlin", "Input should be 'online', 'offline'"),
        ("WANDB_API_KEY", "short", "must have 40"),
    ],
)
def test_what_is_wrong_here_is_told_before_a_server_is_asked(variable, value, said, monkeypatch):
    pytest.importorskip("wandb", reason="needs imagen_jax[wandb]")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=said) as caught:
        check_wandb()
    assert "\n" not in str(caught.value)
    assert "WANDB_MODE=offline" in str(caught.value)


def test_a_bad_project_is_told(offline, tmp_path):
    check_wandb()
    with pytest.raises(ConnectionError, match="Invalid project name 'a/b'"):
        WandbRun(tmp_path, "a/b", {})
    assert not (tmp_path / WANDB_FILE).exists()


@pytest.mark.parametrize("status", [401, None])
def test_what_a_server_refuses_is_told_in_a_line(status, tmp_path, monkeypatch):
    """None: nobody listens there."""
    pytest.importorskip("wandb", reason="needs imagen_jax[wandb]")

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        if status is None:
            server.socket.close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
        check_wandb()
        with pytest.raises(ConnectionError, match=str(status or "refused")) as caught:
            WandbRun(tmp_path, "icons", {})
        assert "\n" not in str(caught.value)
        if status is not None:
            server.shutdown()


def test_without_the_package_only_those_who_ask_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    asked = [f"--config={CONFIG}", "--workdir=run", "--config.data.path=none.npz"]
    error, _ = call(train, *asked, "--wandb=icons")
    assert "pip install 'imagen_jax[wandb]'" in error
    error, _ = call(train, *asked)
    assert "none.npz" in error
