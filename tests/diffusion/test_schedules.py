"""Schedules: DDPM's own numbers, inverses, ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.schedules import (
    Cosine,
    Flow,
    LinearBeta,
    logsnr_slope,
    network_time,
    resolution_shift,
)

SCHEDULES = {
    "cosine": Cosine(),
    "narrow": Cosine(logsnr_min=-10.0, logsnr_max=9.0),
    "shifted": Cosine(shift=resolution_shift(256)),
    "flow": Flow(),
    "shifted_flow": Flow(shift=resolution_shift(256)),
    "linear_beta": LinearBeta(),
    "linear_beta_100": LinearBeta(beta_start=1e-3, beta_end=0.2, num_steps=100),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def test_linear_beta_is_ddpm_at_whole_steps():
    # Ho et al. 2020, section 4: 1000 betas from 1e-4 to 0.02, alpha-bar_n = prod_{i<=n} 1 - beta_i.
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    steps = np.arange(1, 1001)
    schedule = LinearBeta()
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(jnp.asarray(steps / 1000, jnp.float32)))
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=2e-5)
    np.testing.assert_allclose(sigma**2, 1.0 - alpha_bar, rtol=2e-5)


def test_cosine_is_the_formula_inside_its_cut():
    t = np.linspace(0.0, 1.0, 101)
    below, above = (math.atan(math.exp(-0.5 * logsnr)) for logsnr in (15.0, -15.0))
    expected = -2.0 * np.log(np.tan(below + t * (above - below))) - 1.5
    np.testing.assert_allclose(
        Cosine(shift=-1.5).logsnr(jnp.asarray(t, jnp.float32)), expected, rtol=1e-5, atol=2e-5
    )


def test_cosine_without_cut_is_cos_and_sin_of_a_quarter_turn():
    t = np.linspace(0.0, 1.0, 101)
    schedule = Cosine(-math.inf, math.inf)
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(alpha, np.cos(0.5 * np.pi * t), atol=1e-6)
    np.testing.assert_allclose(sigma, np.sin(0.5 * np.pi * t), atol=1e-6)


@every_schedule
def test_logsnr_decreases_and_is_finite(schedule):
    logsnr = schedule.logsnr(jnp.linspace(0.0, 1.0, 5001))
    assert np.all(np.isfinite(logsnr[1:-1] if isinstance(schedule, Flow) else logsnr))
    assert np.all(np.diff(logsnr) < 0.0)


@every_schedule
def test_time_and_logsnr_are_inverse(schedule):
    t = jnp.linspace(0.0, 1.0, 1001)
    logsnr = schedule.logsnr(t)
    np.testing.assert_allclose(schedule.time(logsnr), t, atol=1e-5)
    inside = jnp.linspace(logsnr[-2], logsnr[1], 301)[1:-1]
    # In float32 a time has an error of about 1e-7, and logsnr moves by its slope as much.
    error = np.abs(schedule.logsnr(schedule.time(inside)) - inside)
    slope = np.asarray(logsnr_slope(schedule, schedule.time(inside)))
    assert np.all(error <= 1e-5 * np.maximum(1.0, np.abs(inside)) + 3e-7 * slope)


@every_schedule
def test_time_outside_the_range_is_an_end(schedule):
    np.testing.assert_array_equal(schedule.time(jnp.array([-jnp.inf, -60.0])), [1.0, 1.0])
    np.testing.assert_allclose(schedule.time(jnp.array([60.0, jnp.inf])), [0.0, 0.0], atol=1e-7)


def test_ends_of_the_cosine_are_its_limits():
    np.testing.assert_allclose(
        Cosine(-12.0, 14.0, shift=-2.0).logsnr(jnp.array([0.0, 1.0])), [12.0, -14.0], rtol=1e-5
    )


@pytest.mark.parametrize("schedule", [Cosine(logsnr_min=-math.inf), Flow(), Flow(-3.0)])
def test_zero_terminal_snr(schedule):
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(1.0))
    assert alpha == 0.0
    assert sigma == 1.0


def test_flow_is_a_straight_line():
    t = jnp.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(Flow().alpha_sigma(Flow().logsnr(t)), [1.0 - t, t], atol=1e-6)


def test_shifted_flow_is_the_timestep_shift():
    # Esser et al. 2024, section 5.3.2: t_m = sqrt(m/n) t_n / (1 + (sqrt(m/n) - 1) t_n).
    t, schedule = jnp.linspace(0.0, 1.0, 101), Flow(shift=resolution_shift(192))
    shifted = 3.0 * t / (1.0 + 2.0 * t)
    np.testing.assert_allclose(
        schedule.alpha_sigma(schedule.logsnr(t)), [1.0 - shifted, shifted], atol=1e-6
    )
    np.testing.assert_allclose(network_time(schedule, t), 1000.0 * shifted, atol=1e-3)


@every_schedule
def test_edm_networks_see_a_quarter_of_log_sigma(schedule):
    t = jnp.linspace(0.01, 0.99, 9)
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(t))
    expected = 1000.0 * np.log(np.asarray(sigma / alpha)) / 4.0
    np.testing.assert_allclose(network_time(schedule, t, "edm"), expected, rtol=1e-4, atol=0.1)
    assert np.all(np.isfinite(network_time(schedule, jnp.array([0.0, 1.0]), "edm")))


@pytest.mark.parametrize("kind", [Cosine, Flow])
@pytest.mark.parametrize("resolution", [32, 128, 256])
def test_resolution_shift_keeps_the_noise_of_the_averaged_image(resolution, kind):
    # Averaging an image of resolution d to 64 divides the deviation of its noise by d / 64.
    t, shifted = jnp.linspace(0.05, 0.95, 19), kind(shift=resolution_shift(resolution))
    alpha, sigma = shifted.alpha_sigma(shifted.logsnr(t))
    reference_alpha, reference_sigma = kind().alpha_sigma(kind().logsnr(t))
    averaged = sigma / (resolution / 64)
    np.testing.assert_allclose(averaged / alpha, reference_sigma / reference_alpha, rtol=1e-4)


@every_schedule
def test_slope_is_the_derivative(schedule):
    t = (np.arange(10, 90) + 0.5) / 100.0 + 0.00025  # between the knots of linear_beta
    delta = 1e-4
    ahead, behind = (schedule.logsnr(jnp.asarray(t + d, jnp.float32)) for d in (delta, -delta))
    np.testing.assert_allclose(
        logsnr_slope(schedule, jnp.asarray(t, jnp.float32)),
        -(np.asarray(ahead) - behind) / (2 * delta),
        rtol=2e-2,
    )


def test_slope_of_the_cosine_is_the_closed_form():
    # logsnr = -2 log tan(pi t / 2): -d logsnr / dt = 2 pi / sin(pi t).
    t = jnp.linspace(0.01, 0.99, 99)
    slope = logsnr_slope(Cosine(-math.inf, math.inf), t)
    np.testing.assert_allclose(slope, 2.0 * np.pi / np.sin(np.pi * np.asarray(t)), rtol=1e-4)


@every_schedule
def test_half_precision_times_are_taken_to_float32(schedule):
    t = jnp.asarray([0.25, 0.5], jnp.bfloat16)
    assert schedule.logsnr(t).dtype == jnp.float32
    assert schedule.time(schedule.logsnr(t).astype(jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_array_equal(schedule.logsnr(t), schedule.logsnr(t.astype(jnp.float32)))


def test_schedules_are_static_arguments():
    evaluate = jax.jit(lambda schedule, t: schedule.logsnr(t), static_argnums=0)
    np.testing.assert_allclose(evaluate(LinearBeta(), 0.3), LinearBeta().logsnr(0.3), rtol=1e-6)
    assert hash(Cosine()) == hash(Cosine())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Cosine(logsnr_min=3.0, logsnr_max=-3.0), "3.0"),
        (lambda: Cosine(shift=math.nan), "nan"),
        (lambda: Flow(shift=math.inf), "inf"),
        (lambda: LinearBeta(beta_start=0.0), "0.0"),
        (lambda: LinearBeta(beta_end=1.5), "1.5"),
        (lambda: LinearBeta(num_steps=0), "0"),
        (lambda: resolution_shift(0), "0"),
    ],
)
def test_impossible_schedules_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()
