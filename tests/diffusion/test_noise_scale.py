"""Noise of another scale than 1 on the flow, and the least divisor of a velocity."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.denoiser import make_denoiser
from imagen_jax.diffusion.process import PREDICTIONS, convert, prediction_target, with_least_scale
from imagen_jax.diffusion.samplers import ddim, initial_state, sample_loop
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.schedules import Cosine, Flow, network_time
from imagen_jax.diffusion.time_grids import time_grid

TIMES = jnp.linspace(0.0, 1.0, 41)
EPS = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 1)), jnp.float32)


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_sigma_is_scaled_and_alpha_is_not(scale):
    schedule = Flow(noise_scale=scale)
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(TIMES))
    np.testing.assert_allclose(alpha, 1.0 - TIMES, atol=1e-6)
    np.testing.assert_allclose(sigma, scale * TIMES, atol=1e-6 * scale)
    np.testing.assert_allclose(schedule.time(schedule.logsnr(TIMES)), TIMES, atol=1e-6)
    np.testing.assert_allclose(network_time(schedule, TIMES), 1000 * TIMES, atol=1e-3)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_fit_each_other(kind):
    schedule, x0 = Flow(shift=-1.0, noise_scale=2.0), 0.3 * jnp.flip(EPS, 1)
    logsnr = schedule.logsnr(jnp.asarray([0.1, 0.8]))
    alpha, sigma = (value[:, None, None, None] for value in schedule.alpha_sigma(logsnr))
    x_t = alpha * x0 + sigma * EPS
    target = prediction_target(kind, x0, EPS, logsnr, schedule)
    for other in PREDICTIONS:
        expected = prediction_target(other, x0, EPS, logsnr, schedule)
        found = convert(target, x_t, logsnr, kind, other, schedule)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_scale_is_a_shift_of_what_the_network_sees_larger():
    """At equal log-SNR the same image under noise n times as large as the image is small: a sampler
    that starts from it goes the same way.
    """

    def end(schedule):
        def predict(x_t, t):  # E[x0 | x_t] for x0 of deviation 0.5
            alpha, sigma = schedule.alpha_sigma(schedule.logsnr(t))
            gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
            return gain[:, None, None, None] * x_t

        sampling = Sampling(threshold="none")
        denoise = make_denoiser(predict, None, schedule, "x0", sampling)
        state, grid = initial_state(schedule.noise_scale * EPS), time_grid(schedule, 20)
        noise = lambda index: EPS  # noqa: E731
        return sample_loop(ddim, denoise, schedule, grid, state, noise, traced(sampling)).x

    shifted = end(Flow(shift=-2.0 * np.log(2.0).item()))
    np.testing.assert_allclose(end(Flow(noise_scale=2.0)), shifted, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_least_scale_slows_the_last_steps(scale):
    """A step at the velocity (x_t - x0) / max(t, 0.05), as JiT and PRXPixel make it."""
    schedule, x_t, x0 = Flow(noise_scale=scale), EPS, jnp.flip(EPS, 1)
    for t in (0.9, 0.05, 0.01, 0.0):
        v = (x_t - x0) / max(t, 0.05)
        found = with_least_scale(x0, x_t, schedule.logsnr(jnp.float32(t)), 0.05, schedule)
        np.testing.assert_allclose(found, x_t - t * v, atol=1e-5)


def test_without_a_velocity_in_the_way_nothing_is_slowed():
    """For another prediction, and in the place where the divisor is large enough."""
    schedule, outputs = Cosine(), lambda x_t, t: 0.5 * x_t
    for prediction, t in (("eps", 0.001), ("v", 0.001), ("x0", 0.5)):
        plain, limited = (
            make_denoiser(outputs, None, schedule, prediction, min_scale=scale)(EPS, t).x0
            for scale in (0.0, 0.05)
        )
        np.testing.assert_allclose(limited, plain, atol=1e-6)


def test_an_impossible_scale_is_named():
    with pytest.raises(ValueError, match=r"noise_scale must be from 0\.001 to 1000, got 0\.0"):
        Flow(noise_scale=0.0)
