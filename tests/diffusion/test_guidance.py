"""The kinds of guidance: their papers' equations, diffusers' guiders, limits, Gaussians."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import (
    AdaptiveProjectedGuidance,
    MomentumBuffer,
)
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from scipy.integrate import solve_ivp

from imagen_jax.diffusion.denoiser import make_denoiser
from imagen_jax.diffusion.editing import jumping
from imagen_jax.diffusion.guidance import GUIDANCES
from imagen_jax.diffusion.guided_steps import guided_sampler, guided_start
from imagen_jax.diffusion.overrides import check_sampling, with_overrides
from imagen_jax.diffusion.process import convert
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, noise_from_keys, sample_loop
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.schedules import Cosine, Flow
from imagen_jax.diffusion.time_grids import padded_grid, time_grid

SHAPE = (3, 4, 4, 3)
FLOW, COSINE = Flow(), Cosine()
T = jnp.array([0.2, 0.5, 0.8])
every_kind = pytest.mark.parametrize("kind", GUIDANCES)


def draw(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def denoised(wanted, other, prediction, average=None, schedule=FLOW, t=T, x_t=None, **fields):
    """The guided output of networks that say `wanted` and `other`, and the average after it."""
    x_t = jnp.asarray(draw(9) if x_t is None else x_t)
    sampling = Sampling(threshold="none", **fields)
    pair = jnp.asarray(wanted), jnp.asarray(other)
    denoise = make_denoiser(lambda x, t: pair[0], lambda x, t: pair, schedule, prediction, sampling)
    found = denoise(x_t, t, average)
    output = convert(found.x0, x_t, schedule.logsnr(t), "x0", prediction, schedule)
    return np.asarray(output), found.average


def close(found, expected, tolerance=1e-5):
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < tolerance, error


# ---- equations


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("norm", [None, 4.0])
@pytest.mark.parametrize("beta", [0.0, -0.75])
def test_projected_guidance_is_algorithm_1_and_diffusers(eta, norm, beta):
    """Three steps of arXiv 2410.02416 with momentum, in float64 and by diffusers' guider."""
    weight, average, running = 6.0, jnp.zeros(SHAPE), 0.0
    guider = AdaptiveProjectedGuidance(
        guidance_scale=weight - 1.0,  # theirs multiplies the update of the conditional output
        adaptive_projected_guidance_rescale=0.0 if norm is None else norm,
        eta=eta,
        use_original_formulation=True,
    )
    guider.momentum_buffer = MomentumBuffer(beta) if beta else None
    for step in range(3):
        wanted, other = draw(step), draw(step + 10)
        found, average = denoised(
            wanted, other, "x0", average, guidance_kind="apg", guidance=weight, guidance_eta=eta,
            guidance_norm=norm, guidance_momentum=beta,
        )  # fmt: skip
        theirs = guider.forward(torch.tensor(wanted), torch.tensor(other)).pred.numpy()
        close(found, theirs)
        d_c, d_u = wanted.astype(np.float64), other.astype(np.float64)
        running = d_c - d_u + beta * running
        for image in range(SHAPE[0]):
            update, towards = running[image].ravel(), d_c[image].ravel()
            if norm is not None:
                assert np.linalg.norm(update) > norm
                update = update * min(1.0, norm / np.linalg.norm(update))
            parallel = (update @ towards) / (towards @ towards) * towards
            expected = towards + (weight - 1.0) * (update - parallel + eta * parallel)
            close(found[image].ravel(), expected)


def test_zero_star_is_the_papers_and_diffusers():
    wanted, other, weight = draw(0), draw(1), 5.0
    found, _ = denoised(wanted, other, "v", guidance_kind="cfg_zero", guidance=weight)
    guider = ClassifierFreeZeroStarGuidance(weight, zero_init_steps=0)
    guider.set_state(3, 10, torch.tensor(0))
    close(found, guider.forward(torch.tensor(wanted), torch.tensor(other)).pred.numpy())
    for image, v_c, v_u in zip(
        found, wanted.astype(np.float64), other.astype(np.float64), strict=True
    ):
        scale = np.sum(v_c * v_u) / np.sum(v_u**2)
        close(image, (1.0 - weight) * scale * v_u + weight * v_c)


