"""Samplers against data whose exact denoiser and probability flow are known.

Of a Gaussian, N(MEAN, SPREAD^2), E[x0 | x_t] is linear in x_t, and so is every step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import (
    COSINE,
    FLOW,
    MEAN,
    SCHEDULES,
    SPREAD,
    TABLE,
    ZERO_TERMINAL,
    exact_flow,
    exact_mixture_flow,
    gaussian_denoiser,
    run,
    slowly_but,
)

from imagen_jax.diffusion.denoiser import Denoised, make_denoiser
from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, noise_from_keys, sample_loop
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.schedules import LinearBeta
from imagen_jax.diffusion.time_grids import (
    MAX_STEPS,
    SPACINGS,
    padded_grid,
    sampling_grid,
    time_grid,
)

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def keys(count):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(count))


# ---- moments


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", [{"gamma": 0.0}, {"gamma": 0.3}, {"gamma": 1.0}]),
        ("ddim", [{"eta": 0.0}, {"eta": 1.0}]),
        ("heun", [{}, {"churn": 5.0}, {"churn": 40.0, "churn_interval": (0.05, 0.9)}]),
        ("dpmpp_2m", [{}]),
        ("dpmpp_3m", [{}]),
        ("dpmpp_2m_sde", [{}]),
        ("dpmpp_3m_sde", [{}]),
        ("unipc", [{}]),
    ],
)
@pytest.mark.parametrize(
    "schedule", [COSINE, LinearBeta(), FLOW], ids=["cosine", "linear_beta", "flow"]
)
def test_mean_and_variance_are_recovered(name, options, schedule):
    """Exactly, without drawing: every step is linear in x and in its noise.

    Image 0 has no noise at all and ends in the mean of the samples. Image k has noise 1 in draw
    k - 1 alone and ends away from it by what that draw contributes; the squares of these add up to
    the variance.
    """
    table = np.eye(401, 402, 1, dtype=np.float32).reshape(TABLE.shape)
    for option in options:
        errors = []
        for num_steps in (100, 400):
            ends = run(
                name, schedule, time_grid(schedule, num_steps), table, steps=num_steps, **option
            )
            ends = np.asarray(ends, np.float64).ravel()
            variance = np.sum((ends[1:] - ends[0]) ** 2)
            assert abs(ends[0] - MEAN) < 0.003, (option, num_steps)
            errors.append(abs(variance / SPREAD**2 - 1.0))
        assert errors[1] < 0.04, (option, errors)
        assert errors[1] < 0.35 * errors[0] + 2e-3, (option, errors)


def test_drawn_samples_have_the_moments_too():
    noise = noise_from_keys(keys(4), (64, 64, 2))

    @jax.jit
    def draw():
        return sample_loop(
            SAMPLERS["ddpm"], gaussian_denoiser(COSINE), COSINE, time_grid(COSINE, 400),
            initial_state(noise(0)), noise,
        ).x  # fmt: skip

    x = np.asarray(draw(), np.float64)
    # 32,768 values: the standard errors are 0.0028 of the mean and 0.8 % of the variance.
    assert abs(x.mean() - MEAN) < 0.012
    assert abs(x.var() / SPREAD**2 - 1.0) < 0.04
    assert abs(((x - x.mean()) ** 3).mean() / x.std() ** 3) < 0.06


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_ddpm_step_has_the_papers_mean_and_variance(key, gamma):
    """One step against q(x_s | x_t, x0) written out in alphas and sigmas, in float64."""
    grid = padded_grid([0.7, 0.4])
    x, noise = (
        jax.random.normal(key, (1, 4, 4, 3)),
        jax.random.normal(jax.random.key(1), (1, 4, 4, 3)),
    )
    x0 = jnp.full_like(x, 0.4)
    state = sample_loop(
        SAMPLERS["ddpm"], lambda x_t, t: Denoised(x0), COSINE, grid, initial_state(x),
        lambda index: noise, Sampling(gamma=gamma),
    )  # fmt: skip
    (a_t, s_t), (a_s, s_s) = (
        (np.float64(v) for v in COSINE.alpha_sigma(COSINE.logsnr(t))) for t in (0.7, 0.4)
    )
    forward = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    posterior = forward * s_s**2 / s_t**2
    mean = (a_t / a_s) * s_s**2 / s_t**2 * np.asarray(x) + a_s * forward / s_t**2 * 0.4
    expected = mean + np.sqrt(posterior ** (1 - gamma) * forward**gamma) * np.asarray(noise)
    np.testing.assert_allclose(state.x, expected, atol=1e-5)


def test_learned_variance_takes_the_place_of_gamma(key):
    noise = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    x, exact = jax.random.normal(key, (2, 4, 4, 3)), gaussian_denoiser(COSINE)

    def step(denoise, gamma):
        return sample_loop(
            SAMPLERS["ddpm"], denoise, COSINE, padded_grid([0.7, 0.4]), initial_state(x),
            lambda index: noise, Sampling(gamma=gamma),
        ).x  # fmt: skip

    fraction = jnp.zeros_like(x).at[..., 1].set(0.5).at[..., 2].set(1.0)
    learned = step(lambda x_t, t: Denoised(exact(x_t, t).x0, fraction), 0.123)
    for channel, gamma in enumerate((0.0, 0.5, 1.0)):
        np.testing.assert_allclose(
            learned[..., channel], step(exact, gamma)[..., channel], atol=1e-6
        )


def test_ddim_with_eta_one_is_ddpm_with_gamma_zero():
    grid = time_grid(COSINE, 20)
    ddim, ddpm = run("ddim", COSINE, grid, eta=1.0), run("ddpm", COSINE, grid, gamma=0.0)
    np.testing.assert_allclose(ddim, ddpm, atol=2e-5)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_3m", "unipc_3"])
def test_deterministic_samplers_use_no_noise_but_the_first(name):
    other = np.concatenate([TABLE[:1], -2.0 * TABLE[1:]])
    grid = time_grid(COSINE, 20)
    np.testing.assert_array_equal(run(name, COSINE, grid), run(name, COSINE, grid, other))


# ---- convergence


def flow_error(name, schedule, grid):
    start, stop = grid.times[0], grid.times[-1]
    exact = exact_flow(schedule, TABLE[0], start, stop)
    return float(np.abs(run(name, schedule, grid) - exact).max())


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
@pytest.mark.parametrize(
    ("schedule", "spacing"), [(COSINE, "logsnr"), (COSINE, "time"), (LinearBeta(), "logsnr")]
)
def test_order_of_convergence(name, order, schedule, spacing):
    steps = [10, 20, 40, 80]
    grids = [time_grid(schedule, n, spacing, 0.95, 0.05) for n in steps]
    errors = [flow_error(name, schedule, grid) for grid in grids]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.25 < slope < order + 0.5, (slope, errors)


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("unipc", 3), ("unipc_3", 4)],
)
@pytest.mark.parametrize("schedule", slowly_but([COSINE, FLOW], FLOW), ids=["cosine", "flow"])
def test_order_of_convergence_on_a_mixture(name, order, schedule):
    """UniPC's corrector makes it of one order more than its name has (arXiv 2302.04867, 3.1)."""
    table = np.broadcast_to(np.linspace(-2.2, 2.2, 402).reshape(-1, 1, 1, 1), TABLE.shape)
    exact = exact_mixture_flow(schedule, table[0, ::8, 0, 0, 0], 0.95, 0.05)
    steps, errors = [20, 40, 80], []
    for num_steps in steps:
        grid = time_grid(schedule, num_steps, "logsnr", 0.95, 0.05)
        x = run(name, schedule, grid, table, mixture=True)
        errors.append(np.sqrt(np.mean((x[::8, 0, 0, 0] - exact) ** 2)))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.4 < slope < order + 1.2, (slope, errors)


