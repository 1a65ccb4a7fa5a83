"""The page of a study under clients that mean harm or are broken, and on a full disk: it stays
reachable, and an answer that was acknowledged is in the file.
"""

import contextlib
import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image

from imagen_jax.commands.human_eval import main
from imagen_jax.human_study import server as serving
from imagen_jax.human_study.server import ADDRESS, AnswerFile, StudyServer
from imagen_jax.human_study.study import Secret, Study, Trial, read_answers, write_study

ROOT = Path(__file__).parents[2]
NAMES = [f"{i:012x}" for i in range(3)]
GOOD = {"quality": "left", "alignment": "right"}


@pytest.fixture
def study(tmp_path):
    """(its folder, the study) of three trials."""
    trials = {name: Trial(name, "a cat", (f"{name}-0.png", f"{name}-1.png")) for name in NAMES}
    key = {name: Secret("0", "animals", ("a", "b")) for name in NAMES}
    made = Study("drawbench", {"a": "one", "b": "two"}, 0, trials, key)
    (tmp_path / "sheets").mkdir()
    for name in (name for trial in trials.values() for name in trial.sheets):
        Image.new("RGB", (64, 64)).save(tmp_path / "sheets" / name)
    write_study(made, tmp_path)
    return tmp_path, made


@contextlib.contextmanager
def served(study):
    """The port of a server that runs."""
    directory, made = study
    with (
        contextlib.closing(AnswerFile(directory / "answers.jsonl", made)) as answers,
        StudyServer(directory, made, answers, 0) as running,
    ):
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def port(study):
    with served(study) as port:
        yield port


def get(port, path="/", method="GET", timeout=10):
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()


def send(port, trial):
    body = json.dumps({"rater": "ann", "trial": trial, "answers": GOOD})
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/answers", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def raw(port, *lines, body=b"", head="POST /answers HTTP/1.1"):
    """The status that a request of these lines gets; 0 where the server just hangs up."""
    host = f"Host: {ADDRESS}:{port}"
    text = "\r\n".join([head, *(line.replace("HOST", host) for line in lines), "", ""])
    with socket.create_connection((ADDRESS, port), timeout=10) as client:
        answer = b""
        with contextlib.suppress(OSError):  # it has hung up
            client.sendall(text.encode("latin-1") + body)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                answer += part
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def test_an_answer_that_a_full_disk_refuses_can_be_sent_again(study, capfd):
    """Half of its line was written: neither it nor the next is harmed."""
    path = study[0] / "answers.jsonl"
    path.write_text("\n" * 300_000)  # larger than any file that the tests write meanwhile
    with served(study) as port:
        assert send(port, NAMES[0])[0] == 200
        before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        try:
            status, said = send(port, NAMES[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (status, "disk" in said["error"]) == (507, True)
        assert path.read_bytes() == before
        assert "answers.jsonl" in capfd.readouterr().err
        assert send(port, NAMES[1])[0] == send(port, NAMES[2])[0] == 200
    assert [answer.trial for answer in read_answers(path, study[1])] == NAMES


def test_half_a_line_stops_nobody(study):
    """Of a server that was killed; its answer was not acknowledged."""
    path = study[0] / "answers.jsonl"
    with served(study) as port:
        assert send(port, NAMES[0])[0] == 200
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    with pytest.warns(UserWarning, match="half a line, which is left out"):
        assert [answer.trial for answer in read_answers(path, study[1])] == NAMES[:1]
    with warnings.catch_warnings(record=True) as said, served(study) as port:
        assert send(port, NAMES[1])[0] == 200
        assert send(port, NAMES[0])[0] == 409
    assert "ended in half a line" in str(said[0].message)
    assert [answer.trial for answer in read_answers(path, study[1])] == NAMES[:2]


def test_one_server_at_a_time_has_the_answers(study):
    with served(study), pytest.raises(ValueError, match="another server of this study"):
        AnswerFile(study[0] / "answers.jsonl", study[1])


JSON = "Content-Type: application/json"


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (["-5"], 400),
        (["five"], 400),
        (["\xb2"], 400),
        (["+5"], 400),
        ([""], 400),
        (["9" * 5000], 400),
        (["5", "5"], 400),
        (["99999999"], 413),
        (["50"], 400),  # and then ends after 2
        ([], 411),
    ],
)
def test_odd_lengths(port, length, status):
    lines = [f"Content-Length: {each}" for each in length]
    assert raw(port, "HOST", JSON, *lines, body=b"{}") == status
    assert get(port)[0] == 200