@pytest.mark.parametrize(
    ("schedule", "prediction"), [(FLOW, "eps"), (FLOW, "x0"), (COSINE, "v"), (COSINE, "edm")]
)
@pytest.mark.parametrize(("kind", "space"), [("apg", "x0"), ("cfg_zero", "v")])
def test_what_a_network_predicts_does_not_matter(schedule, prediction, kind, space):
    """The same estimates in another prediction mix to the same image."""
    x_t, logsnr = draw(9), schedule.logsnr(T)
    given = {"guidance_kind": kind, "guidance": 4.0, "schedule": schedule}

    def change(value, source, target):
        return convert(jnp.asarray(value), jnp.asarray(x_t), logsnr, source, target, schedule)

    expected, _ = denoised(draw(0), draw(1), space, **given)
    pair = (change(draw(seed), space, prediction) for seed in (0, 1))
    found, _ = denoised(*pair, prediction, **given)
    close(change(found, prediction, space), expected, 2e-5)


# ---- limits


@every_kind
def test_weight_one_is_no_guidance(kind):
    wanted, other = draw(0), draw(1)
    for fields in ({"guidance": 1.0}, {"guidance": 9.0, "guidance_interval": (0.9, 1.0)}):
        found, _ = denoised(wanted, other, "v", guidance_kind=kind, **fields)
        close(found, wanted)
    # Image by image: the interval holds that of the middle alone.
    given = {"guidance": 5.0, "guidance_kind": kind}
    found, _ = denoised(wanted, other, "v", guidance_interval=(0.4, 0.6), **given)
    close(found[::2], wanted[::2])
    close(found[1], denoised(wanted, other, "v", **given)[0][1])


@every_kind
def test_guided_away_from_itself_is_no_guidance(kind):
    wanted = draw(0)
    close(denoised(wanted, wanted, "v", guidance_kind=kind, guidance=7.0)[0], wanted)


def test_the_whole_update_is_classifier_free_guidance():
    pair = draw(0), draw(1)
    apg = denoised(*pair, "eps", guidance=6.0, guidance_kind="apg", guidance_eta=1.0)[0]
    close(apg, denoised(*pair, "eps", guidance=6.0)[0])


def test_rescale_goes_with_every_kind():
    pair = draw(0), draw(1)
    for kind in GUIDANCES:
        found, _ = denoised(*pair, "v", guidance=6.0, guidance_kind=kind, guidance_rescale=1.0)
        np.testing.assert_allclose(found.std((1, 2, 3)), pair[0].std((1, 2, 3)), rtol=1e-4)


def test_no_image_remembers_what_it_was_not_guided_by():
    average = jnp.ones(SHAPE)
    _, after = denoised(
        draw(0), draw(1), "x0", average, guidance_kind="apg", guidance=3.0,
        guidance_interval=(0.4, 0.6),
    )  # fmt: skip
    np.testing.assert_array_equal(after[::2], average[::2])
    np.testing.assert_allclose(after[1], draw(0)[1] - draw(1)[1] - 0.5, atol=1e-5)


def test_zeros_are_finite():
    for kind in GUIDANCES:
        zeros = jnp.zeros(SHAPE)
        found, _ = denoised(
            zeros, zeros, "v", schedule=Cosine(-np.inf, np.inf), t=jnp.ones(3), guidance=4.0,
            guidance_kind=kind, guidance_norm=1.0,
        )  # fmt: skip
        assert np.all(np.isfinite(found))


# ---- Gaussians: conditional N(means[0], 0.3^2), the other N(means[1], 0.7^2)

MEANS, SPREADS = draw(5, (2, 1, 2, 2, 3)) * 0.5, (0.3, 0.7)


def exact(schedule, index, x_t, t):
    """E[x0 | x_t] of one of the two, as v."""
    logsnr = schedule.logsnr(t)
    alpha, sigma = (scale.reshape(-1, 1, 1, 1) for scale in schedule.alpha_sigma(logsnr))
    spread = SPREADS[index]
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    x0 = MEANS[index] + gain * (x_t - alpha * MEANS[index])
    return convert(x0, x_t, logsnr, "x0", "v", schedule)


