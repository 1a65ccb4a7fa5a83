"""What guidance does from step to step: samplers, wrapped for the kinds that need it."""

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.denoiser import Denoised, Denoiser
from imagen_jax.diffusion.guidance import guidance_weight
from imagen_jax.diffusion.sampling import Number, Sampling
from imagen_jax.diffusion.steps import Noise, Sampler, SamplerState, Step
from imagen_jax.typing import Images


def guided_sampler(sampler: Sampler, sampling: Sampling) -> Sampler:
    """The sampler as the kind of guidance wants it; its first state from `guided_start`."""
    wrap = WRAPPERS.get(sampling.guidance_kind)
    return sampler if wrap is None else wrap(sampler)


def guided_start(state: SamplerState, sampling: Sampling) -> SamplerState:
    """The state before the first step, with an average of nothing for momentum."""
    if sampling.guidance_kind != "apg":
        return state
    return state._replace(average=jnp.zeros_like(state.x))


def remembering(sampler: Sampler) -> Sampler:
    """The sampler with the momentum of adaptive projected guidance (arXiv 2410.02416).

    The average goes on once a step, at the step's first evaluation, which no sampler makes inside a
    condition; later ones of the same step see the average of the steps before, too.
    """

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
    ) -> SamplerState:
        averages = []

        def from_average(x_t: Images, t: Number) -> Denoised:
            denoised = denoise(x_t, t, state.average)
            averages.append(denoised.average)
            return denoised

        after = sampler(from_average, state, step, noise, sampling)
        return after._replace(average=averages[0])

    return step


def waiting(sampler: Sampler) -> Sampler:
    """The sampler with the zero-init of CFG-Zero* (arXiv 2503.18886, section 4.2).

    In the first steps the velocity is zero, so that the image stays as it is; nothing is evaluated.
    """

    def step(
        denoise: Denoiser, state: SamplerState, step: Step, noise: Noise, sampling: Sampling
    ) -> SamplerState:
        guided = jnp.any(guidance_weight(sampling, step.t[None]) != 1.0)
        return jax.lax.cond(
            guided & (step.index < sampling.zero_init_steps),
            lambda: state,
            lambda: sampler(denoise, state, step, noise, sampling),
        )

    return step


WRAPPERS = {"apg": remembering, "cfg_zero": waiting}
