"""A folder that one run writes into: locked by a file that says who does.

Two runs in one folder would delete each other's half-written checkpoints. The file is made by who
starts and removed at the end. That of a process that is gone is taken over, where that can be seen:
on the machine that it ran on.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

from imagen_jax.devices.hosts import gather_json, say_on_first_host
from imagen_jax.storage.codec import from_dict
from imagen_jax.storage.disk import describe, disk_errors
from imagen_jax.storage.json_file import parse_object

LOCK_FILE = "run.lock"
WRITING_SECONDS = 2.0  # that a new lock may be empty


def _content(path: str) -> str:
    """Of a small file of the system; "" where it has none (macOS)."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process_start(pid: int | str) -> str:
    """When a process started, in ticks of the system's clock since its boot; "" where that cannot
    be read, or it has ended and nobody has asked for its status yet.
    """
    # The name of the command, in parentheses, may hold anything.
    fields = _content(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. machine, boot, space: of the installed system, since when it runs, and in
    which its numbers of processes count (a container's are its own). start: of the process.
    """

    host: str
    pid: int
    start: str
    since: str
    machine: str = ""
    boot: str = ""
    space: str = ""

    @classmethod
    def this_process(cls) -> "Holder":
        space = ""
        with contextlib.suppress(OSError):
            space = os.readlink("/proc/self/ns/pid")
        return cls(
            socket.gethostname(),
            os.getpid(),
            _process_start("self"),
            datetime.now().astimezone().isoformat(" ", "seconds"),
            _content("/etc/machine-id"),
            _content("/proc/sys/kernel/random/boot_id"),
            space,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"

    def is_here(self, here: "Holder") -> bool:
        """Whether this process ran on the machine of `here`."""
        return (self.host, self.machine) == (here.host, here.machine)

    def may_run(self, here: "Holder") -> bool | None:
        """Whether this process is running, seen from `here`; None where that cannot be seen."""
        if not self.is_here(here):
            return None
        if self.boot != here.boot:
            return False
        if self.space != here.space:
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # it is another user's
            pass
        return not self.start or _process_start(self.pid) == self.start


class Lock:
    """The lock of a folder that exists, held from now on until `release`.

    Raises:
        ValueError: another process holds it, or may do so; the message says who, and what to do.
        OSError: the lock cannot be written.
    """

    def __init__(self, folder: Path, option: str, say: Callable[[str], None] = print):
        self.path, self.option, self.say = folder / LOCK_FILE, option, say
        self.here = Holder.this_process()
        end = time.monotonic() + WRITING_SECONDS
        while True:
            with contextlib.suppress(FileExistsError):
                # Not atomic on every network's disk, but then as good as it gets there.
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
                with disk_errors(self.path):
                    self.file = os.open(self.path, flags, 0o666)
                break
            with contextlib.suppress(FileNotFoundError):  # it was released just now
                self._remove_stale(last=time.monotonic() > end)
        self._write()

    def _write(self) -> None:
        try:
            with disk_errors(self.path):
                _lock_until_close(self.file)
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
        """Removes the lock of a process that is gone. Does nothing where another look may tell
        more, but for the `last`.
        """
        with open(self.path, "r+b") as file:
            try:
                holder = from_dict(Holder, parse_object(file.read()))
            except ValueError:
                if last:
                    raise ValueError(self._refusal("somebody", unseen=True)) from None
                time.sleep(0.05)  # it is being written
                return
            running = holder.may_run(self.here)
            if running or not holder.is_here(self.here):
                raise ValueError(self._refusal(str(holder), unseen=not running))
            # From here on one process at a time. Who runs in another container has locked the file.
            free = _lock_until_close(file.fileno())
            if free is None:
                free = running is False
            if free and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                self.say(f"{self.path.parent} was in use by {holder}, which is gone")
                self.path.unlink()
            elif last or running is None:
                raise ValueError(self._refusal(str(holder), unseen=running is None))
            else:
                time.sleep(0.05)

    def _refusal(self, holder: str, unseen: bool) -> str:
        in_use = f"{self.option} {self.path.parent} is in use by {holder}"
        if unseen:
            return (
                f"{in_use}. From host {self.here.host} it cannot be seen whether that is still "
                f"running: if it is not, remove {self.path} and start again"
            )
        return f"{in_use}. Wait for its end, or give another {self.option}"


def _lock_until_close(file: int) -> bool | None:
    """Whether an open file could be locked by this process, until it closes it or ends; None where
    the file system cannot tell.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


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
            lock = Lock(folder, option, say_on_first_host)
        except OSError as error:
            fault = describe(error)
        except ValueError as error:
            fault = str(error)
    with contextlib.ExitStack() as stack:
        if lock is not None:
            stack.callback(lock.release)
        fault = gather_json(fault)[0]
        if fault is not None:
            raise ValueError(fault)
        stack.enter_context(ended_by_sigterm())
        yield


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program with status 75 as `sys.exit` does, where nobody else handles
    it. On several hosts JAX does.
    """

    def end(number: int, frame: Any) -> None:
        sys.exit(os.EX_TEMPFAIL)

    usual = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and jax.process_count() == 1
    if usual and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        yield