@pytest.mark.parametrize(("name", "bound"), [("ddim", 6e-2), ("dpmpp_2m", 1e-2), ("heun", 1e-2)])
@pytest.mark.parametrize("schedule", [COSINE, LinearBeta()], ids=["cosine", "linear_beta"])
def test_the_whole_way_converges_too(name, bound, schedule):
    coarse, fine = (flow_error(name, schedule, time_grid(schedule, n)) for n in (32, 128))
    assert fine < bound
    assert fine < coarse / 3


@every_sampler
@pytest.mark.parametrize("schedule", [COSINE, LinearBeta(), ZERO_TERMINAL])
def test_a_point_is_found_in_any_number_of_steps(name, schedule):
    for num_steps in (1, 2, 7):
        x = run(name, schedule, time_grid(schedule, num_steps), mean=0.25, spread=0.0)
        np.testing.assert_allclose(x, 0.25, atol=4e-3)


@every_sampler
@pytest.mark.parametrize("spacing", SPACINGS)
def test_zero_terminal_snr_and_clean_data_are_finite(name, spacing):
    x = run(name, ZERO_TERMINAL, time_grid(ZERO_TERMINAL, 20, spacing))
    assert np.all(np.isfinite(x))
    # In flow_match's last step but one, sigma falls to a 54th; estimates are extrapolated as far.
    assert np.abs(x - MEAN).max() < (7 if spacing == "flow_match" else 5) * SPREAD


