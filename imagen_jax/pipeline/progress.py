"""Progress: what a callback sees of it, and a bar."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen_jax.cascade.stage import Stage
from imagen_jax.diffusion.steps import SamplerState

with warnings.catch_warnings():  # not later: beside a thread that compiles it takes 0.1 s more
    warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of text
    from tqdm.auto import tqdm


@dataclass(frozen=True)
class Progress:
    """What a callback sees: `step` of `steps` are done of one batch at one stage.

    first, count: which of all samples the batch holds. `x0` is the model's estimate of the
    finished images, floats in about [-1, 1].
    """

    stage: Stage
    step: int
    steps: int
    first: int
    count: int
    state: SamplerState

    @property
    def x0(self) -> np.ndarray:
        """The estimated images, [count, height, width, 3] in about [-1, 1]."""
        return np.asarray(self.state.x0)[: self.count]


Callback = Callable[[Progress], None]


def progress_bar(total: int, *, unit: str, shown: bool = True, **options: Any) -> Any:
    """A bar of tqdm; `options` are tqdm's. Not `shown`, it does nothing."""
    return tqdm(total=total, unit=unit, disable=not shown, **options)


def print_beside_bars(line: Any, file: Any = None) -> None:
    """`print`, above the bars that are shown; on standard output when None."""
    tqdm.write(str(line), file)
