"""A folder in use is locked: a second run is told by whom, and harms nothing."""

import contextlib
import errno
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from imagen_jax.storage import lock
from imagen_jax.storage.lock import LOCK_FILE, Lock, locked


@contextlib.contextmanager
def other_process(work: Callable[[], None]) -> Iterator[tuple[int, Callable[[], str]]]:
    """Does `work` in a copy of this process, which then waits to be killed. Yields its number, and
    what reads what became of the work: "done" or the error.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that JAX has threads: the copy does not use it
        pid = os.fork()
    if pid == 0:
        try:
            work()
            said = "done"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        time.sleep(60)
        os._exit(0)
    os.close(write)
    try:
        yield pid, lambda: os.read(read, 10_000).decode()
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)


def rewrite(folder: Path, **changed: object) -> None:
    path = folder / LOCK_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def leave_a_lock(folder: Path, **changed: object) -> None:
    """A lock of this process, as if it had ended without letting it go."""
    held = Lock(folder, "--workdir")
    os.close(held.file)
    rewrite(folder, **changed)


def test_a_lock_is_there_while_it_is_held(tmp_path):
    for _ in range(2):
        with locked(tmp_path, "--workdir"):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
            assert "in use by process" in refusal(tmp_path)
        assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), locked(tmp_path, "--workdir"):
        raise KeyError("in the run")
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_told_who_holds_it(tmp_path):
    with other_process(lambda: Lock(tmp_path, "--workdir")) as (pid, said):
        assert said() == "done"
        before = (tmp_path / LOCK_FILE).read_bytes()
        message = rf"--workdir {tmp_path} is in use by process {pid} on host .*, since 20"
        with pytest.raises(ValueError, match=message), locked(tmp_path, "--workdir"):
            pass
        assert (tmp_path / LOCK_FILE).read_bytes() == before


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, capsys):
    with other_process(lambda: Lock(tmp_path, "--workdir")) as (pid, said):
        assert said() == "done"
        os.kill(pid, signal.SIGKILL)
        # Nobody has asked for its status: its number is still taken.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with locked(tmp_path, "--workdir"):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert f"in use by process {pid} on host" in (said_here := capsys.readouterr().out)
    assert said_here.count("\n") == 1


def test_a_number_that_is_used_again_holds_nothing(tmp_path, capsys):
    leave_a_lock(tmp_path, since="long ago")
    with locked(tmp_path, "--workdir"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["since"] != "long ago"
    assert "since long ago, which is gone" in capsys.readouterr().out


def test_a_container_of_this_machine_that_runs_is_seen(tmp_path):
    """Its numbers of processes say nothing here, but it has locked the file itself."""

    def in_a_container() -> None:
        held = Lock(tmp_path, "--workdir")
        os.ftruncate(held.file, 0)
        os.pwrite(held.file, json.dumps(asdict(held.here) | {"pid": 1}).encode(), 0)

    with other_process(in_a_container) as (_, said):
        assert said() == "done"
        assert "in use by process 1 on" in refusal(tmp_path)
    with locked(tmp_path, "--out"):
        pass


def test_where_files_cannot_be_locked_the_number_of_the_process_counts(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    leave_a_lock(tmp_path, pid=os.getppid())
    assert f"remove {tmp_path / LOCK_FILE}" in refusal(tmp_path)
    rewrite(tmp_path, pid=2**80)
    with locked(tmp_path, "--workdir"):
        pass


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="is in use") as caught, locked(folder, "--workdir"):
        pass
    return str(caught.value)


@pytest.mark.parametrize("changed", [{"host": "gpu7"}, {"machine": "of a twin"}])
def test_the_lock_of_another_host_is_refused_with_the_way_to_remove_it(tmp_path, changed):
    leave_a_lock(tmp_path, **changed)
    path = tmp_path / LOCK_FILE
    before = path.read_bytes()
    assert f"cannot be seen whether that is still running: if it is not, remove {path}" in (
        refusal(tmp_path)
    )
    assert path.read_bytes() == before
    path.unlink()
    with locked(tmp_path, "--workdir"):
        pass


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"{", b"{}", b'{"host": 3}', b"\xff"])
def test_a_damaged_lock_is_refused_with_the_way_to_remove_it(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert f"remove {tmp_path / LOCK_FILE}" in refusal(tmp_path)
    assert (tmp_path / LOCK_FILE).read_bytes() == content


def test_a_lock_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 20)
    path = tmp_path / LOCK_FILE
    path.touch()
    threading.Timer(0.2, path.unlink).start()
    with locked(tmp_path, "--workdir"):
        pass


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_gets_it(tmp_path, monkeypatch, stale):
    monkeypatch.setattr(lock, "PATIENCE", 1)
    folder = tmp_path / "run"
    folder.mkdir()
    if stale:
        leave_a_lock(folder)

    def work() -> None:
        while not (tmp_path / "start").exists():
            time.sleep(0.001)
        Lock(folder, "--workdir")

    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(other_process(work)) for _ in range(8)]
        (tmp_path / "start").touch()
        ends = {pid: said() for pid, said in started}
        holder = json.loads((folder / LOCK_FILE).read_text())["pid"]
    assert [pid for pid, said in ends.items() if said == "done"] == [holder]
    assert all(f"by process {holder} " in said for pid, said in ends.items() if pid != holder)


def test_a_lock_that_was_removed_by_hand_is_not_anothers(tmp_path):
    first = Lock(tmp_path, "--workdir")
    first.path.unlink()
    second = Lock(tmp_path, "--workdir")
    first.release()
    assert second.path.exists()
    second.release()
    assert not second.path.exists()


def test_a_sigterm_lets_it_go(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, locked(tmp_path, "--workdir"):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == os.EX_TEMPFAIL
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_is_told_and_leaves_no_lock(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    message = f"{tmp_path / LOCK_FILE}: No space left on device .* free"
    with pytest.raises(ValueError, match=message), locked(tmp_path, "--workdir"):
        pass
    assert not list(tmp_path.iterdir())
