"""Steps of flow maps: they are DDIM's, and the x0 that leads from one image to another is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.denoiser import Denoised, make_denoiser
from imagen_jax.diffusion.flow_map import JUMPING, flow_map_sampler, jump, jump_x0
from imagen_jax.diffusion.process import convert
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, sample_loop
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.time_grids import sampling_grid
from tests.diffusion.exact_denoisers import MEAN, SCHEDULES, SPREAD, gaussian_denoiser

SHAPE = (5, 4, 4, 3)


def images(seed: int):
    return jax.random.normal(jax.random.key(seed), SHAPE)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_x0_of_a_jump_is_found_again(schedule):
    t, s = jnp.linspace(0.3, 0.9, 5), jnp.linspace(0.0, 0.6, 5)
    levels = schedule.logsnr(t), schedule.logsnr(s)
    x_t, x0 = images(0), images(1)
    found = jump_x0(x_t, jump(x_t, x0, *levels, schedule), *levels, schedule)
    np.testing.assert_allclose(found, x0, atol=2e-4)


def exact_flow_map(schedule):
    """The flow map of data N(MEAN, SPREAD^2), whose flow keeps each x at its quantile."""

    def at(logsnr):
        alpha, sigma = schedule.alpha_sigma(logsnr)
        return alpha * MEAN, jnp.sqrt(alpha**2 * SPREAD**2 + sigma**2)

    def denoise(x_t, t, s=None):
        levels = schedule.logsnr(t), schedule.logsnr(s)
        (mean, deviation), (mean_s, deviation_s) = at(levels[0]), at(levels[1])
        x_s = mean_s + (x_t - mean) / deviation * deviation_s
        return Denoised(jump_x0(x_t, x_s, *levels, schedule))

    return denoise


@pytest.mark.parametrize("sampler", JUMPING)
@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_one_step_of_an_exact_map_is_as_good_as_many(name, sampler):
    schedule, results = SCHEDULES[name], []
    for steps in (1, 2, 7):
        sampling = Sampling(sampler, steps=steps)
        state = sample_loop(
            flow_map_sampler(SAMPLERS[sampler]),
            exact_flow_map(schedule),
            schedule,
            sampling_grid(schedule, sampling),
            initial_state(images(2), sampler),
            lambda index: jnp.zeros(SHAPE),
            traced(sampling),
        )
        results.append(state.x)
    for found in results[:-1]:
        np.testing.assert_allclose(found, results[-1], atol=1e-4)
    noise = images(2)
    error = np.linalg.norm(results[0] - (MEAN + SPREAD * noise)) / np.linalg.norm(results[0])
    assert error < 2e-3  # the schedule ends a little short of clean data


def test_a_denoiser_passes_on_where_the_step_leads_to():
    schedule, told = SCHEDULES["cosine"], []

    def predict(x_t, t, s):
        told.append(s)
        return convert(gaussian_denoiser(schedule)(x_t, t).x0, x_t, schedule.logsnr(t), "x0", "v")

    denoise = make_denoiser(
        lambda x_t, t, s: predict(x_t, t[0], s), None, schedule, "v", Sampling(threshold="none")
    )
    found = denoise(images(3), 0.5, s=0.25)
    np.testing.assert_array_equal(told[0], np.full(len(found.x0), 0.25, np.float32))
    np.testing.assert_allclose(
        found.x0, gaussian_denoiser(schedule)(images(3), jnp.float32(0.5)).x0, atol=1e-5
    )
