"""A stage's parameters with an adapter from a file merged in."""

from collections.abc import Mapping
from functools import partial

from imagen_jax.cascade.cascade import Cascade, part_shapes
from imagen_jax.cascade.stage import Stage
from imagen_jax.convert.lora import LoraFile, misfits, read_lora
from imagen_jax.models.lora import merge_lora
from imagen_jax.pipeline.lazy_params import LazyParams, as_lazy
from imagen_jax.storage.quantized import refuse_quantized


def choose_stage(file: LoraFile, cascade: Cascade, name: str | None) -> Stage:
    """The stage that an adapter is for: the one named, the one in the file, or the only fit.

    Raises:
        ValueError: there is no stage of that name, or the adapter fits several.
    """
    stages = {stage.name: stage for stage in cascade.stages}
    if name is not None and name not in stages:
        raise ValueError(f"There is no stage {name!r}, only {', '.join(stages)}.")
    for known in (name, file.stage_name):
        if known in stages:
            return stages[known]
    if len(stages) == 1:
        return cascade.stages[0]
    fitting = [own for own in stages if not misfits(file, stages[own], part_shapes(cascade, own))]
    if len(fitting) > 1:
        raise ValueError(f"{file.path} fits the stages {', '.join(fitting)}: say which by stage=.")
    return stages[fitting[0]] if fitting else cascade.stages[0]


def adapted_params(
    file: LoraFile, cascade: Cascade, params: Mapping, scale: float, stage: str | None
) -> tuple[str, LazyParams]:
    """The name of the stage that an adapter is for, and all parameters; its own get the adapter
    merged in when they are first asked for.

    Raises:
        ValueError: it does not fit the stage; the message lists where.
    """
    base = as_lazy(params)
    chosen = choose_stage(file, cascade, stage)
    if base.knows_shapes:
        refuse_quantized(base.shapes(chosen.name), "An adapter")
    lora = read_lora(file, chosen, part_shapes(cascade, chosen.name))
    readers = {name: partial(base.__getitem__, name) for name in base}
    readers[chosen.name] = lambda: merge_lora(base[chosen.name], lora, scale)
    return chosen.name, LazyParams(readers, base.probe, base.free)
