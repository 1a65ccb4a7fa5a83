"""What an ONNX export gives and costs in ONNX Runtime, beside jax on the same machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from imagen_jax.devices.compile_options import compiler_options
from imagen_jax.export.examples import example_inputs
from imagen_jax.export.parts import Part

TURNS = 7  # of each, one after the other


@dataclass(frozen=True)
class Comparison:
    """difference: relative L2 of the first output. Medians of seconds: by the clock, and of
    processor time.
    """

    difference: float
    onnx: tuple[float, float]
    jax: tuple[float, float]

    def __str__(self) -> str:
        one, other = (
            [f"{1e3 * seconds:.1f}" for seconds in pair] for pair in (self.onnx, self.jax)
        )
        ratio = self.onnx[0] / self.jax[0]
        return (
            f"relative L2 {self.difference:.1e}; ONNX Runtime {one[0]} ms (processors {one[1]}), "
            f"jax {other[0]} ms ({other[1]}), ratio {ratio:.2f}"
        )


def compare(part: Part, file: Path, batch: int = 1, steps: int = 4, threads: int = 0) -> Comparison:
    """Runs a part from its file and in jax, in turns.

    Args:
        threads: of ONNX Runtime; 0 for all cores.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = example_inputs(part, batch, steps)
    program = jax.jit(lambda arrays: part.function(**arrays), compiler_options=compiler_options())
    runs = {"onnx": lambda: session.run(None, given), "jax": lambda: _run(program, given)}
    found, wanted = (np.asarray(run()[0], np.float64) for run in runs.values())
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            begun = time.perf_counter(), time.process_time()
            run()
            ended = time.perf_counter(), time.process_time()
            spent[name].append((ended[0] - begun[0], ended[1] - begun[1]))
    medians = {name: tuple(map(float, np.median(each, axis=0))) for name, each in spent.items()}
    return Comparison(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)), **medians)


def _run(program: Callable, given: dict[str, np.ndarray]) -> Any:
    return jax.block_until_ready(program(given))
