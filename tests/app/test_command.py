"""`imagen-jax app`: what it says when it cannot start, and that Ctrl-C ends it quietly."""

import os
import signal
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
import httpx

from imagen_jax.app.address import bind
from imagen_jax.commands import app
from tests.tiny_cascade import tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]


def said(*arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        app.main(list(arguments))
    return str(ended.value)


def test_a_port_in_use_takes_one_line():
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert said("--port", str(port)).startswith(f"error: --port {port} is in use: give another")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "error: --port is 70000; it must be 1 to 65535"),
        (["--host", "192.0.2.1"], "error: --host 192.0.2.1 is no address of this machine"),
        (["--port", "0", "--model", "no_such_model"], "error: There is no folder no_such_model"),
        (["--port", "0", "--dtype", "float8"], "error: dtype is 'float8'"),
    ],
)
def test_what_cannot_be_takes_one_line(arguments: list[str], words: str):
    line = said(*arguments)
    assert line.startswith(words)
    assert "\n" not in line


def test_without_gradio_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith(("gradio.", "imagen_jax.app."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert said("--port", "0").endswith("It comes with: pip install 'imagen_jax[app]'")


def test_without_a_browser_it_says_where_the_page_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    with pytest.warns(UserWarning, match="no browser here to open: the page is at http://x/"):
        app.open_browser("http://x/")


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_ends_it_quietly(sent: signal.Signals, tmp_path: Path):
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    command = [sys.executable, "-m", "imagen_jax.commands.main", "app", "--port", "0"]
    command += ["--model", str(tmp_path / "tiny")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
    try:
        assert process.stdout.readline() == "Loading Gradio and the models ...\n"
        line = process.stdout.readline()
        url, _, rest = line.partition(" ")
        assert rest.strip() == "(models: tiny; Ctrl-C ends it)"
        with httpx.stream("GET", f"{url}gradio_api/heartbeat/page", timeout=60) as page:
            assert page.status_code == 200  # a page that is open
            process.send_signal(sent)
            assert process.wait(30) == 130
        assert process.stderr.read() == ""
        assert not list(tmp_path.glob("imagen_jax_app_*"))
    finally:
        process.kill()
        process.communicate()
