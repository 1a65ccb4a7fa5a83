"""What samplers have in common, and what sets them apart: on a mixture, and by identities."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import (
    COSINE,
    FLOW,
    MEANS,
    SCHEDULES,
    SHARES,
    TABLE,
    WIDTH,
    gaussian_denoiser,
    mixture_denoiser,
    run,
    slowly_but,
)

from imagen_jax.diffusion.denoiser import Denoised
from imagen_jax.diffusion.editing import Edit, edited_grid, jumping
from imagen_jax.diffusion.overrides import check_sampling
from imagen_jax.diffusion.process import VARIANCE_PRESERVING, with_least_scale
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, noise_from_keys, sample_loop
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Flow
from imagen_jax.diffusion.time_grids import (
    MAX_STEPS,
    SIGMA_SPACINGS,
    padded_grid,
    sampling_grid,
    sigma_grid,
    time_grid,
)

EVERY_OPTION = {"ddim": {"eta": 1.0}, "heun": {"churn": 20.0}}
RNG = np.random.default_rng(3)
MIX = RNG.normal(0.0, 0.8, (3, 3))


@pytest.mark.parametrize("name", slowly_but(SAMPLERS, "ddpm", "heun", "dpmpp_2m_sde", "unipc"))
@pytest.mark.parametrize("schedule", slowly_but(["flow", "cosine"], "flow"))
def test_both_modes_of_a_mixture_come_out(name, schedule):
    """Their shares, their means and their widths; standard errors of a share are 0.005."""
    schedule, options = SCHEDULES[schedule], Sampling(steps=120, **EVERY_OPTION.get(name, {}))

    @jax.jit
    def sample(key):
        noise = noise_from_keys(key[None], (96, 96, 1))
        return sample_loop(
            SAMPLERS[name], mixture_denoiser(schedule), schedule, time_grid(schedule, 120),
            initial_state(noise(0), name), noise, options,
        ).x  # fmt: skip

    x = np.asarray(sample(jax.random.key(0)), np.float64).ravel()
    middle = 0.5 * sum(MEANS)
    for share, mean, mode in zip(SHARES, MEANS, (x[x < middle], x[x >= middle]), strict=True):
        assert abs(mode.size / x.size - share) < 0.02
        assert abs(mode.mean() - mean) < 0.015
        assert abs(mode.std() / WIDTH - 1.0) < 0.07


# ---- identities


@pytest.mark.parametrize("schedule", slowly_but(SCHEDULES, "flow", "zero_terminal"))
def test_euler_is_ddim_without_noise(schedule):
    schedule = SCHEDULES[schedule]
    grid = time_grid(schedule, 7)
    np.testing.assert_allclose(run("euler", schedule, grid), run("ddim", schedule, grid), atol=3e-6)


def literal_flow(denoise, x, times, floor=0.0, heun=False):
    """JiT's sampler in its own time 1 - t, in which v = (x0 - x) / max(t, floor), written out."""

    def velocity(x, t):
        return (denoise(x, t) - x) / max(t, floor)

    for t, s in pairwise(times):
        v = velocity(x, t)
        if heun and s > 0.0:
            v = 0.5 * (v + velocity(x + (t - s) * v, s))
        x = x + (t - s) * v
    return x


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize(("floor", "noise_scale"), [(0.0, 1.0), (0.05, 1.0), (0.05, 2.0)])
def test_on_the_flow_they_are_those_of_jit(name, floor, noise_scale):
    """arXiv 2511.13720, whose public code also keeps the denominator of v above 0.05 when it
    samples, and starts from noise of twice the size at 512 pixels.
    """
    schedule = Flow(noise_scale=noise_scale)

    def network(xp, x, t):
        return xp.tanh(x @ xp.asarray(MIX, x.dtype) + 3.0 * t)

    def denoise(x_t, t):
        x0 = network(jnp, x_t, t)
        return Denoised(with_least_scale(x0, x_t, schedule.logsnr(t), floor or 1e-9, schedule))

    x, grid = RNG.standard_normal((2, 4, 5, 3)), time_grid(schedule, 20)
    x *= noise_scale
    state = initial_state(jnp.asarray(x, jnp.float32))
    ours = sample_loop(
        SAMPLERS[name], denoise, schedule, grid, state, lambda index: 0.0 * state.x
    ).x  # fmt: skip
    times = np.linspace(1.0, 0.0, 21)
    theirs = literal_flow(lambda x, t: network(np, x, t), x, times, floor, name == "heun")
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["cosine", "flow"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("dpmpp_2m", {}), ("dpmpp_3m", {}), ("unipc", {}), ("dpmpp_2m_sde", {"eta": 1.0})],
)
def test_without_history_they_are_ddim(name, options, schedule):
    grid = padded_grid([0.8, 0.5])
    ddim = run("ddim", schedule, grid, **options)
    np.testing.assert_allclose(run(name, schedule, grid), ddim, atol=2e-6)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_sde_samplers_are_linear_in_their_noise(name):
    """On a Gaussian: half the noise is half the way to the run without any."""
    grid, none = time_grid(COSINE, 9), np.concatenate([TABLE[:1], 0.0 * TABLE[1:]])
    half = np.concatenate([TABLE[:1], 0.5 * TABLE[1:]])
    ends = [np.asarray(run(name, COSINE, grid, table)) for table in (TABLE, half, none)]
    np.testing.assert_allclose(ends[1], 0.5 * (ends[0] + ends[2]), atol=2e-6)
    assert np.abs(ends[0] - ends[2]).max() > 0.3


