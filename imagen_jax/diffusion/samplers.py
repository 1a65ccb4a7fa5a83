"""The samplers by name, and the one loop that drives them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from imagen_jax.diffusion.denoiser import Denoiser
from imagen_jax.diffusion.multistep import dpmpp, dpmpp_sde, unipc
from imagen_jax.diffusion.one_step import ddim, ddpm, euler, heun
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.steps import NO_ESTIMATE, Estimate, Noise, Sampler, SamplerState, Step
from imagen_jax.diffusion.time_grids import TimeGrid
from imagen_jax.typing import Images, Keys

SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp,
    "dpmpp_3m": dpmpp,
    "dpmpp_2m_sde": dpmpp_sde,
    "dpmpp_3m_sde": dpmpp_sde,
    "unipc": unipc,
    "unipc_3": unipc,
}
# The earlier estimates that these keep; all others one, which is also the preview.
HISTORY = {"dpmpp_3m": 2, "dpmpp_3m_sde": 2, "unipc": 2, "unipc_3": 3}


def noise_from_keys(keys: Keys, shape: tuple[int, int, int]) -> Noise:
    """Standard normal noise, each image's from its own key: it does not depend on the batch.

    Args:
        keys: one key an image.
        shape: (height, width, channels).
    """

    def noise(index: Int[Array, ""] | int) -> Images:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)

    return noise


def initial_state(x: Images, sampler: str = "ddpm") -> SamplerState:
    """The state before a sampler's first step: `x` is noise, or a noised image at the time of the
    start.
    """
    x = x.astype(jnp.float32)
    none = Estimate(jnp.zeros_like(x), jnp.float32(NO_ESTIMATE))
    return SamplerState(x, (none,) * HISTORY.get(sampler, 1))


def sample_loop(
    sampler: Sampler,
    denoise: Denoiser,
    schedule: Schedule,
    grid: TimeGrid,
    state: SamplerState,
    noise: Noise,
    sampling: Sampling = Sampling(),
) -> SamplerState:
    """Runs steps grid.start ... grid.stop - 1.

    `grid` and the numbers of `sampling` may be traced. Several calls that continue each other's
    state give what one call gives: so callers show progress and previews, and edit on the way.
    """
    times = jnp.asarray(grid.times)
    logsnrs = schedule.logsnr(times)

    def body(index: Int[Array, ""], state: SamplerState) -> SamplerState:
        step = Step(
            index=index,
            t=times[index],
            s=times[index + 1],
            logsnr_t=logsnrs[index],
            logsnr_s=logsnrs[index + 1],
            to_clean=times[index + 1] <= 0.0,
            then_clean=times[jnp.minimum(index + 2, len(times) - 1)] <= 0.0,
            schedule=schedule,
        )
        return sampler(denoise, state, step, noise, sampling)

    return jax.lax.fori_loop(grid.start, grid.stop, body, state)
