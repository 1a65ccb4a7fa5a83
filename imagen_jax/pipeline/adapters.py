"""A stage's parameters with an adapter from a file merged in."""

import functools
import os
from collections.abc import Mapping

from imagen_jax.cascade.cascade import Cascade, part_shapes
from imagen_jax.cascade.stage import Stage
from imagen_jax.convert.lora import LoraFile, misfits, read_lora
from imagen_jax.models.lora import merge_lora
from imagen_jax.pipeline.lazy_params import LazyParams, as_lazy
from imagen_jax.typing import Params


def choose_stage(file: LoraFile, cascade: Cascade, name: str | None) -> Stage:
    """The stage that an adapter is for: as told, as the file says, or the only one that it fits."""
    stages = {stage.name: stage for stage in cascade.stages}
    if name is None and file.stage_name in stages:
        name = file.stage_name
    if name is not None:
        if name not in stages:
            raise ValueError(f"There is no stage {name!r}, only {', '.join(stages)}.")
        return stages[name]
    if len(stages) == 1:
        return cascade.stages[0]
    fitting = [own for own in stages if not misfits(file, stages[own], part_shapes(cascade, own))]
    if len(fitting) > 1:
        raise ValueError(f"{file.path} fits the stages {', '.join(fitting)}: say which by stage=.")
    return stages[fitting[0]] if fitting else cascade.stages[0]


class AdaptedParams(LazyParams):
    """Parameters of which one stage's get an adapter merged in when they are first asked for."""

    def __init__(self, base: Mapping, name: str, lora: Params, scale: float):
        self._base = as_lazy(base)
        readers = {part: functools.partial(self._base.__getitem__, part) for part in base}
        readers[name] = lambda: merge_lora(self._base[name], lora, scale)
        super().__init__(readers, self._base.probe)

    def free(self, name: str) -> None:
        super().free(name)
        self._base.free(name)


def adapted_params(
    path: str | os.PathLike, cascade: Cascade, params: Mapping, scale: float, stage: str | None
) -> tuple[str, AdaptedParams]:
    """The name of the stage that an adapter is for, and all parameters with it merged into those.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or does not fit the stage; the message lists where.
    """
    file = LoraFile(path)
    chosen = choose_stage(file, cascade, stage)
    lora = read_lora(file, chosen, part_shapes(cascade, chosen.name))
    return chosen.name, AdaptedParams(params, chosen.name, lora, scale)
