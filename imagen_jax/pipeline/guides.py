"""The weaker models of autoguidance (arXiv 2406.02507) beside a cascade, while it samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import NO_GUIDE, GuidedParams, Stage
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.pipeline.lazy_params import LazyParams, as_lazy
from imagen_jax.pipeline.request import Request


@dataclass(frozen=True)
class Guide:
    """A stage of another model that guides one of ours; `about` tells which, in JSON values."""

    stage: Stage
    params: LazyParams
    about: Mapping[str, Any]


def guides_in_use(
    cascade: Cascade, guides: Mapping[str, Guide], sampling: Sequence[Sampling], request: Request
) -> dict[str, Guide]:
    """Those with which the stages of a request are sampled.

    Raises:
        ValueError: a stage is to be guided by a weaker model, and has none; a negative prompt, from
            which no stage is led away.
    """
    kinds = {cascade.stages[i].name: sampling[i].guidance_kind for i in request.stages}
    names = [name for name, kind in kinds.items() if kind == "auto"]
    for name in names:
        if name not in guides:
            raise ValueError(NO_GUIDE.format(name))
    distilled = any(cascade.stages[i].is_flow_map for i in request.stages)
    led = [
        sampling[i].guidance_kind != "auto" and not (distilled and sampling[i].guidance == 1)
        for i in request.stages
    ]
    if request.negative_prompt and not any(led):
        raise ValueError(
            f"negative_prompt {request.negative_prompt!r} changes nothing: guidance_kind 'auto' "
            "leads away from a weaker model, and a distilled stage from what its teacher did."
        )
    return {name: guides[name] for name in names}


def with_guides(params: Mapping, guides: Mapping[str, Guide]) -> Mapping:
    """Parameters by the stages' names, with the guide's beside those of a stage that has one."""
    if not guides:
        return params
    base = as_lazy(params)

    def pair(name: str) -> GuidedParams:
        guide = guides[name]
        return GuidedParams(base[name], guide.params[guide.stage.name], guide.stage)

    def free(name: str) -> None:
        base.free(name)
        if name in guides:
            guides[name].params.free(guides[name].stage.name)

    readers = {name: partial(base.__getitem__, name) for name in base}
    return LazyParams(readers | {name: partial(pair, name) for name in guides}, base.probe, free)
