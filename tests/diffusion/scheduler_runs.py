"""Runs of diffusers' schedulers with noise from a table, and the same runs of ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from imagen_jax.diffusion.denoiser import make_denoiser
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, sample_loop
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta

COSINE = DiscreteBeta()
IF_STAGE_1 = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}
SHAPE = (2, 6, 5, 3)  # not square: rows and columns must not be mixed up
RNG = np.random.default_rng(7)
MIX = RNG.normal(0, 0.8, (2, 3, 6))
PHASE = RNG.normal(0, 2.0, (2, 6))
TABLE = RNG.standard_normal((65, *SHAPE)).astype(np.float32)


def network(xp, x, step, branch, outputs=6):
    """A fixed function of an image (channels last) and a time step, as a network would be.

    xp: numpy or jax.numpy. branch: 1 with the condition, 0 without. The last three of six outputs
    are a learned variance, which leaves [-1, 1] a little, as those of trained networks do.
    """
    step = xp.asarray(step, x.dtype).reshape(-1, 1, 1, 1)
    wave = xp.sin(x @ xp.asarray(MIX[branch], x.dtype) + xp.asarray(PHASE[branch], x.dtype))
    return (1.2 * wave + 0.3 * xp.cos(step / 100.0))[..., :outputs]


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def from_torch(x):
    return np.moveaxis(x.numpy(), 1, -1)


def guided_output(x, step, weight, learned):
    """As the pipelines mix it: eps alone, and the variance of the conditional output."""
    conditional, unconditional = (network(np, from_torch(x), step, branch) for branch in (1, 0))
    mixed = unconditional[..., :3] + weight * (conditional[..., :3] - unconditional[..., :3])
    out = np.concatenate([mixed, conditional[..., 3:]], -1) if learned else mixed
    return to_torch(out.astype(np.float32))


def inject(monkeypatch, module, noises):
    """Makes a diffusers module draw these noises (channels last), in order."""
    remaining = iter(noises)

    def draw(shape, **_):
        noise = to_torch(next(remaining))
        assert noise.shape == shape
        return noise

    monkeypatch.setattr(module, "randn_tensor", draw)


def scheduler_run(scheduler, x, weight=3.0, learned=True, after=None, steps=None):
    """Every state on the way from x (channels last).

    after(before, x): what is made of each state. steps: all that the scheduler has when None.
    """
    states, x = [], to_torch(x)
    for step in scheduler.timesteps if steps is None else steps:
        output = guided_output(x, step.numpy(), weight, learned)
        before, x = x, scheduler.step(output, step, x, return_dict=False)[0]
        x = x if after is None else after(before, x)
        states.append(from_torch(x))
    return states


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def compiled_run(schedule, wrapped, threshold, prediction, learned, grid, x, table, numbers, given):
    """The state after each of the grid's first steps, all in one program."""
    sampler, wrap = wrapped
    weight, gamma, cap = numbers
    sampling = Sampling(
        guidance=weight, threshold=threshold, percentile=95.0, cap=cap, gamma=gamma,
        learned_variance=learned,
    )  # fmt: skip

    def predict(x, t):
        return network(jnp, x, schedule.time_step(t), 1)

    def pair(x, t):
        return predict(x, t), network(jnp, x, schedule.time_step(t), 0)

    denoise = make_denoiser(predict, pair, schedule, prediction, sampling)
    stepper = SAMPLERS[sampler] if wrap is None else wrap(SAMPLERS[sampler], given)

    def advance(state, index):
        step = grid._replace(start=index, stop=index + 1)
        state = sample_loop(stepper, denoise, schedule, step, state, lambda i: table[i], sampling)
        return state, state.x

    return jax.lax.scan(advance, initial_state(x, sampler), grid.start + jnp.arange(64))[1]


def our_run(
    schedule, grid, x, *, sampler="ddpm", weight=3.0, gamma=0.0, threshold="dynamic", cap=1.5,
    learned=True, prediction="eps", start=0, table=TABLE, wrap=None, given=None,
):  # fmt: skip
    """All states of our sampler after each step, the noise of step i from table[i + 1].

    wrap(sampler, given) makes another sampler of it.
    """
    numbers = tuple(map(np.float32, (weight, gamma, cap)))
    grid = grid._replace(start=np.int32(start))
    states = compiled_run(
        schedule, (sampler, wrap), threshold, prediction, learned,
        grid, np.asarray(x, np.float32), table, numbers, given,
    )  # fmt: skip
    return list(np.asarray(states)[: int(grid.stop) - start])


def distance(ours, theirs):
    """Relative L2."""
    ours, theirs = (np.asarray(value, np.float64) for value in (ours, theirs))
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
