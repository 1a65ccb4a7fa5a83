"""Runs the sides of cases, each in a process of its own with a limit: what crashes, hangs or runs
out of memory is a line in the results and ends nothing else.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagen_jax.benchmark.cases import CASES, CPU_PEERS, OURS, SIMULATED

ROOT = Path(__file__).resolve().parents[2]
CACHE = "JAX_COMPILATION_CACHE_DIR"  # a user's, in which programs might be
OUR_MODULE = "imagen_jax.benchmark.ours"
LINE = 2**20  # bytes that an answer may have
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One side of a case: the Python and module that measure it, and the values of its work."""

    case: str
    side: str
    python: str
    module: str
    spec: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.case}, {self.side}"


@dataclass(frozen=True)
class Plan:
    """How jobs are run. turns: the sides of a case take turns, for machines whose other work
    disturbs the clock; else each is measured and ended, for the devices' memory. parallel: how many
    are set up at the same time. limit: seconds that one may take. caches: where the compiled
    programs are kept. warm: whether each is started again, with them. profile: for traces.
    """

    rounds: int
    limit: float
    parallel: int
    turns: bool
    caches: Path
    warm: bool = False
    profile: Path | None = None


class Failed(Exception):
    """A side that gives no figures; the message says why."""


class Child:
    """A side's process. `left`: seconds of its limit that it has not used; waiting for its turn
    does not count.
    """

    def __init__(self, job: Job, plan: Plan):
        self.job, self.plan, self.left = job, plan, plan.limit
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115

    async def start(self) -> Result:
        caches = self.plan.caches / self.job.name.replace(" ", "_").replace(",", "")
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XDG_CACHE_HOME": str(caches),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
        }
        kept = {name: os.environ[name] for name in os.environ if name != CACHE}
        self.process = await asyncio.create_subprocess_exec(
            *(self.job.python, "-m", self.job.module, json.dumps(self.job.spec), str(time.time())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self.errors,
            env=kept | own | self.job.environment,
            limit=LINE,
            start_new_session=True,
        )
        return await self.answer("setting up")

    async def ask(self, what: str) -> Result:
        with contextlib.suppress(ConnectionError):  # it has ended: there is no answer
            self.process.stdin.write(f"{what}\n".encode())
            await self.process.stdin.drain()
        return await self.answer(what)

    async def answer(self, doing: str) -> Result:
        began = time.monotonic()
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), max(self.left, 0.01))
        except TimeoutError:
            self.kill()
            raise Failed(f"not done within {self.plan.limit:g} s ({doing})") from None
        self.left -= time.monotonic() - began
        if not line:
            status = await self.process.wait()
            raise Failed(f"its process ended with {status} ({doing}){self.why()}")
        values = json.loads(line)
        if "error" in values:
            raise Failed(values["error"])
        return values

    def why(self) -> str:
        """The last line that the process wrote to standard error."""
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, size - 4000))
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()[:300]}" for line in lines[::-1] if line.strip()), "")

    async def end(self) -> None:
        """Ends the process and those that it started."""
        if hasattr(self, "process"):
            self.kill()
            await self.process.wait()
        self.errors.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


async def measure(jobs: Sequence[Job], plan: Plan) -> AsyncIterator[Result]:
    """The result of each job, failed ones with "error", as soon as it is known."""
    for wave in waves(jobs, plan):
        places = asyncio.Semaphore(plan.parallel)
        children = [Child(job, plan) for job in wave]
        try:
            results = await asyncio.gather(*(_set_up(child, places) for child in children))
            pairs = list(zip(children, results, strict=True))
            for group in [pairs] if plan.turns else [[pair] for pair in pairs]:
                async for result in _timed(group, plan):
                    yield result
        finally:
            for child in children:
                await child.end()


def waves(jobs: Sequence[Job], plan: Plan) -> list[list[Job]]:
    """Jobs that are set up together and then timed one after the other."""
    if plan.turns:
        names = dict.fromkeys(job.case for job in jobs)
        return [[job for job in jobs if job.case == name] for name in names]
    return [list(jobs[i : i + plan.parallel]) for i in range(0, len(jobs), plan.parallel)]


