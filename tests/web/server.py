"""A server of a folder, as `python -m http.server` is, that tells what was asked for."""

import contextlib
import dataclasses
import functools
import http.server
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Site:
    url: str
    asked: list[str]  # paths


@contextlib.contextmanager
def serving(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Serves a folder on a free port of this machine, with these headers in every answer."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(self.path.partition("?")[0])

        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

    made = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(f"http://127.0.0.1:{server.server_port}/", asked)
        server.shutdown()