@every_sampler
@pytest.mark.parametrize("schedule", slowly_but(SCHEDULES, "flow"))
def test_few_and_many_steps_are_finite(name, schedule):
    """And not far from the data, whatever the first and the last step leap over."""
    schedule = SCHEDULES[schedule]
    for num_steps in (1, 2, 3, 50):
        for options in ({}, {"churn": 10.0}) if name == "heun" else ({},):
            x = run(name, schedule, time_grid(schedule, num_steps), steps=num_steps, **options)
            assert np.all(np.isfinite(x))
            assert np.abs(x - MEAN).max() < 5 * SPREAD, num_steps


# ---- what callers rely on


def test_a_sample_does_not_depend_on_its_batch():
    @jax.jit
    def draw(sample_keys):
        noise = noise_from_keys(sample_keys, (4, 4, 3))
        return sample_loop(
            SAMPLERS["ddpm"], gaussian_denoiser(COSINE), COSINE, time_grid(COSINE, 12),
            initial_state(noise(0)), noise,
        ).x  # fmt: skip

    together = draw(keys(5))
    np.testing.assert_allclose(together[3:4], draw(keys(5)[3:4]), atol=1e-6)
    np.testing.assert_array_equal(together, draw(keys(5)[::-1])[::-1])
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_noise_is_standard_normal_and_different_each_step():
    noise = noise_from_keys(keys(16), (16, 16, 3))
    first, second = noise(0), noise(1)
    assert abs(float(first.mean())) < 0.03
    assert abs(float(first.std()) - 1.0) < 0.02
    assert abs(float((first * second).mean())) < 0.03
    raw = noise_from_keys(jax.random.key_data(keys(16)), (16, 16, 3))  # keys of the older kind
    np.testing.assert_array_equal(raw(1), second)


def traced_sampler(name):
    """A jitted sampler of a guided network, and the number of its traces."""
    traces = []

    @jax.jit
    def sample(grid, sampling):
        traces.append(None)
        table = jnp.asarray(TABLE[:21, :2])
        denoise = make_denoiser(
            lambda x, t: 0.7 * x, lambda x, t: (0.7 * x, 0.4 * x + 0.1), COSINE, "eps", sampling
        )
        return sample_loop(
            SAMPLERS[name], denoise, COSINE, grid, initial_state(table[0], name),
            lambda index: table[index], sampling,
        )  # fmt: skip

    return sample, traces


@every_sampler
def test_new_values_never_recompile(name):
    sample, traces = traced_sampler(name)
    for num_steps, changes, start in [
        (4, {}, 0),
        (9, {"guidance": 5}, 0),
        (9, {"guidance": 5.0, "guidance_interval": (0.2, 0.6), "percentile": 90.0}, 0),
        (9, {"gamma": 0.9, "eta": 1, "aug_level": 0.3, "churn": 4, "churn_noise": 1.01}, 0),
        (9, {"churn_interval": (0.3, 0.8), "spacing": "karras", "sigma_max": 60.0}, 0),
        (64, {"guidance": 5.0, "guidance_rescale": 0.7, "cap": 1.5, "spacing": "logsnr"}, 3),
    ]:
        sampling = Sampling(steps=num_steps, **changes)
        grid = sampling_grid(COSINE, sampling)._replace(start=np.int32(start))
        state = sample(grid, traced(sampling))
        assert np.all(np.isfinite(state.x))
    assert len(traces) == 1
    assert sample._cache_size() == 1


@every_sampler
def test_chunks_are_the_single_run(name):
    table, grid = jnp.asarray(TABLE[:21, :2]), time_grid(COSINE, 13)

    @jax.jit
    def chunk(state, start, stop):
        return sample_loop(
            SAMPLERS[name], gaussian_denoiser(COSINE), COSINE,
            grid._replace(start=start, stop=stop), state, lambda index: table[index],
            Sampling(gamma=0.5, eta=0.7, churn=30.0),
        )  # fmt: skip

    whole = chunk(initial_state(table[0], name), 0, 13)
    state = initial_state(table[0], name)
    for start in range(0, 13, 4):
        state = chunk(state, start, min(start + 4, 13))
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert chunk._cache_size() == 1
    nothing = chunk(whole, 13, 13)
    np.testing.assert_array_equal(nothing.x, whole.x)


@every_sampler
def test_a_run_may_start_from_a_noised_image(name):
    """Image to image: from step k on, nothing of the earlier steps is needed."""
    grid, table = time_grid(COSINE, 20), jnp.asarray(TABLE[:, :2])
    x = add_noise(jnp.full(table.shape[1:], 0.25), table[0], COSINE.logsnr(grid.times[12]))
    state = sample_loop(
        SAMPLERS[name], gaussian_denoiser(COSINE, 0.25, 0.0), COSINE, grid._replace(start=12),
        initial_state(x, name), lambda index: table[index],
    )  # fmt: skip
    np.testing.assert_allclose(state.x, 0.25, atol=3e-3)


