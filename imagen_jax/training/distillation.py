"""What a student learns from a teacher: guidance in one evaluation, and long steps.

Each kind says which x0 the student should give at x_t. The loss is then that of any training
(`Loss`; the weight "v" is "SNR + 1" of arXiv 2202.00512):

- guidance: the teacher's guided x0 (arXiv 2210.03142, section 3.1).
- progressive: the x0 of the one step that lands where several of the teacher's do, two in the paper
  (arXiv 2202.00512, algorithm 2). The student of one run is the teacher of the next, for half as
  many steps.
- flow_map: one student for several numbers of steps, which sees where a step leads to. The shortest
  steps are learned from the teacher's; a longer one from two of half its length by the student
  itself, as it is: no gradient passes (arXiv 2410.12557, eq. 4; 2505.18825, PSD). Longer ones come
  in as the run goes by, all in its first half.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax import models
from imagen_jax.cascade.stage import Conditions, Stage, make_stage_denoiser
from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.flow_map import jump, jump_x0
from imagen_jax.models import TrainingParams
from imagen_jax.text.encoder import null_text
from imagen_jax.training.run_config import DistillConfig
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings

STEP_LENGTH = 6  # what the key of a train step is folded with for the length of the student's
Times = Float[Array, " batch"]


def step_times(
    config: DistillConfig, key: Keys, times: Times, progress: Float[Array, ""]
) -> tuple[Times, Times]:
    """(t, s) of each example's step: all of one length, which is a random one.

    key: of the train step. times: in [0, 1), where on the way each step lies. progress: the share
    of the run that is done.
    """
    if config.kind == "guidance":
        return times, times
    counts = jnp.asarray(sorted(config.steps, reverse=True), jnp.int32)
    known = jnp.ceil(2.0 * progress * len(counts)).astype(jnp.int32)
    length_key = jax.random.fold_in(key, STEP_LENGTH)
    count = counts[jax.random.randint(length_key, (), 0, jnp.clip(known, 1, len(counts)))]
    place = jnp.floor(times * count)
    return (place + 1.0) / count, place / count


def make_target(config: DistillConfig, student: Stage) -> Callable[..., Images]:
    """(student's parameters, teacher's, x_t, (t, s), conditions as of `apply_network`, null text or
    None for zeros) -> the x0 that the student should give.
    """
    teacher = config.stage

    def target(
        own: TrainingParams,
        weights: Params,
        x_t: Images,
        times: tuple[Times, Times],
        given: dict[str, Any],
        null: TextEmbeddings | None,
    ) -> Images:
        if "text" in given:
            null = null_text(*given["text"].values.shape) if null is None else null
            null = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(x_t), *x.shape[1:])), null)
        level = {name: given[name] for name in ("aug_level",) if name in given}
        conditions = Conditions(
            null=null, **{name: given[name] for name in given.keys() - level.keys()}
        )

        def denoiser(stage: Stage, params: Params, **changes: float) -> Denoiser:
            sampling = replace(config.sampling, **changes, **level)
            network = own._replace(params=params, dropout=None)
            return make_stage_denoiser(stage, network, conditions, sampling)

        taught = denoiser(teacher, models.compute_params(teacher.network, weights))
        if config.kind == "guidance":
            return taught(x_t, times[0]).x0
        by_teacher = partial(walk, taught, teacher, x_t, *times, config.steps_of_one)
        if config.kind == "progressive":
            return by_teacher()
        frozen = denoiser(student, jax.lax.stop_gradient(own.params), guidance=1.0)
        by_itself = partial(walk, frozen, student, x_t, *times, 2)
        longer = times[0][0] - times[1][0] > 1.5 / max(config.steps)
        return jax.lax.cond(longer, by_itself, by_teacher)

    return target


def walk(denoise: Denoiser, stage: Stage, x_t: Images, t: Times, s: Times, steps: int) -> Images:
    """The x0 of the one step from t to s that lands where so many equal steps do."""
    path, x = stage.schedule, x_t
    times = [t + (s - t) * (i / steps) for i in range(steps + 1)]
    for start, stop in itertools.pairwise(times):
        x0 = denoise(x, start, **({"s": stop} if stage.is_flow_map else {})).x0
        x = jump(x, x0, path.logsnr(start), path.logsnr(stop), path)
    return jump_x0(x_t, x, path.logsnr(t), path.logsnr(s), path)
