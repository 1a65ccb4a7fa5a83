"""Power-law averages: their profiles, the update that keeps them, and any width made of two."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.pipeline.power_ema import (
    MAX_WIDTH,
    exponent,
    inner_products,
    reachable_widths,
    relative_width,
    solve_weights,
)
from imagen_jax.pipeline.snapshots import synthesize, write_snapshot
from imagen_jax.training.state import update_power_ema

STEPS, EVERY = 400, 20
STORED, WANTED = ("0.05", "0.1"), ("0.07", "0.12")


def test_width_and_exponent_are_inverse():
    for width in np.random.default_rng(0).uniform(0.001, MAX_WIDTH - 0.001, 50):
        assert relative_width(exponent(width)) == pytest.approx(width, rel=1e-9)
    # Section 3.1 of the paper has these.
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.1) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.0, -0.1, MAX_WIDTH, 1.0, float("nan")])
def test_a_width_that_no_profile_has_is_named(width):
    with pytest.raises(ValueError, match=f"below 0.2887, not {width}"):
        exponent(width)


def profile(grid: np.ndarray, step: float, gamma: float) -> np.ndarray:
    return np.where(grid <= step, (gamma + 1) / step * (grid / step) ** gamma, 0)


def test_inner_products_are_those_of_numerical_integration():
    rng = np.random.default_rng(1)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    for _ in range(20):
        (one, other), gammas = rng.uniform(10, 1000, 2), rng.uniform(0, 20, 2)
        end = min(one, other)  # beyond it one of the two is 0
        grid = (nodes + 1) * end / 2
        values = profile(grid, one, gammas[0]) * profile(grid, other, gammas[1])
        found = inner_products(one, gammas[0], other, gammas[1])
        assert found == pytest.approx(values @ weights * end / 2, rel=1e-8)


@pytest.fixture(scope="module")
def walk() -> dict[int, dict[str, np.ndarray]]:
    """Averages of a random walk of 1,000 parameters, as training keeps them: {step: {width: .}}."""
    moves = jax.random.normal(jax.random.key(0), (STEPS, 1000))
    start = {width: {"w": jnp.zeros(1000)} for width in STORED + WANTED}

    def update(carried, now):
        averages, params = carried
        step, move = now
        averages = update_power_ema(averages, {"w": params + move}, step)
        return (averages, params + move), averages

    steps = jnp.arange(1, STEPS + 1)
    _, kept = jax.jit(lambda: jax.lax.scan(update, (start, jnp.ones(1000)), (steps, moves)))()
    kept = jax.device_get(kept)
    return {
        step: {width: values["w"][step - 1] for width, values in kept.items()}
        for step in range(1, STEPS + 1)
    }


def test_the_update_weighs_each_step_by_its_part_of_the_profile(walk):
    """Step s has the integral of p from s - 1 to s; the first average is the parameters."""
    moves = np.asarray(jax.random.normal(jax.random.key(0), (STEPS, 1000)), np.float64)
    params = 1 + np.cumsum(moves, axis=0)
    for width in STORED + WANTED:
        np.testing.assert_allclose(walk[1][width], params[0], rtol=1e-6)
        for step in (7, STEPS):
            shares = np.diff((np.arange(step + 1) / step) ** (exponent(float(width)) + 1))
            expected = shares @ params[:step]
            error = np.linalg.norm(walk[step][width] - expected) / np.linalg.norm(expected)
            assert error < 2e-6
        times = np.arange(1, step + 1) - 0.5
        spread = np.sqrt(shares @ times**2 - (shares @ times) ** 2) / step
        assert spread == pytest.approx(float(width), rel=1e-3)


def test_late_in_a_long_run_the_rate_keeps_its_digits():
    step = 3_000_000
    after = update_power_ema({"0.05": {"w": jnp.zeros(())}}, {"w": jnp.ones(())}, jnp.int32(step))
    exact = -np.expm1((exponent(0.05) + 1) * np.log1p(-1 / step))
    assert float(after["0.05"]["w"]) == pytest.approx(exact, rel=1e-5)


def test_weights_sum_to_one_and_no_others_that_do_fit_better():
    rng = np.random.default_rng(2)
    steps, widths = np.repeat(np.arange(1, 9) * 100, 2).tolist(), [0.05, 0.1] * 8
    gammas = np.asarray([exponent(width) for width in widths])
    # The unit mass of a profile makes all of them comparable on a fine grid.
    grid = (np.arange(16_000) + 0.5) / 20
    columns = np.stack([profile(grid, *each) for each in zip(steps, gammas, strict=True)], axis=1)
    for width in (0.03, 0.07, 0.12, 0.2):
        weights, misfit = solve_weights(steps, widths, 800, width)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        wanted = profile(grid, 800, exponent(width))

        def missed(weights, wanted=wanted):
            return np.linalg.norm(columns @ weights - wanted) / np.linalg.norm(wanted)

        assert missed(weights) == pytest.approx(misfit, rel=1e-2)
        for _ in range(20):
            change = rng.normal(size=16) * 0.01
            assert missed(weights + change - change.mean()) > missed(weights)


def test_a_stored_average_is_its_own():
    weights, misfit = solve_weights([100, 100, 200, 200], [0.05, 0.1] * 2, 200, 0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-9)
    assert misfit < 1e-6


def test_more_snapshots_reach_more_widths():
    reached = []
    for count in (4, 8, 32):
        steps = np.repeat(np.arange(1, count + 1) * (256 // count), 2).tolist()
        reached.append(reachable_widths(steps, [0.05, 0.1] * count, 256))
    lows, highs = zip(*reached, strict=True)
    assert lows[0] > lows[1] > lows[2]
    assert highs[0] < highs[1] <= highs[2] < MAX_WIDTH
    assert reachable_widths([10], [0.2], 1000) is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_width_that_was_not_kept_is_put_together(walk, tmp_path: Path, dtype: str):
    """Within 1 % of the distance between the two stored averages."""
    for step in range(EVERY, STEPS + 1, EVERY):
        averages = {width: {"w": jnp.asarray(walk[step][width])} for width in STORED}
        write_snapshot(tmp_path, step, averages, dtype)
    stored = [walk[STEPS][width] for width in STORED]
    distance = np.linalg.norm(stored[0] - stored[1])
    for width in WANTED:
        step, params = synthesize(tmp_path, float(width))
        assert (step, params["w"].dtype) == (STEPS, np.float32)
        error = np.linalg.norm(params["w"] - walk[STEPS][width])
        assert error < 0.01 * distance
        assert np.linalg.norm(stored[0] - walk[STEPS][width]) > 0.3 * distance
