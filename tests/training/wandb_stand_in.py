"""A W&B server on this machine, as far as a run asks: GraphQL, the stream of history, files."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Server:
    """history: the lines of the run. files: by name. close: nobody answers from then on."""

    url: str = ""
    history: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    close: Any = None


def answers(server: Server, variables: dict[str, Any]) -> dict[str, Any]:
    """The data of whatever query was asked."""
    project = {"id": "p", "name": "icons", "entity": {"id": "e", "name": "me"}}
    run = {"id": "r", "name": "run", "displayName": "run", "config": "{}", "tags": []}
    run |= {"historyLineCount": 0, "project": project}
    files = [
        {"name": name, "uploadUrl": f"{server.url}/file/{name}"}
        for name in variables.get("files") or ()
    ]
    return {
        "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}"},
        "model": None,
        "upsertBucket": {"bucket": run, "inserted": True},
        "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files},
        "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None},
    }


@contextlib.contextmanager
def wandb_server() -> Iterator[Server]:
    """Serves on a free port of this machine."""
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said = {}
            if self.path == "/graphql":
                said = {"data": answers(state, json.loads(body).get("variables") or {})}
            elif self.path.startswith("/file/"):
                state.files[self.path.removeprefix("/file/")] = body
            elif self.path.endswith("/file_stream"):
                lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
                state.history += map(json.loads, lines.get("content", ()))
            answer = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = handle_one

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:  # connections that the client resets
            pass

    with Quiet(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        state.close = server.shutdown
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()
