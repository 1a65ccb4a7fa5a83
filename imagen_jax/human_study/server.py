"""A web page, for this machine only, that shows trials and keeps answers as lines of JSON."""

import json
import os
import random
import threading
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

ADDRESS = "127.0.0.1"
MAX_BODY = 10_000  # bytes of an answer
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
    """The answers so far, and the file that each new one is added to."""

    def __init__(self, path: Path, study: Study):
        self.path, self.study = path, study
        self.lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.before = {(answer.rater, answer.trial) for answer in read_answers(path, study)}

    def add(self, values: object) -> None:
        """Checks an answer and writes it, safely on disk when this returns.

        Raises ValueError, or DuplicateAnswer.
        """
        with self.lock:
            answer = check_answer(self.study, values, self.before)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values, ensure_ascii=False, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.before.add((answer.rater, answer.trial))

    def answered(self, rater: str) -> set[str]:
        """The trials that this rater has answered."""
        with self.lock:
            return {trial for name, trial in self.before if name == rater}


def open_trials(study: Study, rater: str, answered: set[str]) -> list[dict]:
    """The trials left for a rater, in an order that differs by rater, as the page reads them."""
    trials = list(study.trials.values())
    random.Random(f"{study.seed} {rater}").shuffle(trials)
    return [asdict(trial) for trial in trials if trial.id not in answered]


class StudyHandler(BaseHTTPRequestHandler):
    """Answers a request to a `StudyServer`."""

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path in self.server.files:
            file, kind = self.server.files[path]
            self.reply(file.read_bytes(), kind)
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

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if self.path != "/answers":
            self.refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
        elif self.headers.get_content_type() != "application/json":
            self.refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        elif not length.isdigit() or int(length) > MAX_BODY:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {MAX_BODY} bytes.")
        else:
            self.take(self.rfile.read(int(length)))

    def take(self, body: bytes) -> None:
        try:
            self.server.answers.add(json.loads(body))
        except DuplicateAnswer as error:
            self.refuse(HTTPStatus.CONFLICT, str(error))
        except (ValueError, RecursionError) as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self.reply_json({"ok": True})

    def parse_request(self) -> bool:
        """Refuses what is not for this address by name: other sites' pages cannot name it."""
        if not super().parse_request():
            return False
        port = self.server.server_address[1]
        hosts = {f"{ADDRESS}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (
            origin is None or origin.removeprefix("http://") in hosts
        ):
            return True
        self.refuse(HTTPStatus.FORBIDDEN, "This page is for this machine only.")
        return False

    def reply_json(self, values: object) -> None:
        self.reply(json.dumps(values).encode(), "application/json")

    def refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # what was sent along is not read
        self.reply(json.dumps({"error": message}).encode(), "application/json", status)

    def reply(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        named = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass  # the terminal is for errors


class StudyServer(ThreadingHTTPServer):
    """Bound to 127.0.0.1; port 0 takes a free one. Call `serve_forever`."""

    def __init__(self, directory: Path, study: Study, answers: AnswerFile, port: int):
        super().__init__((ADDRESS, port), StudyHandler)
        self.study, self.answers = study, answers
        names = [name for trial in study.trials.values() for name in trial.sheets]
        sheets = {f"/sheets/{name}": (directory / "sheets" / name, "image/png") for name in names}
        self.files = PAGES | sheets