def test_a_wrapped_sampler_edits_on_the_way():
    """Inpainting: what is known is set before each step, at the noise of that step."""
    table = jnp.asarray(TABLE[:, :4])
    known = jnp.full(table.shape[1:], -0.8)
    masked = jnp.arange(4).reshape(4, 1, 1, 1) < 2

    def inpaint(denoise, state, step, noise, sampling):
        noised = add_noise(known, noise(10 + step.index), step.logsnr_t)
        state = state._replace(x=jnp.where(masked, noised, state.x))
        state = SAMPLERS["ddpm"](denoise, state, step, noise, sampling)
        return state._replace(x=jnp.where(step.to_clean & masked, known, state.x))

    state = sample_loop(
        inpaint, gaussian_denoiser(COSINE, 0.25, 0.0), COSINE, time_grid(COSINE, 10),
        initial_state(table[0]), lambda index: table[index],
    )  # fmt: skip
    np.testing.assert_array_equal(state.x[:2], known[:2])
    np.testing.assert_allclose(state.x[2:], 0.25, atol=2e-3)


def test_injected_noise_is_used_in_order():
    seen, shape = [], (1, 2, 2, 1)

    def noise(index):
        jax.debug.callback(lambda i: seen.append(int(i)), index, ordered=True)
        return jnp.zeros(shape)

    sample_loop(
        SAMPLERS["ddpm"], gaussian_denoiser(COSINE), COSINE, time_grid(COSINE, 4),
        initial_state(noise(jnp.int32(0))), noise,
    ).x.block_until_ready()  # fmt: skip
    jax.effects_barrier()
    assert seen == [0, 1, 2, 3, 4]


@every_sampler
def test_evaluations_of_each_sampler(name):
    """One evaluation a step; heun two, but one in the last."""
    expected = 15 if name == "heun" else 8
    count = []

    def denoise(x_t, t):
        jax.debug.callback(lambda: count.append(None))
        return Denoised(0.5 * x_t)

    sample_loop(
        SAMPLERS[name], denoise, COSINE, time_grid(COSINE, 8),
        initial_state(jnp.ones((2, 1, 1, 1)), name), lambda index: jnp.zeros((2, 1, 1, 1)),
    ).x.block_until_ready()  # fmt: skip
    jax.effects_barrier()
    assert len(count) == expected


def test_everything_is_float32():
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    for name, sampler in SAMPLERS.items():
        state = sample_loop(
            sampler, make_denoiser(lambda x, t: x.astype(jnp.bfloat16), None, COSINE, "v"), COSINE,
            time_grid(COSINE, 3), initial_state(x, name), lambda index: jnp.ones(x.shape),
        )  # fmt: skip
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


# ---- grids


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [COSINE, LinearBeta()], ids=["cosine", "linear_beta"])
@pytest.mark.parametrize("num_steps", [1, 2, 50, MAX_STEPS])
def test_grids_go_from_start_to_stop(spacing, schedule, num_steps):
    for start, stop in [(1.0, 0.0), (0.75, 0.125)]:
        grid = time_grid(schedule, num_steps, spacing, start, stop)
        assert grid.times.shape == (MAX_STEPS + 1,)
        assert grid.times[0] == start
        assert np.all(grid.times[num_steps:] == stop)
        assert np.all(np.diff(grid.times[: num_steps + 1]) < 0)


def test_spacings_are_even():
    np.testing.assert_allclose(
        np.diff(time_grid(COSINE, 10).times[:11]), np.full(10, -0.1), atol=1e-6
    )
    logsnr = COSINE.logsnr(time_grid(COSINE, 10, "logsnr", 0.9, 0.1).times[:11])
    np.testing.assert_allclose(np.diff(logsnr), np.diff(logsnr).mean(), rtol=1e-3)


def test_a_thousand_steps_of_ddpm_are_ddpms():
    schedule = LinearBeta()
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    alpha, _ = schedule.alpha_sigma(schedule.logsnr(time_grid(schedule, 1000).times[:1000]))
    np.testing.assert_allclose(alpha**2, alpha_bar[::-1], rtol=1e-4)


def test_padded_grids_are_the_list():
    times = [1.0, 0.6, 0.5, 0.0]
    grid = padded_grid(times)
    np.testing.assert_allclose(grid.times[:4], times)
    assert int(grid.stop) == 3
    assert grid.times.shape == time_grid(COSINE, 3).times.shape
