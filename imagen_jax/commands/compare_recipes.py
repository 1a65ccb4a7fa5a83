r"""Compares recipes at equal compute: trains each cell of a grid for the same number of FLOPs.

    imagen-jax compare_recipes --config compare_icons32 --out runs/compare \
        --flops 5e13 --seeds 0,1 --jobs 2 \
        --cells transformer-x0-flow,transformer-v-cosine,efficient_unet-v-cosine

The config is that of an ordinary run, and beside get_config() has get_axes(): by axis and choice,
what the choice sets in its section `stage`. A cell is one choice of each axis. All cells have the
same images, seeds, text encoder, optimizer and evaluation; the steps of each are those that the
FLOPs of training (forward and backward) allow. Any key that no axis sets can be set by
--config.KEY=VALUE.

Measured on held-out images: how often the image that has a caption is the nearest to what is
sampled for that caption, and the x0 error of the averaged parameters at five log-SNRs, a figure
that means the same for every prediction and schedule. Each cell is printed when it is done. The
same command goes on where it was stopped or a run failed: what is finished is kept.

On CPUs --jobs runs are trained side by side, each in a process of its own with its share of the
processors. On an accelerator one run trains at a time, while the programs of the next ones compile.
"""

import argparse
import functools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import (
    CONFIG,
    count,
    entries,
    make_parser,
    one_line_errors,
    path,
    run_configured,
)

COMMAND = ("-m", "imagen_jax.commands.main", "compare_recipes")


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--config", **(CONFIG | {"help": "compare_icons32, or a Python file with get_config() and "
        "get_axes()"}))  # fmt: skip
    add("--out", type=path, required=True, metavar="DIR", help="folder of the runs and the report")
    add("--flops", type=float, required=True, metavar="N", help="of training, for each run")
    add("--seeds", type=seeds, default=[0], metavar="N,N", help="of each cell (default: 0)")
    add("--cells", type=entries, metavar="NAME,NAME", help="of the grid; the default is all")
    add("--splits", type=entries, default=["heldout"], metavar="NAME,NAME", help="of the images "
        "to measure on (default: heldout)")  # fmt: skip
    add("--prompts", type=count, default=250, metavar="N", help="of each split, to sample")
    add("--points", type=count, default=8, metavar="N", help="x0 errors measured on the way")
    add("--jobs", type=count, default=1, metavar="N", help="runs side by side, on CPUs")
    add("--only", metavar="NAME-seedN", help="train this run and write no report")
    return parse


def seeds(argument: str) -> list[int]:
    return [int(text) for text in entries(argument)]


class Comparison:
    """The grid of a command line: its cells, and the plan of each."""

    def __init__(self, options: argparse.Namespace, overrides: dict[str, str]):
        from imagen_jax.training import comparison, start
        from imagen_jax.training.config import load_module

        splits = tuple(options.splits)
        self.out: Path = options.out
        self.protocol = comparison.Protocol(options.flops, options.points, splits, options.prompts)
        self.raw = start.read_raw(options.config, overrides)
        self.axes = load_module(options.config, "get_axes").get_axes()
        self.cells = comparison.grid(self.axes, options.seeds, options.cells)
        self.plans: dict[Any, tuple[Any, float]] = {}
        if options.only is not None:
            self.cells = [cell for cell in self.cells if cell.folder == options.only]
            if not self.cells:
                raise ValueError(f"there is no run {options.only} among those of --cells, --seeds")

    def plan(self, cell: Any) -> tuple[Any, float]:
        """The plan of a cell's run, and the FLOPs of its step."""
        from imagen_jax.training.comparison import cell_plan

        if cell not in self.plans:
            known = {other.choices: per_step for other, (_, per_step) in self.plans.items()}
            per_step = known.get(cell.choices)
            self.plans[cell] = cell_plan(self.raw, self.axes, cell, self.protocol, per_step)
        return self.plans[cell]

    def result(self, cell: Any) -> dict[str, Any] | None:
        """What a cell has found, with its name and seed; None where it is not finished."""
        from imagen_jax.training.comparison import read_result

        found = read_result(self.out / cell.folder, self.plan(cell)[0], self.protocol)
        return found and {"name": cell.name, "seed": cell.seed, **found}

    def run(self, cell: Any) -> bool:
        """Trains and measures a cell here; False where a signal ended it."""
        from imagen_jax.training.comparison import run_cell

        def say(line: str) -> None:
            print(f"{cell.folder}: {line}", flush=True)

        plan, per_step = self.plan(cell)
        return run_cell(plan, per_step, self.protocol, self.out / cell.folder, say) is not None


