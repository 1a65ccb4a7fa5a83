"""A web page, for this machine only, that shows trials and keeps answers as lines of JSON.

Clients are not trusted, and neither are those that say nothing: few are served at a time, each for
a limited time, and a new one takes the place of the oldest.
"""

import contextlib
import fcntl
import json
import random
import re
import socket
import sys
import threading
import time
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from imagen_jax.human_study.study import (
    RATER,
    STUDIES,
    DuplicateAnswer,
    Study,
    check_answer,
    read_answers,
)
from imagen_jax.storage.json_file import parse
from imagen_jax.storage.lines import LineFile

ADDRESS = "127.0.0.1"
MAX_BODY = 10_000  # bytes of an answer
LENGTH = re.compile(r"[0-9]{1,9}")  # of an answer, in its header
# Connections at a time, a socket and perhaps a file each: a process may have few file descriptors.
MOST = 32
PATIENCE = 30.0  # seconds that a client may take for its request and for reading the reply
PAGES = {
    "/": (Path(__file__).with_name("page.html"), "text/html; charset=utf-8"),
    "/page.js": (Path(__file__).with_name("page.js"), "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'",
}


class AnswerFile:
    """The answers so far, and the file that each new one is added to, by one server at a time.

    Raises ValueError where another server has the file, or an answer in it is not valid.
    """

    def __init__(self, path: Path, study: Study):
        self.path, self.study = path, study
        self.mutex = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.held = open(path, "ab")  # noqa: SIM115  (closed by `close`)
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.held.close()
            raise ValueError(
                f"{path} is being written by another server of this study: use its page, or give "
                "another --answers."
            ) from None
        self.lines = LineFile(path, synced=True)
        self.before = {(answer.rater, answer.trial) for answer in read_answers(path, study)}

    def add(self, values: object) -> None:
        """Checks an answer and writes it, safely on disk when this returns.

        Raises ValueError, DuplicateAnswer, or OSError where the disk does not take it; then it is
        not among the answers and can be sent again.
        """
        with self.mutex:
            answer = check_answer(self.study, values, self.before)
            self.lines.append(json.dumps(values, ensure_ascii=False, sort_keys=True))
            self.before.add((answer.rater, answer.trial))

    def answered(self, rater: str) -> set[str]:
        """The trials that this rater has answered."""
        with self.mutex:
            return {trial for name, trial in self.before if name == rater}

    def close(self) -> None:
        """Closes the file, and gives up the lock on it."""
        self.lines.close()
        self.held.close()


def open_trials(study: Study, rater: str, answered: set[str]) -> list[dict]:
    """The trials left for a rater, in an order that differs by rater, as the page reads them."""
    trials = list(study.trials.values())
    random.Random(f"{study.seed} {rater}").shuffle(trials)
    return [asdict(trial) for trial in trials if trial.id not in answered]


class StudyHandler(BaseHTTPRequestHandler):
    """Answers a request to a `StudyServer`."""

    def do_GET(self):
        """The page, its images, and the trials that a rater has not answered."""
        path, _, query = self.path.partition("?")
        if path in self.server.files:
            file, kind = self.server.files[path]
            try:
                content = file.read_bytes()
            except OSError as error:
                self.fail(f"{file.name} cannot be read", error)
                return
            self.reply(content, kind)
        elif path == "/trials":
            rater = parse_qs(query).get("rater", [""])[0]
            if not RATER.fullmatch(rater):
                self.refuse(HTTPStatus.BAD_REQUEST, "Give a name of 1 to 40 letters or digits.")
                return
            study, answers = self.server.study, self.server.answers
            questions = {name: asdict(question) for name, question in STUDIES[study.kind].items()}
            left = open_trials(study, rater, answers.answered(rater))
            self.reply_json({"questions": questions, "trials": left})
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")

    do_HEAD = do_GET

    def do_POST(self):
        """An answer, as JSON of a limited length."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.path != "/answers":
            self.refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
        elif self.headers.get_content_type() != "application/json":
            self.refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        elif not lengths or "Transfer-Encoding" in self.headers:
            self.refuse(HTTPStatus.LENGTH_REQUIRED, "Send Content-Length, and no other encoding.")
        elif len(lengths) > 1 or not LENGTH.fullmatch(lengths[0]):
            self.refuse(HTTPStatus.BAD_REQUEST, "Content-Length must be one whole number.")
        elif int(lengths[0]) > MAX_BODY:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {MAX_BODY} bytes.")
        else:
            body = self.rfile.read(int(lengths[0]))
            if len(body) < int(lengths[0]):
                self.refuse(HTTPStatus.BAD_REQUEST, "The answer was cut short.")
            else:
                self.take(body)

    def take(self, body: bytes) -> None:
        """Keeps an answer; one that does not fit the study is refused in words."""
        try:
            self.server.answers.add(parse(body))
        except DuplicateAnswer as error:
            self.refuse(HTTPStatus.CONFLICT, str(error))
        except ValueError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            self.fail("the disk did not take it", error)
        else:
            self.reply_json({"ok": True})

    def parse_request(self) -> bool:
        """Refuses what is not for this address by name: other sites' pages cannot name it."""
        if not super().parse_request():
            return False
        port = self.server.server_address[1]
        ending = "" if port == 80 else f":{port}"  # browsers leave HTTP's own port out
        hosts = {f"{ADDRESS}{ending}", f"localhost{ending}"}
        asked = [host.lower() for host in self.headers.get_all("Host", [])]
        origins = [origin.removeprefix("http://") for origin in self.headers.get_all("Origin", [])]
        if len(asked) == 1 and {*asked, *origins} <= hosts:
            return True
        self.refuse(HTTPStatus.FORBIDDEN, "This page is for this machine only.")
        return False

    def reply_json(self, values: object) -> None:
        """Sends values as JSON."""
        self.reply(json.dumps(values).encode(), "application/json")

    def refuse(self, status: HTTPStatus, message: str) -> None:
        """Sends an error in words, and closes the connection."""
        self.close_connection = True  # what was sent along is not read
        self.reply(json.dumps({"error": message}).encode(), "application/json", status)

    def fail(self, what: str, error: OSError) -> None:
        """Tells the rater, and whoever runs the server."""
        print(f"error: {what}: {error}", file=sys.stderr, flush=True)
        self.refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"{what}; tell whoever runs this page")

    def reply(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Sends a body with the headers of every answer."""
        self.send_response(status)
        named = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""
        pass  # the terminal is for errors


class StudyServer(ThreadingHTTPServer):
    """Bound to 127.0.0.1; port 0 takes a free one. Call `serve_forever`.

    Raises ValueError where the port cannot be had.
    """

    request_queue_size = 128  # that the system holds until we come to them; with 5 clients wait

    def __init__(self, directory: Path, study: Study, answers: AnswerFile, port: int):
        if not 0 <= port <= 65535:
            raise ValueError(f"--port is {port}; it must be 1 to 65535, or 0 for any free one.")
        try:
            super().__init__((ADDRESS, port), StudyHandler)
        except OSError as error:
            raise ValueError(
                f"--port {port} cannot be had ({error.strerror}): another program may use it; "
                "--port 0 takes a free one."
            ) from None
        self.study, self.answers = study, answers
        names = [name for trial in study.trials.values() for name in trial.sheets]
        sheets = {f"/sheets/{name}": (directory / "sheets" / name, "image/png") for name in names}
        self.files = PAGES | sheets
        self.slots = threading.Semaphore(MOST)
        self.until: dict[socket.socket, float] = {}  # when each connection ends, the oldest first

    def process_request(self, request: socket.socket, client_address: tuple) -> None:
        """In a thread of its own; where all are taken, the oldest connection gives its place."""
        taken = self.slots.acquire(blocking=False)
        while not taken:
            self.hang_up(list(self.until)[:1])
            taken = self.slots.acquire(timeout=0.05)
        self.until[request] = time.monotonic() + PATIENCE
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self.slots.release()
            raise

    def process_request_thread(self, request: socket.socket, client_address: tuple) -> None:
        """Answers a request, then frees its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def service_actions(self) -> None:
        """Ends connections whose time is over, however busy they look."""
        now = time.monotonic()
        self.hang_up([request for request, end in list(self.until.items()) if end < now])

    def hang_up(self, requests: list[socket.socket]) -> None:
        """Ends connections that have taken too long."""
        for request in requests:
            self.until.pop(request, None)
            with contextlib.suppress(OSError):  # it has ended by itself
                request.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def shutdown_request(self, request: socket.socket) -> None:
        """Ends a connection."""
        self.until.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket, client_address: tuple) -> None:
        """A client that went away is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
