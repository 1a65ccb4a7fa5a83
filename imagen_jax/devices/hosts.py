"""The processes of a run on several hosts: how they find each other, and what they exchange.

One process drives the devices of one host. A single process needs none of this.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagen_jax.devices.accelerators import check_backend

# What a launcher tells each of the processes that it starts: how many there are, and which it is.
LAUNCHERS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
TPU_HOSTS = "TPU_WORKER_HOSTNAMES"  # of a TPU node pool, by commas
HEARTBEAT_SECONDS = 100
JOIN_SECONDS = 300


@dataclass(frozen=True)
class Launch:
    """What is given about a run's processes. None: as the environment says.

    coordinator_address: HOST:PORT of process 0, where the others find it. heartbeat_seconds: when
    one process has been silent for this long, the others end too. join_seconds: how long to wait
    for all of them at the start.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = HEARTBEAT_SECONDS
    join_seconds: int = JOIN_SECONDS

    def __post_init__(self):
        address, count, index = self.coordinator_address, self.num_processes, self.process_id
        if address is not None and not re.fullmatch(r"\S+:\d{1,5}", address):
            raise ValueError(f"coordinator_address is {address!r}; it must be HOST:PORT")
        if index is not None and not 0 <= index < (count or index + 1):
            known = f" and below num_processes {count}" if count else ""
            raise ValueError(f"process_id must be 0 or more{known}, not {index}")
        for name in ("num_processes", "heartbeat_seconds", "join_seconds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")


def launched(environment: Mapping[str, str]) -> tuple[str, int, int | None] | None:
    """(launcher, number of processes, this one's number) where a launcher started several."""
    for name, (count, index) in LAUNCHERS.items():
        if environment.get(count, "").isdigit() and int(environment[count]) > 1:
            given = environment.get(index, "")
            return name, int(environment[count]), int(given) if given.isdigit() else None
    hosts = environment.get(TPU_HOSTS, "").split(",")
    return ("a TPU node pool", len(hosts), None) if len(hosts) > 1 else None


def join_hosts(launch: Launch, distributed: bool = False) -> None:
    """Joins the other processes of the run; must be called before JAX sees a device.

    What `launch` leaves open comes from the environment: SLURM, Open MPI, a TPU pod or Kubernetes
    (`jax.distributed.initialize`). A process that neither `launch` nor a launcher says otherwise of
    is alone and joins nobody, unless `distributed`: a TPU pod needs that, because only its metadata
    server knows the other hosts.

    Raises:
        ValueError: what is given contradicts itself, or the others cannot be found or reached; or
            JAX cannot use the devices that it is asked for.
    """
    found, count, index = launched(os.environ), launch.num_processes, launch.process_id
    given = (launch.coordinator_address, count, index) != (None, None, None)
    if not (given or distributed or found):
        check_backend()
        # A pod's TPUs find each other anyway, but no host would hear of another's SIGTERM.
        if jax.process_count() > 1:
            raise ValueError(
                f"this is one of {jax.process_count()} hosts of a TPU pod: give --distributed"
            )
        return
    if found is not None:
        count, index = count or found[1], found[2] if index is None else index
    if launch.coordinator_address is not None:
        _meet(launch, count, index)
    try:
        jax.distributed.initialize(
            launch.coordinator_address,
            count,
            index,
            initialization_timeout=launch.join_seconds,
            heartbeat_timeout_seconds=launch.heartbeat_seconds,
            # How long a process that ends waits for the others to end, too.
            shutdown_timeout_seconds=launch.heartbeat_seconds,
        )
    except (ValueError, RuntimeError, KeyError) as error:  # JaxRuntimeError is a RuntimeError
        reason = str(error).strip().split("\n")[0].removesuffix(".")
        where = f" ({found[0]} started {found[1]} processes)" if found else ""
        raise ValueError(
            f"cannot join the other processes{where}: {reason}. Give each process "
            "--coordinator_address=HOST:PORT (of process 0), --num_processes and --process_id"
        ) from error


def _meet(launch: Launch, count: int | None, index: int | None) -> None:
    """Waits for process 0, and says so: JAX would wait in vain without naming the address."""
    address, end = launch.coordinator_address, time.monotonic() + launch.join_seconds
    who = f"process {index} of {count}"
    print(
        f"{who}: joining at {address}, for at most {launch.join_seconds} s",
        file=sys.stderr,
        flush=True,
    )
    host, _, port = address.rpartition(":")
    while index:  # not process 0 itself
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"{who} cannot reach process 0 at {address}: {error.strerror or error}. Is it "
                    "running, is --coordinator_address right, is the port open?"
                ) from error
            time.sleep(0.2)


def role() -> str:
    """Which of several processes this is: "process 3 of 8 (host NAME)"; "" where it is alone."""
    if jax.process_count() == 1:
        return ""
    return f"process {jax.process_index()} of {jax.process_count()} (host {socket.gethostname()})"


def say_on_first_host(text: str) -> None:
    """Prints, on the first host only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every host holds in full where `sharding` says; each host places its own
    part.

    Unlike `jax.device_put` it does not send the array around to compare it.
    """
    if getattr(leaf, "sharding", None) == sharding:
        return leaf
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def whole(leaf: Any) -> np.ndarray:
    """An array in full, whichever hosts hold its parts; all hosts must call it."""
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def gather_json(value: Any) -> list[Any]:
    """What each host passes (JSON-able values), in the order of the hosts; all must call it."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([content.size]))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def check_shared(folder: Path, option: str) -> None:
    """ValueError unless every host sees what the first one writes into `folder`."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{gather_json(uuid.uuid4().hex)[0]}"
    if jax.process_index() == 0:
        token.touch()
    gather_json(None)  # now it is there
    seen = gather_json(token.exists())
    if jax.process_index() == 0:
        token.unlink()
    if not all(seen):
        raise ValueError(
            f"{option} {folder} is another folder on host {seen.index(False)} than on host 0: it "
            "must lie on a disk that all hosts share"
        )


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step: whether to stop after it, the same answer on every host.

    The first SIGTERM or SIGINT asks for the stop; a second one acts at once. Several hosts agree on
    the step through JAX (its coordination service passes on any host's SIGTERM).
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    requested, previous = threading.Event(), {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        requested.set()
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handle)
    try:
        yield lambda step: requested.is_set()
    finally:
        restore()
