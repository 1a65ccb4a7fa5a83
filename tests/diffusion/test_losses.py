"""Losses: the formulas of their papers, whatever the network outputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.losses import (
    LOSS_WEIGHTS,
    Loss,
    diffusion_loss,
    loss_weight,
)
from imagen_jax.diffusion.process import PREDICTIONS, add_noise, convert, prediction_target
from imagen_jax.diffusion.schedules import Cosine, Flow, LinearBeta

SHAPE = (6, 4, 4, 3)
TIMES = jnp.array([0.1, 0.3, 0.5, 0.6, 0.75, 0.9])
SCHEDULE = Cosine(shift=-1.0)
SCHEDULES = [SCHEDULE, Flow(shift=-1.0)]
SNR = np.exp(np.asarray(SCHEDULE.logsnr(TIMES), np.float64))


def example(key):
    x0_key, eps_key, guess_key = jax.random.split(key, 3)
    x0 = jax.random.uniform(x0_key, SHAPE, minval=-1.0, maxval=1.0)
    return x0, jax.random.normal(eps_key, SHAPE), jax.random.normal(guess_key, SHAPE)


def guesses(eps, guess, x0, schedule):
    """What each kind of network says whose guess of eps is `guess`, and what would be right."""
    logsnr = schedule.logsnr(TIMES)
    x_t = add_noise(x0, eps, logsnr, schedule)
    return {
        kind: [convert(e, x_t, logsnr, "eps", kind, schedule) for e in (guess, eps)]
        for kind in PREDICTIONS
    }


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
def test_the_same_guess_costs_the_same_in_every_prediction(key, weight, schedule):
    x0, eps, guess = example(key)
    losses = [
        diffusion_loss(output, kind, x0, eps, TIMES, schedule, Loss(weight))
        for kind, (output, _) in guesses(eps, guess, x0, schedule).items()
    ]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("space", PREDICTIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_plain_losses_are_mean_squared_errors(key, space, prediction, schedule):
    x0, eps, guess = example(key)
    kinds = guesses(eps, guess, x0, schedule)
    loss = diffusion_loss(kinds[prediction][0], prediction, x0, eps, TIMES, schedule, Loss(space))
    expected = np.mean(np.square(np.subtract(*kinds[space])), axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_v_loss_of_an_x0_prediction_has_a_smallest_divisor(key):
    """arXiv 2511.13720: v = (x_t - x0) / max(sigma, 0.05) of both, the network's and the right."""
    x0, _, guess = example(key)
    t = jnp.array([0.01, 0.04, 0.06, 0.3, 0.7, 0.99])
    loss = diffusion_loss(guess, "x0", x0, x0, t, Flow(), Loss("v", min_scale=0.05))
    divisor = np.maximum(np.asarray(t), 0.05).reshape(-1, 1, 1, 1)
    expected = np.mean(((guess - x0) / divisor) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    # With twice the noise sigma is twice as large, and so is its share; alpha's is not.
    for kind, divisor in (("x0", 2.0 * np.maximum(t, 0.05)), ("eps", np.maximum(1.0 - t, 0.05))):
        own = loss_weight(Loss("v", min_scale=0.05), kind, t, Flow(noise_scale=2.0))
        np.testing.assert_allclose(own, divisor**-2.0, rtol=1e-4)
    # An error that is nobody's multiple has no divisor.
    plain = diffusion_loss(guess, "x0", x0, x0, t, Flow(), Loss("x0", min_scale=0.05))
    np.testing.assert_allclose(plain, np.mean((guess - x0) ** 2, axis=(1, 2, 3)), rtol=1e-4)


def test_the_edm_loss_is_its_papers(key):
    """(sigma^2 + 0.25) / (0.5 sigma)^2 |x0 - x0_hat|^2, sigma = sigma / alpha here (2206.00364)."""
    weight = loss_weight(Loss("edm"), "x0", TIMES, SCHEDULE)
    np.testing.assert_allclose(weight, (1 / SNR + 0.25) / (0.25 / SNR), rtol=1e-4)


@pytest.mark.parametrize(
    ("prediction", "divisor"), [("x0", np.ones(6)), ("eps", SNR), ("v", SNR + 1.0)]
)
def test_min_snr_is_the_papers_table(prediction, divisor):
    # Hang et al. 2023, section 3.4: min(SNR, gamma) for x0, over SNR for eps, over SNR + 1 for v.
    weight = loss_weight(Loss("min_snr", min_snr_gamma=5.0), prediction, TIMES, SCHEDULE)
    np.testing.assert_allclose(weight, np.minimum(SNR, 5.0) / divisor, rtol=1e-4)


def test_sigmoid_is_the_weighted_bound():
    # Kingma & Gao 2023: w(logsnr) * (-d logsnr / dt) |eps - eps_hat|^2, w = sigmoid(bias - logsnr).
    schedule = Cosine(-math.inf, math.inf)
    logsnr = np.asarray(schedule.logsnr(TIMES), np.float64)
    slope = 2.0 * np.pi / np.sin(np.pi * np.asarray(TIMES, np.float64))
    expected = slope / (1.0 + np.exp(logsnr + 3.0))
    loss = Loss("sigmoid", sigmoid_bias=-3.0)
    np.testing.assert_allclose(loss_weight(loss, "eps", TIMES, schedule), expected, rtol=1e-4)
    # In x0: exp(bias) sigmoid(logsnr - bias), the form of Hoogeboom et al. 2024.
    in_x0 = slope * np.exp(-3.0) / (1.0 + np.exp(-3.0 - logsnr))
    np.testing.assert_allclose(loss_weight(loss, "x0", TIMES, schedule), in_x0, rtol=1e-4)


@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_costs_nothing(key, weight, prediction):
    x0, eps, _ = example(key)
    target = prediction_target(prediction, x0, eps, SCHEDULE.logsnr(TIMES))
    loss = diffusion_loss(target, prediction, x0, eps, TIMES, SCHEDULE, Loss(weight))
    np.testing.assert_array_equal(loss, np.zeros(6))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_are_what_convert_gives(key, prediction):
    x0, eps, _ = example(key)
    logsnr = SCHEDULE.logsnr(TIMES)
    np.testing.assert_allclose(
        prediction_target(prediction, x0, eps, logsnr),
        convert(eps, add_noise(x0, eps, logsnr), logsnr, "eps", prediction),
        atol=2e-5,
    )


@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "schedule",
    [Cosine(), LinearBeta(), Cosine(-math.inf, math.inf), Flow()],
    ids=["cosine", "beta", "inf", "flow"],
)
def test_both_ends_are_finite_with_finite_gradients(key, weight, prediction, schedule):
    x0, eps, guess = (value[:2] for value in example(key))
    t = jnp.array([0.0, 1.0])

    def total(output):
        return diffusion_loss(output, prediction, x0, eps, t, schedule, Loss(weight)).sum()

    loss, gradient = jax.value_and_grad(total)(guess)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))


def test_half_precision_outputs_give_float32_losses(key):
    x0, eps, guess = (value.astype(jnp.bfloat16) for value in example(key))
    for prediction in PREDICTIONS:
        loss = diffusion_loss(guess, prediction, x0, eps, TIMES, SCHEDULE, Loss())
        exact = diffusion_loss(
            *(value.astype(jnp.float32) for value in (guess,)), prediction,
            x0.astype(jnp.float32), eps.astype(jnp.float32), TIMES, SCHEDULE, Loss(),
        )  # fmt: skip
        assert loss.dtype == jnp.float32
        np.testing.assert_array_equal(loss, exact)


def test_impossible_losses_are_refused(key):
    with pytest.raises(ValueError, match=r"'snr'.*min_snr"):
        Loss("snr")
    with pytest.raises(ValueError, match="0"):
        Loss("min_snr", min_snr_gamma=0.0)
    with pytest.raises(ValueError, match=r"min_scale must be in \[0, 1\), got 50"):
        Loss("v", min_scale=50.0)