@pytest.mark.parametrize("name", slowly_but(["dpmpp_3m", "dpmpp_3m_sde", "unipc"], "unipc"))
def test_a_jump_back_in_time_makes_them_forget(name):
    """Resampling: the step after a jump is the first step of a run from there."""
    edit = Edit(jnp.zeros((1, 1, 1, 1)), resamplings=2, jump_length=3)
    grid, table = edited_grid(time_grid(COSINE, 7), edit), jnp.asarray(TABLE[:20, :3])
    after = 1 + int(np.argmax(np.diff(grid.times) > 0))

    @jax.jit
    def chunk(state, start, stop):
        return sample_loop(
            jumping(SAMPLERS[name]), gaussian_denoiser(COSINE), COSINE,
            grid._replace(start=start, stop=stop), state, lambda index: table[index],
        )  # fmt: skip

    jumped = chunk(initial_state(table[0], name), 0, after)
    fresh = chunk(initial_state(jumped.x, name), after, after + 1)
    jumped = chunk(jumped, after, after + 1)
    np.testing.assert_array_equal(jumped.x, fresh.x)
    np.testing.assert_array_equal(jumped.history[0].logsnr, fresh.history[0].logsnr)
    assert np.all(np.isfinite(chunk(jumped, after + 1, grid.stop).x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "of_2s", "of_edm"),
    [(COSINE, (0.4, 0.95), (0.15, 0.95)), (FLOW, (0.25, 0.7), (0.95, 1.3))],
    ids=["cosine", "flow"],
)
def test_heun_beside_other_trapezoids(schedule, of_2s, of_edm):
    """Errors on the mixture, as shares of those of DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1,
    r = 1) and of the trapezoid in sigma / alpha (arXiv 2206.00364), both written out in float64.
    """
    denoise = jax.jit(mixture_denoiser(schedule))

    def estimate(x, t):
        return np.asarray(denoise(jnp.asarray(x, jnp.float32), jnp.float32(t)).x0, np.float64)

    def trapezoid(x, num_steps, in_sigma):
        levels = [schedule.logsnr(t) for t in np.linspace(0.0, 1.0, num_steps + 1)[::-1]]
        scales = [np.asarray(schedule.alpha_sigma(level), np.float64) for level in levels]
        for i, ((a_t, s_t), (a_s, s_s)) in enumerate(pairwise(scales)):
            t, s = 1.0 - i / num_steps, 1.0 - (i + 1) / num_steps
            x0, kept = estimate(x, t), s_s / s_t
            predicted = kept * x + (a_s - kept * a_t) * x0
            if i == num_steps - 1 or (in_sigma and a_t == 0.0):
                x = predicted
            elif in_sigma:  # d(x / alpha) / d(sigma / alpha) = eps
                eps = 0.5 * (
                    (x - a_t * x0) / s_t + (predicted - a_s * estimate(predicted, s)) / s_s
                )
                x = a_s * (x / a_t + (s_s / a_s - s_t / a_t) * eps)
            else:
                x = kept * x + (a_s - kept * a_t) * 0.5 * (x0 + estimate(predicted, s))
        return x

    table = np.broadcast_to(np.linspace(-2.2, 2.2, 402).reshape(-1, 1, 1, 1), TABLE.shape)
    exact = run("heun", schedule, time_grid(schedule, MAX_STEPS), table, mixture=True)
    for num_steps in (12, 24, 80):
        found = run("heun", schedule, time_grid(schedule, num_steps), table, mixture=True)
        error, of_one, of_other = (
            np.sqrt(np.mean((each - exact) ** 2))
            for each in (found, *(trapezoid(table[0], num_steps, kind) for kind in (False, True)))
        )
        assert of_2s[0] < error / of_one < of_2s[1]
        assert of_edm[0] < error / of_other < of_edm[1]


