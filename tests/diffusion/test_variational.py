"""The variational bound against the paper's formulas (arXiv 2102.09672) in torch, float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.losses import Loss, diffusion_loss
from imagen_jax.diffusion.process import add_noise, convert
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.diffusion.variational import discretized_log_likelihood, variational_bound

torch = pytest.importorskip("torch", reason="the reference computation")

STEPS = np.array([0, 0, 1, 20, 400, 999])
SHAPE = (6, 4, 3, 3)
TIMES = jnp.asarray((STEPS + 1) / 1000, jnp.float32)
KINDS = ["linear", "squaredcos_cap_v2"]


def example():
    rng = np.random.default_rng(1)
    x0 = rng.integers(0, 256, SHAPE) / 127.5 - 1.0
    x0[0, :2] = np.where(rng.random((2, 3, 3)) < 0.5, -1.0, 1.0)  # the outermost values
    eps = rng.normal(size=SHAPE)
    guess = eps + 0.3 * rng.normal(size=SHAPE)
    output = np.concatenate([guess, rng.uniform(-1.2, 1.2, SHAPE)], -1)
    return tuple(value.astype(np.float32) for value in (x0, eps, output))


def reference(kind, x0, eps, output):
    """Bits per dimension of each example, and the gradient of their sum in the whole output."""
    betas = torch.from_numpy(DiscreteBeta(kind).betas()).double()
    signal = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1), signal[:-1]]).double()
    variances = (1 - before) / (1 - signal) * betas
    variances[0] = variances[1]
    x0, eps, output = (torch.from_numpy(value).double() for value in (x0, eps, output))
    output.requires_grad_(True)
    guess, place = output.split(3, -1)
    guess = guess.detach()
    beta, bar, last, low = (table[STEPS].reshape(-1, 1, 1, 1) for table in
                            (betas, signal, before, variances))  # fmt: skip
    x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    true_mean = (
        last.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - last) / (1 - bar) * x_t
    )
    mean = (x_t - beta / (1 - bar).sqrt() * guess) / (1 - beta).sqrt()
    share = (place + 1) / 2
    variance = torch.exp(share * beta.log() + (1 - share) * low.log())
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(true_mean, low.sqrt().expand_as(mean)),
        torch.distributions.Normal(mean, variance.sqrt()),
    )

    def below(x):
        return torch.special.ndtr((x - mean) / variance.sqrt())

    upper = torch.where(x0 > 0.999, 1.0, below(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, below(x0 - 1 / 255))
    likelihood = torch.log((upper - lower).clamp(min=1e-30))
    first = torch.from_numpy(STEPS == 0).reshape(-1, 1, 1, 1)
    bits = torch.where(first, -likelihood, divergence).mean((1, 2, 3)) / math.log(2)
    (gradient,) = torch.autograd.grad(bits.sum(), output)
    return bits.detach().numpy(), gradient.numpy()


@functools.partial(jax.jit, static_argnums=(0, 1))
def bound_and_gradient(kind, prediction, x0, eps, output):
    def total(output):
        bits = variational_bound(output, prediction, x0, eps, TIMES, DiscreteBeta(kind))
        return bits.sum(), bits

    gradient, bits = jax.grad(total, has_aux=True)(output)
    return bits, gradient


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_papers(kind):
    values = example()
    bits, gradient = bound_and_gradient(kind, "eps", *values)
    expected, expected_gradient = reference(kind, *values)
    # Step 0: the noise there is 6e-3, of which float32 tables of alpha^2 keep three digits.
    np.testing.assert_allclose(bits[:2], expected[:2], rtol=1e-3)
    np.testing.assert_allclose(bits[2:], expected[2:], rtol=1e-4)
    np.testing.assert_array_equal(gradient[..., :3], 0.0)
    scale = np.abs(expected_gradient).max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(gradient / scale, expected_gradient / scale, atol=1e-3)
    assert (scale > 0).all()


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_the_same_guess_costs_the_same_in_every_prediction(prediction):
    x0, eps, output = example()
    logsnr = DiscreteBeta().logsnr(TIMES)
    x_t = add_noise(jnp.asarray(x0), jnp.asarray(eps), logsnr)
    mean = convert(jnp.asarray(output[..., :3]), x_t, logsnr, "eps", prediction)
    other = np.concatenate([mean, output[..., 3:]], -1)
    ours = bound_and_gradient("squaredcos_cap_v2", prediction, x0, eps, other)[0]
    expected = bound_and_gradient("squaredcos_cap_v2", "eps", x0, eps, output)[0]
    # At the noisiest step x0 and v say eps with few digits left.
    np.testing.assert_allclose(ours[:5], expected[:5], rtol=1e-3)


def test_the_hybrid_loss_is_the_sum():
    """Eq. 16: L_simple + lambda L_vlb, the bound of all steps estimated from one."""
    x0, eps, output = (jnp.asarray(value) for value in example())
    schedule = DiscreteBeta()

    def loss(weight, output):
        return diffusion_loss(output, "eps", x0, eps, TIMES, schedule, Loss(vlb_weight=weight))

    simple = np.mean((np.asarray(output[..., :3]) - np.asarray(eps)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss(0.0, output), simple, rtol=1e-5)
    bits = bound_and_gradient("squaredcos_cap_v2", "eps", x0, eps, output)[0]
    np.testing.assert_allclose(loss(0.001, output), simple + 0.001 * 1000 * bits, rtol=1e-5)
    plain, hybrid = (jax.grad(lambda o, w=w: loss(w, o).sum())(output) for w in (0.0, 0.001))
    np.testing.assert_allclose(hybrid[..., :3], plain[..., :3], rtol=1e-6)
    np.testing.assert_array_equal(plain[..., 3:], 0.0)
    assert np.abs(hybrid[..., 3:]).min() > 0


def test_a_perfect_network_pays_nothing_but_the_last_step():
    x0, eps, _ = example()
    output = np.concatenate([eps, -np.ones(SHAPE, np.float32)], -1)
    bits = bound_and_gradient("squaredcos_cap_v2", "eps", x0, eps, output)[0]
    np.testing.assert_allclose(bits[2:], 0.0, atol=1e-5)
    assert (bits[:2] > 0.1).all()


@pytest.mark.parametrize("deviation", [1e-3, 5e-3, 0.1, 2.0])
def test_the_values_of_a_pixel_share_all_probability(deviation):
    values = jnp.asarray(np.arange(256) / 127.5 - 1.0, jnp.float32)
    for mean in (-1.3, -0.2, 0.4, 0.9999):
        log_probability = discretized_log_likelihood(
            values, jnp.full(256, mean), jnp.full(256, math.log(deviation))
        )
        assert np.isfinite(log_probability).all()
        assert float(jnp.exp(log_probability).sum()) == pytest.approx(1.0, abs=1e-3)


def test_what_the_bound_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"-0\.1"):
        Loss(vlb_weight=-0.1)
