"""One side of a case, measured in a process of its own, as its parent asks line by line.

Standard library only: the peers' environment has nothing of ours.
"""

import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ROUND_SECONDS = 1.0  # calls that are shorter are repeated in a round


@dataclass
class Work:
    """What is timed. call: starts the work on `images` images; wait: until it is done.

    facts: known before it runs: parameters, FLOPs, versions. started: whether the first call was
    made in setting up. whole: a call is a process of its own, and its time is all that counts.
    phases: seconds until now in tracing, lowering and compiling. figures: known at the end, such as
    peak memory. profile: a folder for the trace -> the time by kind.
    """

    call: Callable[[], Any]
    images: int
    facts: dict[str, Any]
    wait: Callable[[Any], Any] = lambda result: result
    started: bool = False
    whole: bool = False
    phases: Callable[[], dict[str, float]] = dict
    figures: Callable[[], dict[str, Any]] = dict
    profile: Callable[[str], dict[str, Any]] | None = None
    calls: int = field(default=1, init=False)  # in a round

    def timed(self, calls: int = 1) -> dict[str, float]:
        """Seconds of so many calls, on the clock and of the processors."""
        began, worked = time.perf_counter(), time.process_time()
        results = [self.call() for _ in range(calls)]
        self.wait(results[-1])
        return {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - worked,
        }


def serve(build: Callable[[dict[str, Any]], Work]) -> None:
    """Builds the work that the first argument describes, and does what is asked on standard input:
    "first", "round", "profile FOLDER" or "end". Each is answered by one JSON object, and what
    fails by {"error"}. Whatever else is printed goes to standard error.
    """
    spec, began = json.loads(sys.argv[1]), float(sys.argv[2])
    imported = time.time() - began
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        work = build(spec)
        setup = time.time() - began
        answer({"images": work.images, **work.facts})
        for line in sys.stdin:
            what, _, folder = line.strip().partition(" ")
            if what == "first":
                answer(_first(work, imported, setup))
            elif what == "round":
                answer(work.timed(work.calls) | {"calls": work.calls})
            elif what == "profile":
                answer({"profile": work.profile(folder) if work.profile else None})
            else:
                return answer(_host_memory() | work.figures())
    except BaseException as error:
        traceback.print_exc()
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        answer({"error": f"{type(error).__name__}: {reason[:300]}"})


def _first(work: Work, imported: float, setup: float) -> dict[str, Any]:
    """The time from the start of the process to the end of the first call, by phases; and how many
    calls make a round.
    """
    seconds = 0.0 if work.started else work.timed()["seconds"]
    if work.whole:
        return {"first": {"total": seconds}}
    phases = {"import": imported, **work.phases()}
    total = setup + seconds
    warm = work.timed()["seconds"]
    if warm < 2 * ROUND_SECONDS:
        warm = work.timed()["seconds"]
    work.calls = max(1, math.ceil(ROUND_SECONDS / warm))
    return {"first": phases | {"run": total - sum(phases.values()), "total": total}}


def _host_memory() -> dict[str, int]:
    """The largest resident size of this process or one that it started (Linux counts in KiB)."""
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return {"host_bytes": 1024 * max(resource.getrusage(each).ru_maxrss for each in who)}
