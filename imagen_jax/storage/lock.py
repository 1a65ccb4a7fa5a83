"""A folder that one run writes into: locked by a file that says who does.

Two runs in one folder would delete each other's half-written checkpoints. The file is made by who
starts and removed at the end. While its process runs, the system keeps it locked (flock): on the
machine that it ran on, the lock of a process that is gone can be told, and is taken over.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import jax

from imagen_jax.devices.hosts import gather_json, say_on_first_host
from imagen_jax.storage.codec import from_dict
from imagen_jax.storage.disk import describe, disk_errors
from imagen_jax.storage.json_file import parse_object

LOCK_FILE = "run.lock"
PATIENCE = 1.0  # seconds in which another process may write its lock or remove a stale one


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, since when. machine: of the installed system; twins share host names."""

    host: str
    pid: int
    since: str
    machine: str = ""

    @classmethod
    def this_process(cls) -> "Holder":
        """This process, as others are told of it."""
        machine = ""
        with contextlib.suppress(OSError):  # macOS has none
            machine = Path("/etc/machine-id").read_text().strip()
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), os.getpid(), since, machine)

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"


class Lock:
    """The lock of a folder that exists, held from now on until `release`.

    Raises:
        ValueError: another process holds it, or may do so; the message says who, and what to do.
        OSError: the lock cannot be written.
    """

    def __init__(self, folder: Path, option: str):
        self.path, self.option, self.here = folder / LOCK_FILE, option, Holder.this_process()
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(FileExistsError):
                # Not atomic on every network's disk, but then as good as it gets there.
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
                with disk_errors(self.path):
                    self.file = os.open(self.path, flags, 0o666)
                break
            with contextlib.suppress(FileNotFoundError):  # it was released just now
                self._remove_stale(last=time.monotonic() > end)
        try:
            with disk_errors(self.path):
                _is_free(self.file)
                os.write(self.file, json.dumps(asdict(self.here), indent=1).encode())
                os.fsync(self.file)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Removes the file, unless somebody has removed it by hand and another run has its own."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.file), self.path.stat()):
                self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(self.file)

    def _remove_stale(self, last: bool) -> None:
        """Removes the lock of a process that is gone; else waits, or, at `last`, refuses."""
        with open(self.path, "r+b") as file:
            holder, free, seen = "somebody", None, False
            with contextlib.suppress(ValueError):  # it is being written, or damaged
                holder = from_dict(Holder, parse_object(file.read()))
                if (holder.host, holder.machine) == (self.here.host, self.here.machine):
                    free = _is_free(file.fileno())
                    seen = free is not None
                    if not seen:  # the file system has no such locks, as mounted buckets
                        free = not _runs(holder.pid)
            # One process at a time comes here; the one before may have made a lock of its own.
            if free and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                say_on_first_host(f"{self.path.parent} was in use by {holder}, which is gone")
                self.path.unlink()
            elif last:
                raise ValueError(self._refusal(holder, seen=seen))
            else:
                time.sleep(0.05)

    def _refusal(self, holder: Holder | str, seen: bool) -> str:
        in_use = f"{self.option} {self.path.parent} is in use by {holder}"
        if seen:
            return f"{in_use}. Wait for its end, or give another {self.option}"
        return (
            f"{in_use}. From host {self.here.host} it cannot be seen whether that is still "
            f"running: if it is not, remove {self.path} and start again"
        )


def _is_free(file: int) -> bool | None:
    """Whether an open file was locked by nobody and is now locked by us, until it is closed or this
    process ends; None where the file system cannot tell.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _runs(pid: int) -> bool:
    """Whether a process of this number runs here, whichever it is."""
    with contextlib.suppress(PermissionError):  # it is another user's
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def wait_until_free(folder: Path) -> None:
    """Waits while a process of this machine that is about to end holds the lock of a folder."""
    with contextlib.suppress(OSError), open(folder / LOCK_FILE, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Holds the lock of a folder that exists; all hosts of a run call it, and the first one locks.

    It is let go at the end, however that comes about: a SIGTERM ends the program in order.

    Raises:
        ValueError: another run has it, or it cannot be locked; on all hosts.
    """
    lock, fault = None, None
    if jax.process_index() == 0:
        try:
            lock = Lock(folder, option)
        except (OSError, ValueError) as error:
            fault = describe(error) if isinstance(error, OSError) else str(error)
    try:
        if (fault := gather_json(fault)[0]) is not None:
            raise ValueError(fault)
        with ended_by_sigterm():
            yield
    finally:
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program with status 75 as `sys.exit` does, where nobody else handles
    it. On several hosts JAX does.
    """
    here = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
    ours = here and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(os.EX_TEMPFAIL))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
