"""How far a denoiser's estimate of clean images is off at fixed noise levels: the one figure that
means the same for every prediction, loss weight and schedule.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.cascade.stage import Conditions, Stage, make_stage_denoiser
from imagen_jax.devices.compile_options import program
from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images.pixels import to_float
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings

LOGSNRS = (-6.0, -3.0, 0.0, 3.0, 6.0)


@program(static_argnames="stage")
def squared_errors(
    stage: Stage, params: Params, text: TextEmbeddings | None, x0: Images, eps: Images, logsnr
) -> Float[Array, " batch"]:
    """|x0_hat(alpha x0 + sigma eps) - x0|^2 of each image, the mean over its values."""
    x_t = add_noise(x0, eps, logsnr, stage.schedule)
    denoise = make_stage_denoiser(stage, params, Conditions(text=text), Sampling(threshold="none"))
    found = denoise(x_t, stage.schedule.time(logsnr)).x0
    return jnp.mean(jnp.square(found - x0), axis=(1, 2, 3))


def x0_errors(
    stage: Stage,
    params: Params,
    text: TextEmbeddings | None,
    images: np.ndarray,
    keys: Keys,
    logsnrs: Sequence[float] = LOGSNRS,
    batch_size: int = 64,
) -> dict[float, float]:
    """{log-SNR: mean squared error of x0 in the units of images in [-1, 1]}, without guidance.

    Args:
        text: a row an image, or None.
        images: uint8 [N, H, W, 3] of the stage's resolution.
        keys: one an image, which its noise is made from, the same at every level.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))
    sums = dict.fromkeys(logsnrs, 0.0)
    for start in range(0, len(images), batch_size):
        # The last batch is filled up with the last image, so that one program does for all.
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        x0, eps = to_float(jnp.asarray(images[rows])), noise(keys[rows])
        batch_text = jax.tree.map(lambda leaf, rows=rows: leaf[rows], text)
        for logsnr in logsnrs:
            errors = squared_errors(stage, params, batch_text, x0, eps, jnp.float32(logsnr))
            sums[logsnr] += float(np.asarray(errors)[: len(images) - start].sum())
    return {logsnr: total / len(images) for logsnr, total in sums.items()}