def compare(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    with one_line_errors():
        import jax

        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.training import comparison_report, loop
    with one_line_errors(ValueError, *loop.RUN_ERRORS):
        use_compilation_cache()
        grid = Comparison(options, overrides)
        if options.only is not None:
            sys.exit(None if grid.run(grid.cells[0]) else os.EX_TEMPFAIL)
        waiting = [cell for cell in grid.cells if grid.result(cell) is None]
        print(f"{len(grid.cells)} runs of {options.flops:.3g} FLOPs, {len(waiting)} to be trained")
        for cell in grid.cells:
            if cell not in waiting:
                print(line_of(grid.result(cell)))
        progress = Progress(grid, len(waiting))
        if jax.default_backend() == "cpu" and options.jobs > 1:
            failed = run_processes(waiting, options, overrides, progress)
        else:
            failed = run_here(grid, waiting, progress)
        results = [found for cell in grid.cells if (found := grid.result(cell)) is not None]
        if results:
            for file in comparison_report.write_report(options.out, results):
                print(file)
            print(comparison_report.table(results))
        if failed:
            names = ", ".join(cell.folder for cell in failed)
            raise ValueError(f"not finished: {names}. The same command goes on with them")


def line_of(result: dict[str, Any]) -> str:
    """transformer-x0-flow-seed0: top-1 2.0%, top-5 6.1% | x0 error -6: 0.31, ... | 30,208 images"""
    shares = result["retrieval"]["shares"]["all"]
    tops = ", ".join(f"{top.replace('top', 'top-')} {found['share']:.1%}" for top, found in
        shares.items())  # fmt: skip
    errors = ", ".join(f"{level}: {error:.4f}" for level, error in result["x0_error"].items())
    name = f"{result['name']}-seed{result['seed']}"
    return f"{name}: {tops} | x0 error {errors} | {result['images']:,} images"


class Progress:
    """Says each run that ends, how many are left, and for about how long."""

    def __init__(self, grid: Comparison, total: int):
        self.grid, self.total, self.done, self.began = grid, total, 0, time.monotonic()

    def ended(self, cell: Any, why: str | None) -> None:
        """`why` it is not finished; None where it is."""
        self.done += 1
        print(f"{cell.folder}: {why}" if why else line_of(self.grid.result(cell)))
        left = self.total - self.done
        seconds = (time.monotonic() - self.began) / self.done * left
        if left:
            text = timedelta(seconds=round(seconds))
            print(f"{self.done} of {self.total} runs done, about {text} left", flush=True)


# ------------------------------------------------------------------------- one after the other


def run_here(grid: Comparison, cells: Sequence[Any], progress: Progress) -> list[Any]:
    """Trains cells one after the other; gives those that failed. On an accelerator the programs of
    all compile side by side meanwhile, into the cache of compiled programs.
    """
    import jax

    failed, compiled = [], {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if jax.default_backend() != "cpu" and jax.config.jax_compilation_cache_dir:
            compiled = {cell: pool.submit(compile_step, grid.plan(cell)[0]) for cell in cells}
        for cell in cells:
            why = attempt(functools.partial(train_compiled, grid, cell, compiled.get(cell)))
            progress.ended(cell, why)
            if why:
                failed.append(cell)
            if why == STOPPED:
                pool.shutdown(wait=False, cancel_futures=True)
                return [other for other in cells if grid.result(other) is None]
    return failed


STOPPED = "stopped by a signal"


def train_compiled(grid: Comparison, cell: Any, compiled: Future | None) -> str | None:
    if compiled is not None:
        compiled.result()
    return None if grid.run(cell) else STOPPED


def attempt(run: Callable[[], str | None]) -> str | None:
    """What `run` says; the error that it raises, with its traceback on stderr, since it does not
    cost the other runs.
    """
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        return f"failed: {error}"


def compile_step(plan: Any) -> None:
    """Compiles a run's step into the cache, where `loop.train` finds it."""
    import jax

    from imagen_jax.devices.compile_options import compiler_options
    from imagen_jax.training.batches import abstract_batch
    from imagen_jax.training.loop import trace_step

    state = jax.eval_shape(plan.init, jax.random.key(0))
    batch = abstract_batch(plan.config)
    lowered = trace_step(plan.train_step, state, batch, plan.mesh, plan.frozen).lower()
    lowered.compile(compiler_options())


# -------------------------------------------------------------------------------- side by side


def run_processes(
    cells: Sequence[Any],
    options: argparse.Namespace,
    overrides: dict[str, str],
    progress: Progress,
) -> list[Any]:
    """Trains cells in `options.jobs` processes at a time; gives those that failed."""
    free: queue.Queue[list[int]] = queue.Queue()
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for job in range(options.jobs):
        free.put(processors[job :: options.jobs] or processors)
    children: list[subprocess.Popen] = []
    stopping = threading.Event()

    def train(cell: Any) -> str | None:
        own = free.get()
        try:
            if stopping.is_set():
                return STOPPED
            if own:
                os.sched_setaffinity(0, own)  # of this thread, and so of the process it starts
            child = subprocess.Popen(child_command(cell, options, overrides))
            children.append(child)
            code = child.wait()
            return {0: None, os.EX_TEMPFAIL: STOPPED}.get(code, f"failed with status {code}")
        finally:
            free.put(own)

    def stop(number: int, frame: Any) -> None:
        stopping.set()
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    failed = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with ThreadPoolExecutor(options.jobs) as pool:
        started = {pool.submit(train, cell): cell for cell in cells}
        for future in as_completed(started):
            progress.ended(started[future], why := future.result())
            if why:
                failed.append(started[future])
    return failed


def child_command(cell: Any, options: argparse.Namespace, overrides: dict[str, str]) -> list[str]:
    """The command line that trains one cell of this one's grid."""
    given = {
        "config": options.config,
        "out": options.out,
        "flops": repr(options.flops),
        "seeds": cell.seed,
        "cells": cell.name,
        "splits": ",".join(options.splits),
        "prompts": options.prompts,
        "points": options.points,
        "only": cell.folder,
    }
    keys = [f"--config.{key}={value}" for key, value in overrides.items()]
    return [sys.executable, *COMMAND, *(f"--{k}={v}" for k, v in given.items()), *keys]


def main(arguments: list[str] | None = None) -> None:
    run_configured(parser(), compare, arguments)
