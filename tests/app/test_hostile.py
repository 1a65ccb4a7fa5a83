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

COUNTS: dict[str, int] = {}


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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_hostile_requests_are_refused_in_words(kind: Any, site: Site, canary: str):
    said = kind(Visitor(site), canary)
    COUNTS[kind.__name__] = len(said)
    assert not [text[:300] for text in said if not refused(text)]
    for secret in ("Traceback", "site-packages", str(ROOT), "root:x:", 'File "'):
        assert not [text[:300] for text in said if secret in text]
    assert Canary.asked == []
    assert '"1 image of 4 pixels' in Visitor(site).generate()


def test_there_were_two_hundred(record_property: Any):
    if len(COUNTS) < len(KINDS):
        pytest.skip("not all kinds ran in this process")
    record_property("hostile requests by kind", COUNTS)
    assert sum(COUNTS.values()) >= 200