@functools.partial(jax.jit, static_argnames=("name", "schedule", "wrap"))
def run(name, schedule, sampling, grid, x, noise, wrap=lambda sampler: sampler):
    predict = functools.partial(exact, schedule, 0)
    denoise = make_denoiser(
        predict, lambda x_t, t: (predict(x_t, t), exact(schedule, 1, x_t, t)), schedule, "v",
        sampling,
    )  # fmt: skip
    sampler = wrap(guided_sampler(SAMPLERS[name], sampling))
    state = guided_start(initial_state(x, name), sampling)
    return sample_loop(sampler, denoise, schedule, grid, state, lambda i: noise[i], sampling)


def flow_of(schedule, kind, start, stop, x, fields):
    """Where the guided ODE takes x: d(x / alpha) / d(sigma / alpha) = eps, in float64."""

    def x0_of(x_t, alpha, sigma):
        found = []
        for mean, spread in zip(MEANS.astype(np.float64), SPREADS, strict=True):
            gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
            found.append(mean[0] + gain * (x_t - alpha * mean[0]))
        wanted, other = found
        weight, update = fields["guidance"], wanted - other
        if kind == "apg":
            update = update / (1.0 - fields["guidance_momentum"])  # of ever smaller steps
            update *= min(1.0, fields.get("guidance_norm", np.inf) / np.linalg.norm(update))
            update -= (
                (1 - fields["guidance_eta"]) * np.sum(update * wanted) / np.sum(wanted**2) * wanted
            )
        if kind == "cfg_zero":
            a, b = (1.0, 1.0) if schedule == FLOW else (alpha, sigma)
            v_c, v_u = (a * (x_t - alpha * x0) / sigma - b * x0 for x0 in found)
            v = weight * v_c + (1 - weight) * np.sum(v_c * v_u) / np.sum(v_u**2) * v_u
            return (a * x_t - sigma * v) / (a * alpha + b * sigma)
        return wanted + (weight - 1.0) * update

    def alpha_of(rho):
        return 1.0 / (1.0 + rho) if schedule == FLOW else 1.0 / np.sqrt(1.0 + rho**2)

    def slope(rho, y):
        alpha = alpha_of(rho)
        x_t = alpha * y.reshape(x.shape)
        return ((x_t - alpha * x0_of(x_t, alpha, alpha * rho)) / (alpha * rho)).ravel()

    ends = np.exp(-0.5 * np.asarray(schedule.logsnr(jnp.array([start, stop])), np.float64))
    y = np.asarray(x, np.float64).ravel() / alpha_of(ends[0])
    found = solve_ivp(slope, ends, y, rtol=1e-9, atol=1e-9, method="DOP853")
    return alpha_of(ends[1]) * found.y[:, -1].reshape(x.shape)


@pytest.mark.parametrize(
    ("schedule", "orders"),
    [
        (FLOW, {"heun": 2}),
        pytest.param(FLOW, {"ddim": 1, "dpmpp_2m": 2}, marks=pytest.mark.slow),
        pytest.param(COSINE, {"heun": 2}, marks=pytest.mark.slow),
    ],
    ids=["flow", "flow-others", "cosine"],
)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("cfg", {}),
        ("apg", {"guidance_eta": 0.0, "guidance_momentum": 0.0, "guidance_norm": 1.0}),
        ("apg", {"guidance_eta": 0.4, "guidance_momentum": -0.5}),
        ("cfg_zero", {"zero_init_steps": 0}),
    ],
)
def test_samplers_follow_the_guided_flow_of_gaussians(schedule, orders, kind, fields):
    start, stop, x = 0.9, 0.05, draw(7, (2, 2, 2, 3))
    fields = {"guidance": 2.5, "threshold": "none", "guidance_kind": kind, **fields}
    expected = [flow_of(schedule, kind, start, stop, image, fields) for image in x]
    noise = jnp.zeros((1, *x.shape))
    for name, order in orders.items():
        errors = []
        for steps in (50, 200):
            grid = time_grid(schedule, steps, "logsnr", start, stop)
            sampling = traced(Sampling(name, **fields))
            found = run(name, schedule, sampling, grid, jnp.asarray(x), noise).x
            errors.append(np.abs(found - np.stack(expected)).max())
        # Momentum lags behind by a share of a step, and the limit of the norm has a kink.
        smooth = not fields.get("guidance_momentum") and "guidance_norm" not in fields
        assert errors[1] < (3e-3 if order == 2 and smooth else 3e-2), (name, errors)
        assert errors[1] < errors[0] / (9 if order == 2 and smooth else 2.5), (name, errors)


