"""Where the time of a profiler's trace went: by kind of operation, and the largest of them."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Names of kernels and of XLA's operations, the first that fits.
KINDS = {
    "attention": r"flash|fmha|sdpa",
    "convolution": r"conv(?!ert)|implicit|dgrad|wgrad|fprop",
    "matrix product": r"gemm|nvjet|cutlass|xmma|\bdot|cublas",
    "communication": r"all-|all_|nccl|collective|reduce-scatter",
    "reduction": r"reduce|softmax",
    "copy": r"copy|memcpy|memset|transpose|concat",
    "fusion": r"fusion|fused|wrapped",
}
CONTAINERS = re.compile(r"(while|call|conditional)[.\d]*$")  # their parts are counted


def top(folder: str | Path, count: int = 15) -> dict[str, Any]:
    """The newest trace below a folder: {"seconds": of the devices, "kinds", "operations"}, both as
    shares of these seconds, the largest first. On a CPU the seconds of its threads are added up.

    Raises:
        ValueError: there is no trace, or none of a device's work in it.
    """
    files = sorted(Path(folder).rglob("*.trace.json.gz"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"there is no profiler trace (*.trace.json.gz) below {folder}")
    with gzip.open(files[-1]) as file:
        events = json.load(file)["traceEvents"]
    times = device_times(events)
    total = sum(times.values())
    if not total:
        raise ValueError(f"{files[-1]} has no work of a device")
    kinds: dict[str, float] = defaultdict(float)
    for name, spent in times.items():
        kinds[kind_of(name)] += spent
    found = {"kinds": list(_shares(kinds)), "operations": list(_shares(times))[:count]}
    return {"seconds": total / 1e6, **{name: dict(pairs) for name, pairs in found.items()}}


def _shares(times: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Each one's share of the sum, the largest first."""
    total = sum(times.values())
    for name in sorted(times, key=times.__getitem__, reverse=True):
        yield name, times[name] / total


def device_times(events: list[dict[str, Any]]) -> dict[str, float]:
    """Microseconds by operation: a GPU's kernels, a TPU's or a CPU's operations; no numbers."""
    named = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("name") in named:
            thread = event.get("tid") if event["name"] == "thread_name" else None
            named[event["name"]][event["pid"], thread] = event["args"].get("name", "")
    times: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("ph") != "X":
            continue
        device = "/device:" in named["process_name"].get((event["pid"], None), "")
        line = named["thread_name"].get((event["pid"], event.get("tid")), "").lower()
        own = "stream" in line or line == "xla ops"
        if (own if device else "hlo_op" in event.get("args", {})) and not CONTAINERS.match(
            event["name"]
        ):
            times[re.sub(r"[.\d]+$", "", event["name"])[:80]] += event["dur"]
    return times


def kind_of(name: str) -> str:
    low = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, low)), "other")