async def _set_up(child: Child, places: asyncio.Semaphore) -> Result:
    result: Result = {"case": child.job.case, "side": child.job.side}
    async with places:
        await _try(result, child.start)
    return result


async def _try(result: Result, ask: Callable, *arguments: Any) -> None:
    """Adds an answer to a result; after a failure nothing more is asked."""
    if "error" not in result:
        try:
            result.update(await ask(*arguments))
        except Failed as error:
            result["error"] = str(error)


async def _timed(group: list[tuple[Child, Result]], plan: Plan) -> AsyncIterator[Result]:
    """The first call, the rounds and the last figures of sides that take turns."""
    rounds: dict[str, list[Result]] = {child.job.side: [] for child, _ in group}
    for child, result in group:
        await _try(result, child.ask, "first")
    for _ in range(plan.rounds):
        for child, result in group:
            answer: Result = {"error": result["error"]} if "error" in result else {}
            await _try(answer, child.ask, "round")
            if "error" not in answer:
                rounds[child.job.side].append(answer)
            elif not rounds[child.job.side]:
                result["error"] = answer["error"]
    for child, result in group:
        if plan.profile is not None:
            await _try(result, child.ask, f"profile {plan.profile / child.job.case}")
        await _try(result, child.ask, "end")
        await child.end()
        if plan.warm and "error" not in result:
            result["warm"] = await _warm(child.job, plan)
        yield finished(result, rounds[child.job.side])


async def _warm(job: Job, plan: Plan) -> Result:
    """The first call of a second process, with what the first one left in its caches."""
    child, result = Child(job, plan), {}
    try:
        await _try(result, child.start)
        await _try(result, child.ask, "first")
    finally:
        await child.end()
    return {"error": result["error"]} if "error" in result else result["first"]


def finished(result: Result, rounds: list[Result]) -> Result:
    """A result with its speeds: medians of the rounds, which stay beside them."""
    images = result.pop("images", None)
    if rounds:
        calls = [images * each["calls"] for each in rounds]
        for kind, name in (("seconds", "second"), ("processor_seconds", "processor_second")):
            speeds = [n / max(each[kind], 1e-9) for n, each in zip(calls, rounds, strict=True)]
            result |= {f"images_per_{name}": statistics.median(speeds)}
            result |= {"rounds": speeds} if kind == "seconds" else {}
    return result


def complete(result: Result, first: Result) -> None:
    """Adds FLOP/s and their share of the peak, for a peer with the same network by our count; and
    an error where the number of parameters does not fit that of the case's first side.
    """
    tolerance, found = CASES[result["case"]].tolerance, result.get("parameters")
    if None not in (tolerance, found, expected := first.get("parameters")):
        if abs(found / expected - 1) > tolerance:
            result["error"] = f"{found:,} parameters; {first['side']} has {expected:,}"
        elif tolerance == 0:
            for key in ("flops_per_image", "peak_flops"):
                result.setdefault(key, first.get(key))
    if result.get("flops_per_image") and result.get("images_per_second"):
        speed = result["flops_per_image"] * result["images_per_second"]
        result["flops_per_second"] = speed
        if result.get("peak_flops"):
            result["mfu"] = speed / (result["peak_flops"] * result.get("devices", 1))


async def look(plan: Plan) -> Result:
    """Versions and devices of this code's side.

    Raises:
        Failed: JAX finds no device, or does not start.
    """
    child = Child(Job("about", OURS, sys.executable, OUR_MODULE, {"kind": "about"}), plan)
    try:
        return await child.start()
    finally:
        await child.end()


def make_jobs(name: str, size: str, platform: str, peers: str | None) -> list[Job]:
    """The sides of a case. peers: a Python that has them, or None."""
    case, found = CASES[name], []
    for side, own in case.sides.items():
        spec = case.values(size) | own | {"side": side}
        simulated = SIMULATED if "devices" in own else {}
        found.append(Job(name, side, sys.executable, OUR_MODULE, spec, simulated))
    for side in case.peers if peers else ():
        spec = case.values(size) | {"side": side}
        if platform == "cpu" or side not in CPU_PEERS:
            found.append(Job(name, side, peers, "imagen_jax.benchmark.peers", spec))
    return found
