"""Hostile requests are refused in words, and the page is up after them.

The words name no file of the server, and nothing that a visitor names is fetched or read.
"""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (extra app)")

from tests.app.hostile import KINDS, LIMITS, ROOT, Canary, Visitor, refused
from tests.app.serving import Held, Site, load_held, serving


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    Held.let.set()
    with serving(load=load_held, limits=LIMITS) as served:
        yield served


@pytest.fixture(scope="module")
def canary() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canary) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret.png"
        server.shutdown()


def test_two_hundred_hostile_requests_are_refused_in_words(
    site: Site, canary: str, record_property: Any
):
    counts: dict[str, int] = {}
    for kind in KINDS:
        said, name = kind(Visitor(site), canary), kind.__name__
        counts[name] = len(said)
        assert not [text[:300] for text in said if not refused(text)], name
        for secret in ("Traceback", "site-packages", str(ROOT), "root:x:", 'File "'):
            assert not [text[:300] for text in said if secret in text], name
        assert Canary.asked == [], name
        assert '"1 image of 4 pixels' in Visitor(site).generate(), name
    record_property("hostile requests by kind", counts)
    assert sum(counts.values()) >= 200