# ---- churn


@pytest.mark.parametrize(
    "options", [{"churn": 0.0, "churn_noise": 3.0}, {"churn": 9.0, "churn_interval": (0.0, 0.0)}]
)
def test_no_churn_is_heun(options):
    grid = time_grid(COSINE, 12)
    np.testing.assert_array_equal(run("heun", COSINE, grid, **options), run("heun", COSINE, grid))


@pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["cosine", "flow"])
@pytest.mark.parametrize(("churn", "growth"), [(2.0, 0.2), (50.0, np.sqrt(2.0) - 1.0)])
def test_churn_is_that_of_edm(schedule, churn, growth):
    """arXiv 2206.00364, algorithm 2, lines 4 to 6, in its x / alpha and sigma / alpha."""
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda *values: seen.append(values), x_t, t, ordered=True)
        return Denoised(0.5 * x_t)

    table = jnp.asarray(TABLE[:3, :5])
    sampling = Sampling(steps=10, churn=churn, churn_noise=1.1, churn_interval=(0.5, 0.7))
    sample_loop(
        SAMPLERS["heun"], denoise, schedule, padded_grid([0.6, 0.4, 0.2]), initial_state(table[0]),
        lambda index: table[index], sampling,
    ).x.block_until_ready()  # fmt: skip
    jax.effects_barrier()
    alpha, sigma = (np.float64(v) for v in schedule.alpha_sigma(schedule.logsnr(0.6)))
    x_hat, t_hat = seen[0]
    alpha_hat, sigma_hat = (np.float64(v) for v in schedule.alpha_sigma(schedule.logsnr(t_hat)))
    raised = (1.0 + growth) * sigma / alpha
    np.testing.assert_allclose(sigma_hat / alpha_hat, raised, rtol=1e-5)
    noise = np.sqrt(raised**2 - (sigma / alpha) ** 2) * 1.1 * np.asarray(TABLE[1, :5])
    np.testing.assert_allclose(x_hat / alpha_hat, TABLE[0, :5] / alpha + noise, atol=2e-5)
    assert [float(t) for _, t in seen[1:]] == pytest.approx([0.4, 0.4, 0.2])


