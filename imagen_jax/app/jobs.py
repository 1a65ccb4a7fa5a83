"""A request that runs in a thread of its own, so that what it makes can be shown meanwhile."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

Report = Callable[[Any], None]


class Stopped(Exception):
    """The visitor no longer wants the images."""


class Jobs:
    """The requests that run, by the visitor's session, so that each can stop their own."""

    def __init__(self):
        self.lock = threading.Lock()
        self.running: dict[threading.Event, str | None] = {}

    def stop(self, session: str | None) -> int:
        """Stops what runs for a session; how many requests that are."""
        with self.lock:
            mine = [event for event, owner in self.running.items() if owner == session]
        for event in mine:
            event.set()
        return len(mine)

    def stop_all(self) -> None:
        with self.lock:
            running = list(self.running)
        for event in running:
            event.set()

    def run(self, session: str | None, work: Callable[[Report], None]) -> Iterator[Any]:
        """What `work` reports, as it does; what it raises is raised here.

        work: calls its argument often, which raises Stopped once the session is to stop. It has
        ended when the iterator has.
        """
        stop, reported = threading.Event(), SimpleQueue()
        end = object()

        def report(value: Any) -> None:
            if stop.is_set():
                raise Stopped
            reported.put(value)

        def target() -> None:
            failure = None
            try:
                work(report)
            except BaseException as error:
                failure = error
            reported.put((end, failure))

        thread = threading.Thread(target=target, daemon=True, name="images")
        with self.lock:
            self.running[stop] = session
        thread.start()
        try:
            while True:
                value = reported.get()
                if isinstance(value, tuple) and value[0] is end:
                    if value[1] is not None:
                        raise value[1]
                    return
                yield value
        finally:
            stop.set()  # a visitor who has left is not waited for
            thread.join()
            with self.lock, contextlib.suppress(KeyError):
                del self.running[stop]
