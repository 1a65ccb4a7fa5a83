"""How one stage is sampled: one dataclass, from the config to the compiled program."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import jax
import numpy as np
from jaxtyping import Array, Float, Int

# As values, as arrays, and as jax describes the arguments of a lowered program.
Number = float | int | np.number | Float[Array, "..."] | Int[Array, "..."] | jax.stages.ArgInfo
# One for all stages or for the first, or one a stage; None where the stage keeps its own.
ByStage = Number | np.ndarray | Array | Sequence[Number | None]
Whole = int | np.integer | Int[Array, ""] | jax.stages.ArgInfo
Spacing = str | tuple[int, ...]

FLOATS = [
    "guidance",
    "guidance_interval",
    "guidance_rescale",
    "guidance_eta",
    "guidance_norm",
    "guidance_momentum",
    "zero_init_steps",
    "percentile",
    "cap",
    "gamma",
    "eta",
    "churn",
    "churn_interval",
    "churn_noise",
    "aug_level",
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["steps", *FLOATS],
    meta_fields=["sampler", "guidance_kind", "threshold", "learned_variance"],
    drop_fields=["spacing", "steps_offset", "lambda_min", "sigma_min", "sigma_max"],
)
@dataclass(frozen=True)
class Sampling:
    """How one stage is sampled. `check_sampling` checks it where it is read or overridden.

    In a compiled program numbers are traced (`traced`), so that new ones never recompile; what
    makes the time grid (spacing to sigma_max) does so before, and is not there.

    sampler: a key of SAMPLERS. steps: their number. spacing: of the times, a key of SPACINGS or
    SIGMA_SPACINGS; for schedules that count time steps also of STEP_SPACINGS or STEP_LISTS, or the
    time steps themselves (a list fixes `steps`). steps_offset, lambda_min: see `spaced_steps`.
    sigma_min, sigma_max: see `sigma_grid`.

    guidance: weight of the condition, 1 is none (arXiv 2205.11487, eq. 2). guidance_interval: the
    times t between which it acts, ends included (arXiv 2404.07724). guidance_rescale: 0 is none, 1
    brings the standard deviation of the guided output fully back to that of the conditional one
    (arXiv 2305.08891, section 3.4).

    guidance_kind: a key of GUIDANCES. cfg: classifier-free, the paper's. apg: adaptive projected
    (arXiv 2410.02416): guidance_eta, of the part along x0, 1 is all of it; guidance_norm, which the
    update of an image is cut to (L2 over all its values, so it grows with the image), None for no
    limit; guidance_momentum, of earlier steps' updates, below 0 against them. cfg_zero: CFG-Zero*
    (arXiv 2503.18886): in the first zero_init_steps nothing moves. auto: autoguidance (arXiv
    2406.02507), away from a second, weaker network (`load_model(..., guide=...)`).

    threshold: a key of THRESHOLDS. percentile: of |x0| in each image, for dynamic thresholding, in
    (0, 100] (the paper: 99.5). cap: its scale is never above it, None for none (the paper: none;
    DeepFloyd IF: 1.5).

    gamma: of ddpm, in [0, 1]: 0 takes the posterior's variance, 1 the forward process's. The paper
    gives no value; 0.3 is our choice. learned_variance: whether ddpm takes the network's own, if
    it has one, instead of gamma's. eta: of ddim, in [0, 1]: 0 is deterministic, 1 is ddpm with
    gamma 0. churn: of heun, 0 is deterministic: each step first raises sigma / alpha by the share
    churn / steps, 0.41 at most (S_churn of arXiv 2206.00364, algorithm 2); churn_interval: where it
    starts at a time t between these, ends included (S_tmin and S_tmax, which are sigma / alpha:
    such a level lies at `schedule.time(-2 log(sigma / alpha))`); churn_noise: the standard
    deviation of that noise, 1 or a little more (S_noise). aug_level: noise on the low-resolution
    input, in [0, 1].
    """

    sampler: str = "ddpm"
    steps: Whole = 256
    spacing: Spacing = "time"
    steps_offset: int = 0
    lambda_min: float | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    guidance: Number = 1.0
    guidance_interval: tuple[Number, Number] = (0.0, 1.0)
    guidance_rescale: Number = 0.0
    guidance_kind: str = "cfg"
    guidance_eta: Number = 0.0
    guidance_norm: Number | None = None
    guidance_momentum: Number = -0.5
    zero_init_steps: Number = 1
    threshold: str = "dynamic"
    percentile: Number = 99.5
    cap: Number | None = None
    gamma: Number = 0.3
    eta: Number = 0.0
    churn: Number = 0.0
    churn_interval: tuple[Number, Number] = (0.0, 1.0)
    churn_noise: Number = 1.0
    learned_variance: bool = True
    aug_level: Number = 0.1


def traced(sampling: Sampling) -> Sampling:
    """The same for a compiled program: float32 numbers, `steps` int32, and inf for no limit."""
    floats = {name: getattr(sampling, name) for name in FLOATS}
    floats |= {name: inf for name in ("cap", "guidance_norm") if floats[name] is None}
    return replace(sampling, steps=np.int32(sampling.steps), **jax.tree.map(np.float32, floats))