def test_churn_leaves_every_marginal_as_it_is():
    """From the marginal of data at t = 0.7 to that at 0.3, with more and less churn: x is linear in
    all noise, so its variance is a sum of squares.
    """
    mean, spread = 0.3, 0.5
    start, end = (COSINE.alpha_sigma(COSINE.logsnr(t)) for t in (0.7, 0.3))
    table = np.eye(401, 402, 1, dtype=np.float32).reshape(TABLE.shape)
    table[0] = np.hypot(start[0] * spread, start[1]) * table[0] + start[0] * mean
    for churn in (0.0, 10.0, 40.0):
        grid = time_grid(COSINE, 200, "time", 0.7, 0.3)
        x = np.asarray(run("heun", COSINE, grid, table, churn=churn, steps=200), np.float64).ravel()
        assert abs(x[0] - end[0] * mean) < 1e-4
        variance = np.sum((x[1:] - x[0]) ** 2)
        np.testing.assert_allclose(variance, (end[0] * spread) ** 2 + end[1] ** 2, rtol=2e-3)


# ---- spacings of sigma


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SIGMA_SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 50, MAX_STEPS])
def test_sigma_grids_fall_from_noise_to_clean_data(schedule, spacing, num_steps):
    schedule = SCHEDULES[schedule]
    grid = sampling_grid(schedule, Sampling(spacing=spacing, steps=num_steps))
    assert grid.times.shape == (MAX_STEPS + 1,)
    assert (grid.times[0], int(grid.stop)) == (1.0, num_steps)
    assert np.all(grid.times[num_steps:] == 0.0)
    assert np.all(np.diff(grid.times[: num_steps + 1]) < 0)


def test_sigma_grids_have_edms_levels():
    """arXiv 2206.00364, eq. 5 and table 1, on a path that it does not have itself."""
    i, count = np.arange(18), 18
    largest, smallest = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    expected = (largest + i / (count - 1) * (smallest - largest)) ** 7
    for schedule in (FLOW, SCHEDULES["zero_terminal"]):
        times = sigma_grid(schedule, count).times[1:count]
        levels = np.exp(-0.5 * np.asarray(schedule.logsnr(times), np.float64))
        np.testing.assert_allclose(levels, expected[1:], rtol=1e-4)
        alpha, sigma = VARIANCE_PRESERVING.alpha_sigma(schedule.logsnr(times))
        np.testing.assert_allclose(sigma / alpha, expected[1:], rtol=1e-4)


def test_exponential_is_uniform_in_logsnr_and_ends_with_a_leap():
    times = sigma_grid(FLOW, 9, "exponential", 0.01, 50.0).times[1:9]
    steps = np.diff(np.asarray(FLOW.logsnr(times)))
    np.testing.assert_allclose(steps, 2.0 * np.log(50.0 / 0.01) / 8, rtol=1e-3)


def test_impossible_ends_are_refused():
    with pytest.raises(ValueError, match=r"sigma_min must be below sigma_max: 3.0 and 2.0"):
        check_sampling(Sampling(sigma_min=3.0, sigma_max=2.0))
    with pytest.raises(ValueError, match="none of the schedule"):
        sigma_grid(COSINE, 5, sigma_min=1e6, sigma_max=1e7)
    with pytest.raises(ValueError, match=r"churn_interval must be two times in \[0, 1\]"):
        check_sampling(Sampling(churn_interval=(0.05, 50.0)))
    with pytest.raises(ValueError, match=r"guidance_interval must be .*, the lower first"):
        check_sampling(Sampling(guidance_interval=(0.9, 0.1)))
    with pytest.raises(ValueError, match="churn must be at least 0"):
        check_sampling(Sampling(churn=-1.0))


def test_a_gaussian_is_sampled_over_edms_levels_too():
    grid = sigma_grid(FLOW, 30)
    x = np.asarray(run("heun", FLOW, grid))
    exact = np.asarray(0.3 + 0.5 * TABLE[0])
    np.testing.assert_allclose(x, exact, atol=1e-2)