@pytest.mark.parametrize(
    ("head", "lines", "status"),
    [
        ("POST /answers HTTP/1.1", ["HOST", JSON, "Transfer-Encoding: chunked"], 411),
        ("GET / HTTP/1.1", [], 403),
        ("GET / HTTP/1.1", ["Host: evil.example"], 403),
        ("GET / HTTP/1.1", ["HOST", "Host: evil.example"], 403),
        ("GET / HTTP/1.1", ["HOST", "Origin: null"], 403),
        ("GET / HTTP/1.1", ["HOST", *["X: y"] * 200], 431),
        ("GET / HTTP/1.1", ["HOST", "X: " + "y" * 70_000], 431),
        (f"GET /{'x' * 2**20} HTTP/1.1", ["HOST"], 414),
        ("GET /../key.json HTTP/1.1", ["HOST"], 404),
        ("GET //key.json HTTP/1.1", ["HOST"], 404),
        ("GET /sheets/..%2fkey.json HTTP/1.1", ["HOST"], 404),
        ("GET /\0 HTTP/1.1", ["HOST"], 404),
        ("GET / HTTP/9.9", ["HOST"], 0),
        ("GET / HTTP/x", ["HOST"], 0),
        ("BREW / HTTP/1.1", ["HOST"], 501),
        ("POST / HTTP/1.1", ["HOST", JSON, "Content-Length: 0"], 404),
        ("GET /", ["HOST"], 0),  # HTTP/0.9 has no status
        ("\x16\x03\x01", [], 0),  # TLS
    ],
)
def test_odd_requests(port, head, lines, status, capfd):
    found = raw(port, *lines, head=head)
    # What was not read is dropped with the connection, and sometimes the answer with it.
    assert found == status or (found == 0 and len(head) > 65536)
    assert get(port)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_head_is_get_without_the_page(port):
    assert get(port, method="HEAD") == (200, b"")


def test_a_sheet_that_is_gone_is_told(study, port, capfd):
    (study[0] / "sheets" / f"{NAMES[0]}-0.png").unlink()
    status, said = get(port, f"/sheets/{NAMES[0]}-0.png")
    assert (status, "cannot be read" in json.loads(said)["error"]) == (507, True)
    assert f"{NAMES[0]}-0.png" in capfd.readouterr().err


@pytest.mark.parametrize("dripping", [False, True])
def test_clients_that_never_finish_are_hung_up_on(study, dripping, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.3)
    with served(study) as port, socket.create_connection((ADDRESS, port)) as client:
        client.settimeout(5)
        begin = time.monotonic()
        client.sendall(f"GET / HTTP/1.1\r\nHost: {ADDRESS}:{port}\r\nX: ".encode())
        with contextlib.suppress(ConnectionError):
            while dripping and time.monotonic() - begin < 5:
                client.sendall(b"y")
                time.sleep(0.05)
            client.recv(65536)
        assert time.monotonic() - begin < 5


def test_many_idle_clients_leave_the_page_reachable(study, tmp_path):
    """With 100 file descriptors, and with 300 connections that say nothing."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); "
    run = "from imagen_jax.commands.human_eval import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", limit + run, "serve", str(study[0]), "--port", "0"]
    with (
        open(tmp_path / "err", "w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        ) as running,
    ):
        try:
            port = int(running.stdout.readline().split()[0].rpartition(":")[2])
            with contextlib.ExitStack() as stack:
                for _ in range(300):
                    client = socket.create_connection((ADDRESS, port), timeout=10)
                    stack.enter_context(client)
                for trial in NAMES:
                    assert get(port)[0] == 200
                    assert get(port, f"/sheets/{trial}-0.png")[0] == 200
                    assert send(port, trial)[0] == 200
                threads = len(list(Path(f"/proc/{running.pid}/task").glob("*")))
        finally:
            running.terminate()
    assert threads < 50
    assert (tmp_path / "err").read_text() == ""


def test_ports_that_cannot_be_had(study, port):
    for number, said in ((70000, "it must be 1 to 65535"), (-1, "it must be 1 to 65535")):
        with pytest.raises(SystemExit, match=said):
            main(["serve", str(study[0]), "--port", str(number), "--answers", str(study[0] / "x")])
    with pytest.raises(SystemExit, match="another program may use it"):
        main(["serve", str(study[0]), "--port", str(port), "--answers", str(study[0] / "x")])
