r"""Measures this code, and others beside it, on the devices that are there.

    imagen-jax benchmark --tiny
    imagen-jax benchmark --peers PEERS/bin/python --out speed.json
    imagen-jax benchmark --peers python3 --case if_train --case if_sample --parallel 4 \
        --limit 290 --out speed.json
    imagen-jax benchmark --case if_train --profile traces
    imagen-jax benchmark --table ours.json peers.json
    imagen-jax benchmark --trace runs/base64

A case is one kind of work, such as the train step of one network; its sides are this code and its
peers. imagen_jax/benchmark/cases.py has them all. --peers is the Python of an environment with
diffusers, transformers and, on CPUs, imagen-pytorch: imagen_jax/benchmark/peers.py says how to make
it. Each side runs in a process of its own with a time limit; an error is a line in the results, and
the command then ends with status 1. On CPUs the sides of a case take turns.

For each side: images a second (the median of the rounds), FLOP/s and their share of the peak, the
time from the start of the process to the end of the first step with its parts, with --warm also of
a second process with the caches of the first, and memory. Compilation caches start empty.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagen_jax.benchmark import cases, runner, table, trace
from imagen_jax.commands.command_line import (
    count,
    make_parser,
    number,
    one_line_errors,
    path,
    run_parsed,
)
from imagen_jax.storage.json_file import read_object, write_object


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--case", action="append", choices=cases.CASES, metavar="CASE", help="such as if_train "
        "(default: those that suit the device)")  # fmt: skip
    add("--side", action="append", metavar="NAME", help="only this side of each case: imagen_jax, "
        "'diffusers compiled', ...")  # fmt: skip
    add("--peers", metavar="PYTHON", help="of the environment that has them (default: none runs)")
    add("--size", choices=cases.SIZES, help="of the networks (default: full on accelerators, small "
        "on CPUs)")  # fmt: skip
    add("--tiny", dest="size", action="store_const", const="tiny", help="a trial of every step, of "
        "no use as a measurement: --size tiny")  # fmt: skip
    add("--rounds", type=count, default=5, help="of each side, of which the median counts")
    add("--limit", type=number, default=1800.0, metavar="SECONDS", help="that a side may take")
    add("--parallel", type=count, default=1, metavar="N", help="sides that are set up at the same "
        "time; they are timed one after the other")  # fmt: skip
    add("--warm", action="store_true", help="also the first step with the caches of the first run")
    add("--profile", type=path, metavar="DIR", help="write a trace of each case, and print where "
        "the time went")  # fmt: skip
    add("--out", type=path, metavar="FILE", help="the results as JSON, written after each")
    add("--dtype", choices=("float32", "bfloat16"), help="of this code's networks (default: "
        "float32 on CPUs, else bfloat16)")  # fmt: skip
    add("--shards", metavar="PATTERN", help="tar shards of your own for the case tar")
    add("--table", type=path, nargs="+", metavar="FILE", help="print the table of such files, of "
        "one machine, and stop")  # fmt: skip
    add("--trace", type=path, metavar="DIR", help="print where the time of a trace went, such as "
        "one of imagen-jax train --profile, and stop")  # fmt: skip
    return parse


def run(options: argparse.Namespace) -> None:
    with one_line_errors(ValueError, runner.Failed):
        if options.table is not None:
            print(table.markdown(merged([read_report(file) for file in options.table])))
            return
        if options.trace is not None:
            print(table.profile(trace.top(options.trace)))
            return
        with tempfile.TemporaryDirectory() as caches, contextlib.suppress(asyncio.CancelledError):
            sys.exit(asyncio.run(benchmark(options, Path(caches))))
        sys.exit(128 + signal.SIGTERM)


def read_report(file: Path) -> dict[str, Any]:
    """What --out wrote; ValueError where it did not write this file."""
    report = read_object(file, "a file of the benchmark")
    if not {"about", "results"} <= report.keys():
        raise ValueError(f"{file} is not what imagen-jax benchmark --out writes")
    return report


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Several reports as the first one, with the sides of each case beside each other."""
    results = [result for report in reports for result in report["results"]]
    order = list(dict.fromkeys(result["case"] for result in results))
    results.sort(key=lambda result: order.index(result["case"]))
    firsts: dict[str, runner.Result] = {}
    for result in results:
        runner.complete(result, firsts.setdefault(result["case"], result))
    return reports[0] | {"results": results}


async def benchmark(options: argparse.Namespace, caches: Path) -> int:
    """Prints and writes each result as it comes; 1 where one has an error."""
    # Asked to end, it ends the sides' processes first.
    end = asyncio.current_task().cancel
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    given = {name: getattr(options, name) for name in ("rounds", "limit", "parallel", "warm")}
    found = await runner.look(runner.Plan(turns=False, caches=caches, **given))
    on_cpu = found["platform"] == "cpu"
    plan = runner.Plan(turns=on_cpu, caches=caches, profile=options.profile, **given)
    size = options.size or ("small" if on_cpu else "full")
    names = options.case or cases.default_cases(found["platform"], found["count"])
    jobs = [job for name in names for job in make_jobs(options, name, size, found["platform"])]
    if not jobs:
        peers = "" if options.peers else "; peers run with --peers alone"
        raise ValueError(f"no case has a side {' or '.join(options.side)}{peers}")
    report: dict[str, Any] = {"about": about(found, size, plan), "results": []}
    print(", ".join(f"{name} {value}" for name, value in report["about"].items() if value))
    firsts: dict[str, runner.Result] = {}
    async for result in runner.measure(jobs, plan):
        runner.complete(result, firsts.setdefault(result["case"], result))
        report["results"].append(result)
        print(table.line(result), flush=True)
        if result.get("profile"):
            print(table.profile(result["profile"]), flush=True)
        if options.out is not None:
            write_object(options.out, report)
    return int(any("error" in result for result in report["results"]))


def make_jobs(options: argparse.Namespace, name: str, size: str, platform: str) -> list[runner.Job]:
    """The sides of a case that the options leave."""
    jobs = runner.make_jobs(name, size, platform, options.peers)
    if name == "tar" and options.shards:
        jobs = [replace(job, spec=job.spec | {"path": options.shards}) for job in jobs]
    if options.dtype:
        jobs = [replace(job, spec=job.spec | {"dtype": options.dtype}) for job in jobs]
    return [job for job in jobs if options.side is None or job.side in options.side]


def about(found: runner.Result, size: str, plan: runner.Plan) -> dict[str, Any]:
    """The machine, the versions and how it was measured."""
    model, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    asked = ["git", "-C", str(runner.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = None
    with contextlib.suppress(OSError):  # without git
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": found["device"],
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **found["versions"],
        "size": size,
        "rounds": plan.rounds,
        "set_up_side_by_side": plan.parallel,
    }


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
