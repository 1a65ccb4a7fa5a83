"""Denoisers: guidance, thresholding, prediction types, learned variance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.denoiser import make_denoiser
from imagen_jax.diffusion.guidance import linear, rescaled
from imagen_jax.diffusion.process import PREDICTIONS, add_noise, convert
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.schedules import Cosine, LinearBeta
from imagen_jax.diffusion.thresholding import THRESHOLDS, dynamic_threshold, static_threshold

SHAPE = (3, 6, 6, 3)
SCHEDULE = Cosine()
T = jnp.array([0.2, 0.5, 0.8])


def conditional(x_t, t):
    return jnp.sin(3.0 * x_t) + t.reshape(-1, 1, 1, 1)


def unconditional(x_t, t):
    return 0.5 * jnp.cos(2.0 * x_t) - t.reshape(-1, 1, 1, 1) ** 2


def pair(x_t, t):
    return conditional(x_t, t), unconditional(x_t, t)


def denoiser(prediction="eps", threshold="none", **kwargs):
    sampling = Sampling(threshold=threshold, **kwargs)
    return make_denoiser(conditional, pair, SCHEDULE, prediction, sampling)


def images(key):
    return jax.random.normal(key, SHAPE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_gives_the_clean_image(key, prediction):
    x0, eps = jax.random.uniform(key, SHAPE, minval=-1.0, maxval=1.0), images(jax.random.key(1))
    logsnr = SCHEDULE.logsnr(T)
    x_t = add_noise(x0, eps, logsnr)
    output = convert(eps, x_t, logsnr, "eps", prediction)
    denoised = make_denoiser(lambda x, t: output, None, SCHEDULE, prediction)(x_t, T)
    np.testing.assert_allclose(denoised.x0, x0, atol=2e-5)
    assert denoised.variance is None


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", [0.0, 1.0, 1.35, 8.0])
def test_guidance_is_the_papers_mix_in_every_prediction(key, prediction, weight):
    # Equation 2 in eps; linear conversions leave it the same in x0.
    x_t, logsnr = images(key), SCHEDULE.logsnr(T)
    eps_cond, eps_uncond = (convert(o, x_t, logsnr, prediction, "eps") for o in pair(x_t, T))
    mixed = weight * eps_cond + (1.0 - weight) * eps_uncond
    expected = convert(mixed, x_t, logsnr, "eps", "x0")
    x0 = denoiser(prediction, guidance=weight)(x_t, T).x0
    np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-3)


def test_weight_one_is_conditional_alone(key):
    x_t = images(key)
    plain = Sampling(threshold="none")
    expected = make_denoiser(conditional, None, SCHEDULE, "eps", plain)(x_t, T).x0
    for rescale in (0.0, 0.7):
        result = denoiser(guidance=1.0, guidance_rescale=rescale)(x_t, T).x0
        np.testing.assert_array_equal(result, expected)
    # Also where another example of the batch is guided.
    mixed = denoiser(guidance=jnp.array([1.0, 4.0, 1.0]), guidance_rescale=0.7)(x_t, T).x0
    np.testing.assert_allclose(mixed[::2], expected[::2], rtol=1e-5, atol=1e-5)
    assert np.abs(mixed[1] - expected[1]).max() > 0.1


def test_weight_zero_is_unconditional(key):
    x_t = images(key)
    plain = Sampling(threshold="none")
    expected = make_denoiser(unconditional, None, SCHEDULE, "v", plain)(x_t, T).x0
    np.testing.assert_allclose(denoiser("v", guidance=0.0)(x_t, T).x0, expected, atol=1e-6)


class Counted:
    """Counts evaluations as they happen, and traces."""

    def __init__(self):
        self.singles = self.pairs = self.traces = 0

    def predict(self, x_t, t):
        jax.debug.callback(lambda: setattr(self, "singles", self.singles + 1))
        return conditional(x_t, t)

    def predict_pair(self, x_t, t):
        jax.debug.callback(lambda: setattr(self, "pairs", self.pairs + 1))
        return pair(x_t, t)

    def jitted(self):
        def run(x_t, t, sampling):
            self.traces += 1
            denoise = make_denoiser(self.predict, self.predict_pair, SCHEDULE, "eps", sampling)
            return denoise(x_t, t).x0

        return jax.jit(run)

    def counts(self):
        jax.effects_barrier()
        result = self.singles, self.pairs
        self.singles = self.pairs = 0
        return result


def test_one_evaluation_where_guidance_does_nothing(key):
    counted, x_t = Counted(), images(key)
    run = counted.jitted()
    for guidance, interval, t, expected in [
        (1.0, (0.0, 1.0), 0.5, (1, 0)),
        (3.0, (0.0, 1.0), 0.5, (0, 1)),
        (3.0, (0.2, 0.7), 0.5, (0, 1)),
        (3.0, (0.2, 0.7), 0.1, (1, 0)),
        (3.0, (0.2, 0.7), 0.8, (1, 0)),
    ]:
        sampling = Sampling(guidance=guidance, guidance_interval=interval, threshold="none")
        run(x_t, t, traced(sampling)).block_until_ready()
        assert counted.counts() == expected, (guidance, interval, t)
    assert counted.traces == 1


def test_new_values_never_retrace(key):
    counted, x_t = Counted(), images(key)
    run = counted.jitted()
    results = [
        np.asarray(run(x_t, 0.5, traced(Sampling(
            guidance=weight, guidance_interval=(start, 0.9), guidance_rescale=rescale,
            percentile=percentile, cap=cap,
        ))))
        for weight, start, rescale, percentile, cap in [
            (1, 0.0, 0.0, 99.5, 1.5), (4.0, 0.0, 0.0, 99.5, 1.5), (4.0, 0.6, 0.0, 99.5, 1.5),
            (4.0, 0.0, 0.7, 99.5, 1.5), (4.0, 0.0, 0.0, 80, None), (4.0, 0.0, 0.0, 99.5, 1.1),
        ]
    ]  # fmt: skip
    assert counted.traces == 1
    for one, other in itertools.combinations([results[i] for i in (0, 1, 3, 4, 5)], 2):
        assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(results[0], results[2])


def test_interval_acts_example_by_example(key):
    x_t = images(key)
    free = denoiser()(x_t, T).x0
    guided = denoiser(guidance=5.0)(x_t, T).x0
    inside = denoiser(guidance=5.0, guidance_interval=(0.5, 0.7))(x_t, T).x0
    np.testing.assert_allclose(inside[::2], free[::2], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(inside[1], guided[1])


def test_rescale_restores_the_deviation(key):
    cond, uncond = pair(images(key), T)
    plain = linear(cond, uncond, jnp.full(3, 6.0), Sampling())
    np.testing.assert_array_equal(rescaled(plain, cond, 0.0), plain)
    full = rescaled(plain, cond, 1.0)
    axes = (1, 2, 3)
    np.testing.assert_allclose(full.std(axis=axes), cond.std(axis=axes), rtol=1e-5)
    # Lin et al. 2023: phi * rescaled + (1 - phi) * plain.
    np.testing.assert_allclose(
        rescaled(plain, cond, 0.7), 0.7 * full + 0.3 * plain, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(rescaled(jnp.zeros(SHAPE), jnp.zeros(SHAPE), 1.0), 0.0)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.5, 100.0])
@pytest.mark.parametrize("cap", [np.inf, 1.5, 1.0])
def test_dynamic_thresholding_is_numpys(key, percentile, cap):
    x0 = images(key) * jnp.array([0.2, 1.0, 3.0]).reshape(3, 1, 1, 1)
    result = dynamic_threshold(x0, Sampling(percentile=percentile, cap=cap))
    for image, thresholded in zip(np.asarray(x0, np.float64), result, strict=True):
        scale = min(max(np.percentile(np.abs(image), percentile), 1.0), cap)
        np.testing.assert_allclose(thresholded, np.clip(image, -scale, scale) / scale, atol=5e-6)
    assert np.abs(result).max() <= 1.0


def test_dynamic_thresholding_leaves_images_in_range_alone(key):
    x0 = jax.random.uniform(key, SHAPE, minval=-1.0, maxval=1.0)
    np.testing.assert_array_equal(dynamic_threshold(x0, Sampling(percentile=100.0)), x0)


def test_static_thresholding_is_a_clip_and_the_limit_of_the_dynamic_one(key):
    x0 = 2.0 * images(key)
    np.testing.assert_array_equal(static_threshold(x0), np.clip(x0, -1.0, 1.0))
    np.testing.assert_array_equal(dynamic_threshold(x0, Sampling(cap=1.0)), static_threshold(x0))


def test_threshold_modes_reach_the_denoiser(key):
    x_t = 3.0 * images(key)
    raw = denoiser()(x_t, T).x0
    assert np.abs(raw).max() > 1.0
    np.testing.assert_array_equal(denoiser(threshold="static")(x_t, T).x0, static_threshold(raw))
    np.testing.assert_allclose(
        denoiser(threshold="dynamic")(x_t, T).x0, dynamic_threshold(raw, Sampling()), atol=1e-6
    )


def test_learned_variance_is_the_conditional_one_and_not_guided(key):
    def wide(x_t, t):
        return jnp.concatenate([conditional(x_t, t), jnp.tanh(x_t)], axis=-1)

    def wide_pair(x_t, t):
        return wide(x_t, t), jnp.concatenate([unconditional(x_t, t), x_t * 0.0], axis=-1)

    x_t = images(key)
    for weight in (1.0, 4.0):
        sampling = Sampling(guidance=weight, threshold="none")
        result = make_denoiser(wide, wide_pair, SCHEDULE, "eps", sampling)(x_t, T)
        np.testing.assert_array_equal(result.x0, denoiser(guidance=weight)(x_t, T).x0)
        np.testing.assert_allclose(result.variance, 0.5 * (np.tanh(x_t) + 1.0), atol=1e-6)


def test_a_scalar_time_is_everyones(key):
    x_t = images(key)
    np.testing.assert_array_equal(denoiser()(x_t, 0.4).x0, denoiser()(x_t, jnp.full(3, 0.4)).x0)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta(), Cosine(-np.inf, np.inf)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_both_ends_are_finite(key, schedule, prediction, threshold):
    sampling = Sampling(guidance=7.5, guidance_rescale=0.7, threshold=threshold)
    denoise = make_denoiser(conditional, pair, schedule, prediction, sampling)
    for t in (0.0, 1.0):
        assert np.all(np.isfinite(denoise(images(key), t).x0))


def test_half_precision_networks_give_float32(key):
    def half(x_t, t):
        assert x_t.dtype == t.dtype == jnp.float32
        return conditional(x_t, t).astype(jnp.bfloat16)

    def both(x_t, t):
        return half(x_t, t), half(x_t, t)

    denoise = make_denoiser(half, both, SCHEDULE, "v", Sampling(guidance=2.0))
    denoised = denoise(images(key).astype(jnp.bfloat16), T)
    assert denoised.x0.dtype == jnp.float32
