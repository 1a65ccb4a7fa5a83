"""Discrete schedules, time steps and samplers against diffusers' schedulers, noise injected.

The network is a fixed function of the image and the time step. `dpmpp_2m` corresponds to
DPMSolverMultistepScheduler at its defaults: order 2, midpoint, final_sigmas_type "zero", which
makes the last step of first order whatever `lower_order_final` says. With "sigma_min" and
lower_order_final off it corresponds to a grid that ends at time step 0 instead of clean data.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.schedules import (
    BETAS,
    DiscreteBeta,
    alphas_cumprod,
    network_time,
    training_time,
)
from imagen_jax.diffusion.time_grids import STEP_LISTS, padded_grid, spaced_steps, step_grid

diffusers = pytest.importorskip("diffusers", reason="the reference schedulers")
import torch  # noqa: E402
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler  # noqa: E402
from diffusers.pipelines import deepfloyd_if  # noqa: E402
from diffusers.schedulers import scheduling_ddpm  # noqa: E402
from scheduler_runs import (  # noqa: E402
    COSINE,
    IF_STAGE_1,
    SHAPE,
    TABLE,
    distance,
    from_torch,
    guided_output,
    inject,
    network,
    our_run,
    scheduler_run,
    to_torch,
)

IF_SOLVER = {**IF_STAGE_1, "lambda_min_clipped": -5.1}
every_kind = pytest.mark.parametrize("kind", BETAS)


# ---- schedules


@every_kind
def test_the_table_is_diffusers(kind):
    theirs = DDPMScheduler(beta_schedule=kind)
    np.testing.assert_allclose(DiscreteBeta(kind).betas(), theirs.betas, rtol=1e-6)
    np.testing.assert_allclose(alphas_cumprod(DiscreteBeta(kind)), theirs.alphas_cumprod, rtol=2e-6)
    if kind == "squaredcos_cap_v2":
        np.testing.assert_array_equal(alphas_cumprod(COSINE), theirs.alphas_cumprod)


@every_kind
def test_time_step_n_lies_at_n_plus_one_thousandth(kind):
    schedule = DiscreteBeta(kind)
    t = jnp.asarray((np.arange(1000) + 1) / 1000, jnp.float32)
    np.testing.assert_array_equal(schedule.time_step(t), np.arange(1000))
    np.testing.assert_array_equal(network_time(schedule, t), np.arange(1000))
    signal = alphas_cumprod(schedule).astype(np.float64)
    np.testing.assert_allclose(schedule.logsnr(t), np.log(signal / (1 - signal)), atol=3e-6)


def test_noised_images_are_diffusers():
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    x0, eps = map(jnp.asarray, TABLE[:2])
    for steps in ([0, 999], [250, 4], [500, 998]):
        expected = theirs.add_noise(to_torch(TABLE[0]), to_torch(TABLE[1]), torch.tensor(steps))
        ours = add_noise(x0, eps, COSINE.logsnr((jnp.array(steps) + 1) / 1000))
        assert distance(ours, from_torch(expected)) < 1e-6


def test_uniform_times_are_uniform_time_steps():
    t = jnp.asarray((np.arange(4000) + 0.5) / 4000, jnp.float32)
    steps = np.asarray(COSINE.time_step(training_time(COSINE, t)))
    np.testing.assert_array_equal(steps, np.repeat(np.arange(1000), 4))
    assert float(COSINE.time_step(training_time(COSINE, jnp.float32(0)))) == 0


# ---- time steps


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_spacings_are_those_of_ddpm(spacing, offset):
    theirs = DDPMScheduler(timestep_spacing=spacing, steps_offset=offset)
    for count in (1, 2, 7, 10, 27, 48, 50, 61, 100, 250, 333, 999):
        theirs.set_timesteps(count)
        # By rounding, "trailing" of 61 steps gets a 62nd one at -1 there.
        expected = theirs.timesteps.numpy()[:count]
        np.testing.assert_array_equal(spaced_steps(COSINE, spacing, count, offset), expected)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("lambda_min", [None, -5.1])
def test_spacings_are_those_of_dpm_solver(spacing, lambda_min):
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing=spacing,
        lambda_min_clipped=-float("inf") if lambda_min is None else lambda_min,
    )
    for count in (1, 2, 15, 25, 50, 100, 400):
        theirs.set_timesteps(count)
        ours = spaced_steps(COSINE, f"dpm_{spacing}", count, lambda_min=lambda_min)
        np.testing.assert_array_equal(ours, theirs.timesteps.numpy())


@pytest.mark.parametrize("name", STEP_LISTS)
def test_lists_are_those_of_deepfloyd_if(name):
    theirs = getattr(deepfloyd_if, f"{name}_timesteps")
    np.testing.assert_array_equal(spaced_steps(COSINE, name, 5), theirs)
    assert len(theirs) == int("".join(filter(str.isdigit, name)))


# ---- ddpm


def compare(ours, theirs, steps=10):
    assert len(ours) == len(theirs) >= steps
    errors = [distance(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert errors[0] < 1e-5
    assert max(errors) < 1e-4, errors


@pytest.mark.parametrize(
    "spacing", ["leading", "linspace", "fast27", "smart50", "super40", (999, 800, 731, 2, 1, 0)]
)
def test_ddpm_with_learned_range_is_diffusers(spacing, monkeypatch):
    theirs = DDPMScheduler(**IF_STAGE_1)
    if spacing in ("leading", "linspace"):
        theirs = DDPMScheduler(**IF_STAGE_1, timestep_spacing=spacing)
        theirs.set_timesteps(12)
    else:
        steps = spacing if isinstance(spacing, tuple) else STEP_LISTS[spacing]
        theirs.set_timesteps(timesteps=list(steps))
    inject(monkeypatch, scheduling_ddpm, TABLE[1:])
    expected = scheduler_run(theirs, TABLE[0])
    grid = step_grid(COSINE, spaced_steps(COSINE, spacing, 12))
    compare(our_run(COSINE, grid, TABLE[0]), expected, steps=6)


@pytest.mark.parametrize("step", [999, 980, 500, 100, 10, 1])
def test_single_steps_of_ddpm_are_diffusers(step, monkeypatch):
    """From a state that the forward process gives, where estimates are as small as they are.

    diffusers' float32 loses digits of 1 - alpha_t / alpha_s at the lowest time steps (2e-5 of the
    image at time step 1); with its float32 table taken to float64 it agrees there, too.
    """
    x0, eps = jnp.clip(TABLE[3] / 2, -1, 1), jnp.asarray(TABLE[0])
    x = np.asarray(add_noise(x0, eps, COSINE.logsnr((step + 1) / 1000)))
    for precise in (False, True):
        theirs, sample = DDPMScheduler(**IF_STAGE_1), to_torch(x)
        if precise:
            theirs.alphas_cumprod = theirs.alphas_cumprod.double()
            theirs.one, sample = theirs.one.double(), sample.double()
        for after in sorted({step - 1, step // 2}):
            theirs.set_timesteps(timesteps=[step, after])
            inject(monkeypatch, scheduling_ddpm, TABLE[1:])
            output = guided_output(sample, step, 3.0, True)
            expected = theirs.step(output, step, sample).prev_sample
            ours = our_run(COSINE, padded_grid([(step + 1) / 1000, (after + 1) / 1000]), x)[0]
            bound = 1e-5 if precise or step >= 100 else 4e-5
            assert distance(ours, from_torch(expected)) < bound


@pytest.mark.parametrize(
    ("variance_type", "gamma"), [("fixed_small", 0.0), ("fixed_small_log", 0.0), ("fixed_large", 1)]
)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_fixed_variances_are_the_ends_of_gamma(variance_type, gamma, spacing, monkeypatch):
    """The network's own variance is not taken. Into clean data diffusers adds noise from any time
    step but 0, which a spacing that ends elsewhere shows; ours adds none: the last noise is 0.
    """
    config = {**IF_STAGE_1, "variance_type": variance_type, "timestep_spacing": spacing}
    theirs = DDPMScheduler(**config)
    theirs.set_timesteps(12)
    inject(monkeypatch, scheduling_ddpm, [*TABLE[1:12], np.zeros(SHAPE, np.float32)])
    expected = scheduler_run(theirs, TABLE[0], learned=False)
    grid = step_grid(COSINE, spaced_steps(COSINE, spacing, 12))
    compare(our_run(COSINE, grid, TABLE[0], gamma=gamma, learned=False), expected)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_clipping_and_other_betas_are_diffusers(kind, monkeypatch):
    theirs = DDPMScheduler(beta_schedule=kind, variance_type="learned_range", clip_sample=True)
    theirs.set_timesteps(20)
    inject(monkeypatch, scheduling_ddpm, TABLE[1:])
    expected = scheduler_run(theirs, TABLE[0])
    schedule = DiscreteBeta(kind)
    grid = step_grid(schedule, spaced_steps(schedule, "leading", 20))
    compare(our_run(schedule, grid, TABLE[0], threshold="static"), expected)


@pytest.mark.parametrize(("theirs", "ours"), [("v_prediction", "v"), ("sample", "x0")])
def test_other_predictions_are_diffusers(theirs, ours, monkeypatch):
    scheduler = DDPMScheduler(**IF_STAGE_1, prediction_type=theirs)
    scheduler.set_timesteps(15)
    inject(monkeypatch, scheduling_ddpm, TABLE[1:])
    expected = scheduler_run(scheduler, TABLE[0])
    grid = step_grid(COSINE, spaced_steps(COSINE, "leading", 15))
    compare(our_run(COSINE, grid, TABLE[0], prediction=ours), expected)


def test_the_comparison_can_fail(monkeypatch):
    """Another cap, another variance, and the noise of another step are all seen."""
    theirs = DDPMScheduler(**IF_STAGE_1)
    theirs.set_timesteps(12)
    inject(monkeypatch, scheduling_ddpm, TABLE[1:])
    expected = scheduler_run(theirs, TABLE[0])[-1]
    grid = step_grid(COSINE, spaced_steps(COSINE, "leading", 12))
    for changes in ({"cap": 1.45}, {"learned": False}, {"table": TABLE[::-1]}, {"weight": 3.01}):
        assert distance(our_run(COSINE, grid, TABLE[0], **changes)[-1], expected) > 1e-3


def test_the_network_has_both_signs_of_everything():
    """What the runs above compare is no corner: variances on both sides, estimates beyond 1."""
    out = network(np, TABLE[0].astype(np.float64), 500, 1)
    assert out[..., 3:].min() < -0.8
    assert out[..., 3:].max() > 0.8
    assert np.abs(out[..., :3]).max() > 1


# ---- DPM-Solver++


@pytest.mark.parametrize("count", [10, 14, 15, 25])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpm_solver_is_diffusers(count, lower_order_final):
    theirs = DPMSolverMultistepScheduler(**IF_SOLVER, lower_order_final=lower_order_final)
    theirs.set_timesteps(count)
    expected = scheduler_run(theirs, TABLE[0])
    steps = spaced_steps(COSINE, "dpm_linspace", count, lambda_min=-5.1)
    compare(our_run(COSINE, step_grid(COSINE, steps), TABLE[0], sampler="dpmpp_2m"), expected)


@pytest.mark.parametrize("name", ["fast27", "smart50"])
def test_dpm_solver_goes_through_lists_too(name):
    theirs = DPMSolverMultistepScheduler(**IF_SOLVER)
    theirs.set_timesteps(timesteps=list(STEP_LISTS[name]))
    expected = scheduler_run(theirs, TABLE[0])
    grid = step_grid(COSINE, STEP_LISTS[name])
    compare(our_run(COSINE, grid, TABLE[0], sampler="dpmpp_2m"), expected)


def test_dpm_solver_that_ends_at_time_step_0():
    theirs = DPMSolverMultistepScheduler(
        **IF_SOLVER, final_sigmas_type="sigma_min", lower_order_final=False
    )
    theirs.set_timesteps(12)
    expected = scheduler_run(theirs, TABLE[0])
    grid = padded_grid([*((theirs.timesteps.numpy() + 1) / 1000), 1 / 1000])
    compare(our_run(COSINE, grid, TABLE[0], sampler="dpmpp_2m"), expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DiscreteBeta("cosine"), "'cosine'.*squaredcos_cap_v2"),
        (lambda: DiscreteBeta("linear", beta_end=2.0), "2.0"),
        (lambda: DiscreteBeta(num_steps=0), "0"),
        (lambda: spaced_steps(COSINE, "leading", 1001), "1001"),
        (lambda: spaced_steps(COSINE, "leading", 1000, offset=1), "below 1000"),
        (lambda: spaced_steps(COSINE, "dpm_linspace", 999, lambda_min=-5.1), "999"),
        (lambda: spaced_steps(COSINE, (5, 5, 0), 3), r"\[5, 5, 0\]"),
        (lambda: spaced_steps(COSINE, (5, -1), 2), r"\[5, -1\]"),
        (lambda: spaced_steps(COSINE, (1000, 1), 2), "1000"),
        (lambda: spaced_steps(DiscreteBeta(num_steps=100), "fast27", 27), "below 100"),
        (lambda: spaced_steps(COSINE, (), 1), "whole numbers"),
    ],
)
def test_impossible_time_steps_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()