def test_nothing_moves_in_the_first_steps_of_cfg_zero():
    x = jnp.asarray(draw(7, (2, 2, 2, 3)))
    noise, grid = jnp.zeros((1, *x.shape)), time_grid(FLOW, 20)
    fields = {"guidance": 2.0, "guidance_kind": "cfg_zero", "threshold": "none"}
    sampling = traced(Sampling("dpmpp_2m", zero_init_steps=3, **fields))
    waited = run("dpmpp_2m", FLOW, sampling, grid._replace(stop=3), x, noise)
    np.testing.assert_array_equal(waited.x, x)
    later = padded_grid(np.asarray(grid.times)[3:21])
    without = replace(sampling, zero_init_steps=np.float32(0))
    expected = run("dpmpp_2m", FLOW, without, later, x, noise).x
    found = run("dpmpp_2m", FLOW, sampling, grid, x, noise).x
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Without guidance all steps move.
    plain = replace(sampling, guidance=np.float32(1))
    assert np.abs(run("dpmpp_2m", FLOW, plain, grid._replace(stop=1), x, noise).x - x).max() > 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_carries_the_average(name):
    """Of one evaluation a step, as it was at the step's start; also by way of jumps in time."""
    keys = jax.random.split(jax.random.key(0), 3)
    draws = noise_from_keys(keys, (2, 2, 3))
    noise = jnp.stack([draws(index) for index in range(8)])
    fields = {"guidance": 3.0, "guidance_kind": "apg", "guidance_momentum": -0.5}
    sampling = traced(Sampling(name, threshold="none", **fields))
    grid = padded_grid(np.float32([0.9, 0.7, 0.5, 0.7, 0.5, 0.3, 0.0]))
    together = run(name, FLOW, sampling, grid, noise[0], noise, jumping)
    assert np.all(np.isfinite(together.x))
    assert np.abs(together.average).max() > 0.01
    turned = run(name, FLOW, sampling, grid, noise[0][::-1], noise[:, ::-1], jumping)
    np.testing.assert_allclose(turned.x[::-1], together.x, atol=1e-5)
    halves = run(name, FLOW, sampling, grid._replace(stop=4), noise[0], noise, jumping)
    # Chunks that continue each other's state: the average is part of it.
    assert halves.average.shape == noise[0].shape
    without = replace(sampling, guidance_momentum=np.float32(0))
    other = run(name, FLOW, without, grid, noise[0], noise, jumping)
    assert np.abs(other.x - together.x).max() > 1e-3


def test_new_numbers_never_recompile():
    x, grid = jnp.asarray(draw(7, (2, 2, 2, 3))), time_grid(FLOW, 4)
    noise = jnp.zeros((6, *x.shape))
    own = {"apg": ("guidance_eta", "guidance_norm", "guidance_momentum"),
           "cfg_zero": ("zero_init_steps",)}  # fmt: skip
    for kind, names in own.items():
        first = traced(Sampling("ddim", guidance=3.0, guidance_kind=kind))
        results, compiled = [run("ddim", FLOW, first, grid, x, noise).x], run._cache_size()
        for name in names:
            changed = replace(first, **{name: np.float32(0.5 if kind == "apg" else 3)})
            results.append(run("ddim", FLOW, changed, grid, x, noise).x)
            assert np.abs(results[-1] - results[0]).max() > 1e-3, name
        assert run._cache_size() == compiled


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"guidance_kind": "cgf"}, "Unknown guidance_kind 'cgf'; choose one of cfg, apg"),
        ({"guidance_eta": 1.5}, r"guidance_eta must be in \[0, 1\]: 1.5"),
        ({"guidance_norm": 0}, "guidance_norm must be above 0, or None: 0"),
        ({"guidance_momentum": -2}, r"guidance_momentum must be in \[-1, 1\]: -2"),
        ({"zero_init_steps": 0.5}, "zero_init_steps must be a whole number"),
        ({"steps": 4, "zero_init_steps": 4, "guidance_kind": "cfg_zero", "guidance": 2},
         "zero_init_steps is 4, .* of 4 steps none is left"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        check_sampling(Sampling(**fields))


def test_a_single_kind_is_the_first_stages():
    stages = with_overrides((Sampling(), Sampling(guidance_kind="apg")), guidance_kind="cfg_zero")
    assert [entry.guidance_kind for entry in stages] == ["cfg_zero", "apg"]
