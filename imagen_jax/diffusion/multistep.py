"""Samplers that use the estimates of earlier steps: DPM-Solver++ and UniPC.

Between t and s the image is x_s = (sigma_s / sigma_t) x_t + alpha_s times the integral over lambda
of exp(lambda - lambda_s) x0(lambda) (arXiv 2211.01095, proposition 4.1), where x0 is taken for the
polynomial through the estimates. There are as many as the state's history holds, and fewer in the
first steps and the last two. The step to clean data, where lambda leaps to its end, takes the
newest one alone, and the one before, which often is long, two. An estimate from pure noise, at
lambda = -inf, is on no polynomial.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.steps import NO_ESTIMATE, Estimate, Noise, SamplerState, Step
from imagen_jax.typing import Images

Scalar = Float[Array, ""]
Node = tuple[Images, Scalar]  # x0, and its place: 0 where a step starts, 1 where it ends


def dpmpp(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); with a history of two, (3M).

    (3M) has the whole of the polynomial's integral, and so third order. Public code of that name
    takes half of the second difference, which leaves it of second order.
    """
    x0 = denoise(state.x, step.t).x0
    x = _flow(state.x, _nodes(x0, state.history, step), step)
    return state.then(x, x0, step.logsnr_t)


def dpmpp_sde(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """SDE-DPM-Solver++: the same for the reverse SDE, with new noise in every step but the last.

    There everything decays twice as fast (arXiv 2211.01095). Its first order is ddim with eta 1.
    """
    x0 = denoise(state.x, step.t).x0
    _, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    h = step.logsnr_s - step.logsnr_t
    mean = (sigma_s / sigma_t) * jnp.exp(-0.5 * h) * state.x
    mean += alpha_s * _integral(h, _nodes(x0, state.history, step))
    deviation = jnp.where(step.to_clean, 0.0, sigma_s * jnp.sqrt(-jnp.expm1(-h)))
    return state.then(mean + deviation * noise(step.index + 1), x0, step.logsnr_t)


def unipc(
    denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
) -> SamplerState:
    """UniPC of the order that the history is long (arXiv 2302.04867, algorithms 1 and 2, B_2).

    The step that led here is corrected by the estimate made here, one more node (UniC); then comes
    the next step (UniP, which of second order is DPM-Solver++(2M)). One evaluation serves both.
    """
    x0 = denoise(state.x, step.t).x0
    last, *earlier = state.history
    made = step._replace(
        logsnr_t=last.logsnr,
        logsnr_s=step.logsnr_t,
        to_clean=jnp.bool_(False),
        then_clean=step.to_clean,
    )
    nodes = _nodes(last.x0, earlier, made)
    h = 0.5 * (made.logsnr_s - made.logsnr_t)
    change = _integral(h, [*nodes, (x0, jnp.float32(1.0))]) - _integral(h, nodes)
    alpha_t, _ = step.schedule.alpha_sigma(step.logsnr_t)
    x = jnp.where(last.logsnr == NO_ESTIMATE, state.x, state.x + alpha_t * change)
    x = _flow(x, _nodes(x0, state.history[:-1], step), step)
    return state.then(x, x0, step.logsnr_t)


def _nodes(x0: Images, earlier: Sequence[Estimate], step: Step) -> list[Node]:
    """The newest estimate and the earlier ones; one that cannot be used lies nowhere (NaN, inf)."""
    span = jnp.where(step.to_clean, jnp.nan, step.logsnr_s - step.logsnr_t)
    nodes = [(x0, jnp.float32(0.0))]
    for each in earlier:
        nodes.append((each.x0, (each.logsnr - step.logsnr_t) / span))
        span = jnp.where(step.then_clean, jnp.nan, span)
    return nodes


def _flow(x: Images, nodes: Sequence[Node], step: Step) -> Images:
    """The probability flow from t to s."""
    _, sigma_t = step.schedule.alpha_sigma(step.logsnr_t)
    alpha_s, sigma_s = step.schedule.alpha_sigma(step.logsnr_s)
    h = 0.5 * (step.logsnr_s - step.logsnr_t)
    return (sigma_s / sigma_t) * x + alpha_s * _integral(h, nodes)


def _integral(h: Scalar, nodes: Sequence[Node]) -> Images:
    """Over u from 0 to 1, of h exp(-h (1 - u)) times the polynomial through the nodes.

    Of a line through two, its middle is taken for its weighted mean, as DPM-Solver++(2M) and UniPC
    with B_2 do. A node whose place is not finite is left out.
    """
    places = jnp.stack([place for _, place in nodes])
    usable = jnp.isfinite(places)
    places = jnp.where(usable, places, 0.0)
    moments = [-jnp.expm1(-h)]  # the integrals of h exp(-h (1 - u)) u^k
    for power in range(1, len(nodes)):
        moments.append(1.0 - power / h * moments[-1])
    if len(nodes) > 1:
        moments[1] = jnp.where(jnp.sum(usable) == 2, 0.5 * moments[0], moments[1])
    total = 0.0
    for j, (x0, _) in enumerate(nodes):
        basis = [1.0]  # Lagrange's: the product of (u - u_i) / (u_j - u_i), lowest power first
        for i in [i for i in range(len(nodes)) if i != j]:
            both = usable[i] & usable[j]
            slope = jnp.where(both, 1.0 / jnp.where(both, places[j] - places[i], 1.0), 0.0)
            constant = jnp.where(both, -places[i] * slope, 1.0)
            pairs = zip([*basis, 0.0], [0.0, *basis], strict=True)
            basis = [constant * same + slope * lower for same, lower in pairs]
        weight = sum(factor * moment for factor, moment in zip(basis, moments, strict=True))
        total += jnp.where(usable[j], weight, 0.0) * x0
    return total
