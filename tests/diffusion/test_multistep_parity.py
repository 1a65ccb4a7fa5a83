"""UniPC and DPM-Solver++ against diffusers' schedulers, on its flow and on discrete betas.

The network is a fixed function of image and noise level, the grid is the scheduler's own, and
what diffusers draws is given to both. `unipc` is its order 2, `unipc_3` its order 3.
"""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.denoiser import make_denoiser
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, sample_loop
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta, Flow, network_time
from imagen_jax.diffusion.time_grids import padded_grid, sampling_grid, step_grid

diffusers = pytest.importorskip("diffusers", reason="the reference schedulers")
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler  # noqa: E402
from scheduler_runs import TABLE, distance, from_torch, network, to_torch  # noqa: E402

COUNT = 12
FLOW, BETAS = Flow(), DiscreteBeta("linear")
both_paths = pytest.mark.parametrize("schedule", [FLOW, BETAS], ids=["flow", "betas"])


def their_run(kind, schedule, **options):
    """(all states, the grid that they are at)."""
    flow = schedule == FLOW
    options["prediction_type"] = "flow_prediction" if flow else "v_prediction"
    scheduler = kind(use_flow_sigmas=flow, flow_shift=3.0, **options)
    scheduler.set_timesteps(COUNT)
    x, states = to_torch(TABLE[0]), []
    for i, step in enumerate(scheduler.timesteps):
        seen = 1000.0 * scheduler.sigmas[i].item() if flow else step.item()
        output = network(np, from_torch(x), seen, 1, outputs=3).astype(np.float32)
        drawn = (
            {} if kind is UniPCMultistepScheduler else {"variance_noise": to_torch(TABLE[i + 1])}
        )
        x = scheduler.step(to_torch(output), step, x, **drawn).prev_sample
        states.append(from_torch(x))
    if flow:
        return states, padded_grid(scheduler.sigmas.numpy())
    return states, step_grid(schedule, scheduler.timesteps.numpy())


@functools.partial(jax.jit, static_argnums=(0, 1))
def our_state(name, schedule, grid):
    def predict(x, t):
        return network(jnp, x, network_time(schedule, t), 1, outputs=3)

    denoise = make_denoiser(predict, None, schedule, "v", Sampling(threshold="none"))
    table = jnp.asarray(TABLE)
    return sample_loop(
        SAMPLERS[name], denoise, schedule, grid, initial_state(table[0], name), lambda i: table[i]
    ).x  # fmt: skip


def compare(name, schedule, theirs, grid):
    for stop, expected in enumerate(theirs, 1):
        if stop in (1, 2, 3, 4, COUNT - 2, COUNT - 1, COUNT):
            ours = our_state(name, schedule, grid._replace(stop=np.int32(stop)))
            assert distance(ours, expected) < 1e-5, stop


@both_paths
@pytest.mark.parametrize(("name", "order"), [("unipc", 2), ("unipc_3", 3)])
def test_unipc_is_diffusers(name, order, schedule):
    theirs, grid = their_run(UniPCMultistepScheduler, schedule, solver_order=order)
    compare(name, schedule, theirs, grid)


@both_paths
def test_sde_dpm_solver_is_diffusers(schedule):
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    compare("dpmpp_2m_sde", schedule, *their_run(DPMSolverMultistepScheduler, schedule, **options))


@both_paths
def test_dpm_solver_of_third_order_is_unipc_without_its_corrector(schedule):
    options = {"solver_order": 3, "disable_corrector": list(range(COUNT))}
    theirs, grid = their_run(UniPCMultistepScheduler, schedule, **options)
    compare("dpmpp_3m", schedule, theirs, grid)


def test_third_order_of_the_sde_is_that_of_k_diffusion():
    """Its dpmpp_3m_sde with eta 1, x / alpha over sigma / alpha, but for twice its phi_3: the whole
    integral. diffusers' has 1/2 subtracted there that should be added.
    """
    times = np.linspace(0.97, 0.0, 9)
    grid, x, history = padded_grid(times), TABLE[0] / (1.0 - times[0]), []
    for i, (t, s) in enumerate(pairwise(times[:-1])):
        v = network(np, (1.0 - t) * x, 1000.0 * t, 1, outputs=3)
        history.append((np.log((1.0 - t) / t), (1.0 - t) * x - t * v))
        h_eta = 2.0 * (np.log((1.0 - s) / s) - history[-1][0])
        x = np.exp(-h_eta) * x - np.expm1(-h_eta) * history[-1][1]
        if i:
            (level_1, x0_1), (level, x0) = history[-2:]
            r0 = 2.0 * (level - level_1) / h_eta
            d1 = (x0 - x0_1) / r0
            phi_2 = np.expm1(-h_eta) / h_eta + 1.0
            if i in (1, 6):  # of 8 steps, the last of which leads to clean data
                x += -0.5 * np.expm1(-h_eta) * d1
            else:
                level_2, x0_2 = history[-3]
                r1 = 2.0 * (level_1 - level_2) / h_eta
                d2 = (d1 - (x0_1 - x0_2) / r1) / (r0 + r1)
                x += phi_2 * (d1 + r0 * d2) - 2.0 * (phi_2 / h_eta - 0.5) * d2
        x += s / (1.0 - s) * np.sqrt(-np.expm1(-h_eta)) * TABLE[i + 1]
        ours = our_state("dpmpp_3m_sde", FLOW, grid._replace(stop=np.int32(i + 1)))
        assert distance(ours, (1.0 - s) * x) < 1e-5, i


@pytest.mark.parametrize("count", [2, 5, 12])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_spacings_of_sigma_are_diffusers(spacing, count):
    """Between the ends of the table: the last but one level is that of time step 0."""
    theirs = UniPCMultistepScheduler(**{f"use_{spacing}_sigmas": True})
    theirs.set_timesteps(count)
    low, high = (float(theirs.sigmas[k]) for k in (-2, 0))
    sampling = Sampling(steps=count, spacing=spacing, sigma_min=low, sigma_max=high)
    grid = sampling_grid(BETAS, sampling)
    assert int(grid.stop) == count
    ours = np.exp(-0.5 * np.asarray(BETAS.logsnr(grid.times[:count])))
    np.testing.assert_allclose(ours, theirs.sigmas[:-1], rtol=2e-4)
    assert grid.times[count] == 0.0
