"""A request that runs in a thread of its own, so that what it makes can be shown meanwhile."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

Report = Callable[[Any], None]
WAITING, STOPPING = "waiting", "stopping"  # reported each second in which nothing else is


class Stopped(Exception):
    """The visitor no longer wants the images."""


class Jobs:
    """The requests that run, by the visitor's session, so that each can stop their own."""

    def __init__(self):
        self.lock = threading.Lock()
        self.running: dict[threading.Event, str | None] = {}
        self.stopped: deque[int] = deque(maxlen=1000)  # hashes of sessions

    def begin(self, session: str | None) -> None:
        """What a session asks for from now on is to run, although it stopped others before."""
        with self.lock:
            while hash(session) in self.stopped:
                self.stopped.remove(hash(session))

    def stop(self, session: str | None, waiting: bool = False) -> int:
        """Stops what runs for a session (how many requests); and what it has waiting, too."""
        with self.lock:
            if waiting:
                self.stopped.append(hash(session))
            mine = [event for event, owner in self.running.items() if owner == session]
        for event in mine:
            event.set()
        return len(mine)

    def is_running(self, session: str | None) -> bool:
        with self.lock:
            return session in self.running.values()

    def stop_all(self) -> None:
        with self.lock:
            running = list(self.running)
        for event in running:
            event.set()

    def run(self, session: str | None, work: Callable[[Report], None]) -> Iterator[Any]:
        """What `work` reports, as it does; what it raises is raised here.

        work: calls its argument often, which raises Stopped once the session is to stop. It has
        ended when the iterator has, but where that is closed early.
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
            if hash(session) in self.stopped:
                raise Stopped
            self.running[stop] = session
        thread.start()
        try:
            while True:
                try:
                    value = reported.get(timeout=1)
                except Empty:
                    value = STOPPING if stop.is_set() else WAITING
                if isinstance(value, tuple) and value[0] is end:
                    if value[1] is not None:
                        raise value[1]
                    return
                yield value
        finally:
            stop.set()  # a visitor who has left is not waited for
            with self.lock, contextlib.suppress(KeyError):
                del self.running[stop]
