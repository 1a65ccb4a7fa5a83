"""What XLA is asked to do otherwise than by default, for our programs alone: an environment's
XLA_FLAGS would hold for every program of the process.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

# What YNNPACK does on CPUs. By default convolutions are among it, which XLA's other code does up to
# 2.3 times as fast; without its sums a norm's gradient takes twice as long.
YNNPACK = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# By platform.
OPTIONS: dict[str, dict[str, str | bool]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": YNNPACK,
        # It drops optimization barriers before operations are fused (`devices/cpu_fusion.py`).
        "xla_disable_hlo_passes": "cse_barrier_expander",
    },
    "gpu": {
        # It times variants of every fusion, of which a U-Net has thousands.
        "xla_gpu_experimental_enable_fusion_autotuner": False,
        # It compiles about 30 tilings of each matrix product's shape (openxla/xla#13108: 399 of 12
        # shapes in 3.6 minutes) to choose one; cuBLASLt's kernels are there already.
        "xla_gpu_enable_triton_gemm": False,
    },
}


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """`compiler_options` of `jax.jit` and of `Lowered.compile` for "cpu", "gpu" or "tpu" (None: the
    platform that JAX runs on); without those that this jaxlib does not know.
    """
    wanted = OPTIONS.get(platform or jax.default_backend(), {})
    if _known(*wanted.items()):
        return dict(wanted)
    return dict(option for option in wanted.items() if _known(option))


@functools.cache
def _known(*options: tuple[str, str | bool]) -> bool:
    """Whether a program can be compiled with options: jax has no list of them."""
    program = jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), "int32"))
    try:
        program.compile(dict(options))
    except RuntimeError:  # No such compile option
        return False
    return True


@contextlib.contextmanager
def random_by_kernel() -> Iterator[None]:
    """Random numbers by a kernel of jaxlib's on GPUs, the same numbers, and not by code that is
    compiled for each array: it takes a sixth of the time to compile the parameters of a U-Net.
    Each GPU makes the arrays whole, also those of which it keeps a part.
    """
    name = "jax_threefry_gpu_kernel_lowering"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


class Program:
    """`jax.jit(function)` with `compiler_options()`. Within another program it is a part of that
    one, as jax has options for outermost programs alone.
    """

    def __init__(self, function: Callable, **options: Any):
        functools.update_wrapper(self, function)
        self._plain = jax.jit(function, **options)
        self._options = options

    @functools.cached_property
    def _compiled(self) -> Callable:
        # Made at the first call: which platform JAX runs on is not asked for by an import.
        return jax.jit(self.__wrapped__, compiler_options=compiler_options(), **self._options)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        leaves = jax.tree.leaves((arguments, named))
        nested = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (self._plain if nested else self._compiled)(*arguments, **named)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """The program for any platform, whose `compiler_options` are `compile`'s to get."""
        return self._plain.lower(*arguments)

    def _cache_size(self) -> int:
        """How many programs there are, as of what `jax.jit` returns."""
        return self._compiled._cache_size()


def program(**options: Any) -> Callable[[Callable], Program]:
    """Decorates a function to be a `Program`, with options of `jax.jit`."""
    return functools.partial(Program, **options)
