"""From a network's output to a denoised image: guidance, prediction type and thresholding.

A denoiser is a function `(x_t, t) -> Denoised`. Samplers see nothing else of a model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.process import convert, per_example
from imagen_jax.diffusion.sampling import Number, Sampling
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.typing import Images


class Denoised(NamedTuple):
    """The model's estimate of the clean image.

    variance: where a network learns it, the place of log variance between the posterior's (0) and
    the forward process's (1), for each value of the image (arXiv 2102.09672, eq. 15); None
    elsewhere.
    """

    x0: Images
    variance: Images | None = None


Predict = Callable[[Images, Float[Array, " batch"]], Images]
PredictPair = Callable[[Images, Float[Array, " batch"]], tuple[Images, Images]]
Denoiser = Callable[[Images, Number], Denoised]


def static_threshold(x0: Images) -> Images:
    """Clips to [-1, 1] (arXiv 2205.11487, section 2.3)."""
    return jnp.clip(x0, -1.0, 1.0)


def dynamic_threshold(x0: Images, sampling: Sampling) -> Images:
    """Clips each image to [-s, s] and divides by s: a percentile of its |x0|, at least 1.

    arXiv 2205.11487, section 2.3; the cap is DeepFloyd IF's.
    """
    magnitudes = jnp.abs(x0).reshape(x0.shape[0], -1)
    percentile = jnp.broadcast_to(jnp.asarray(sampling.percentile, jnp.float32), x0.shape[:1])
    scale = jax.vmap(jnp.percentile)(magnitudes, percentile)
    scale = per_example(jnp.clip(scale, 1.0, sampling.cap), x0)
    return jnp.clip(x0 / scale, -1.0, 1.0)


THRESHOLDS = {
    "none": lambda x0, sampling: x0,
    "static": lambda x0, sampling: static_threshold(x0),
    "dynamic": dynamic_threshold,
}


def guidance_weight(sampling: Sampling, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """The weight that acts at each time: `sampling.guidance` inside the interval, 1 outside."""
    start, stop = sampling.guidance_interval
    return jnp.where((start <= t) & (t <= stop), jnp.asarray(sampling.guidance, jnp.float32), 1.0)


def guide(
    conditional: Images, unconditional: Images, weight: Number, rescale: Number = 0.0
) -> Images:
    """w cond + (1 - w) uncond (arXiv 2205.11487, eq. 2), rescaled to the deviation of cond.

    The kinds of prediction are linear in each other at the same x_t, so the mix may be made in any
    of them; the rescaling is made in the network's own, as in arXiv 2305.08891, section 3.4.
    """
    weight = per_example(weight, conditional)
    rescale = per_example(rescale, conditional)
    mixed = weight * conditional + (1.0 - weight) * unconditional
    axes = tuple(range(1, mixed.ndim))
    deviation = jnp.std(mixed, axis=axes, keepdims=True)
    wanted = jnp.std(conditional, axis=axes, keepdims=True)
    ratio = jnp.where(deviation > 0.0, wanted / jnp.maximum(deviation, 1e-20), 1.0)
    return mixed * (1.0 + rescale * (ratio - 1.0))


def make_denoiser(
    predict: Predict,
    predict_pair: PredictPair | None,
    schedule: Schedule,
    prediction: str,
    sampling: Sampling = Sampling(),
) -> Denoiser:
    """The denoiser of a network.

    Args:
        predict: the conditional output at (x_t, t), t in [0, 1] with one value an example. With
            twice as many channels as x_t, the second half is a learned variance in [-1, 1].
        predict_pair: the conditional and the unconditional output, from one doubled batch; not
            evaluated where every weight is 1. None where there is no unconditional one; then
            guidance is not used.
        prediction: what the network outputs: "eps", "x0" or "v".
        sampling: its guidance, thresholding, and whether a learned variance is passed on. Its
            numbers may be traced, and those of guidance and thresholding may be one an example.
    """

    def denoise(x_t: Images, t: Number) -> Denoised:
        x_t = x_t.astype(jnp.float32)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:1])

        def conditional_only() -> tuple[Images, Images | None]:
            return _split(predict(x_t, t), x_t.shape[-1])

        def guided() -> tuple[Images, Images | None]:
            (conditional, variance), (unconditional, _) = (
                _split(output, x_t.shape[-1]) for output in predict_pair(x_t, t)
            )
            guided = guide(conditional, unconditional, weight, sampling.guidance_rescale)
            return guided, variance

        if predict_pair is None:
            output, variance = conditional_only()
        else:
            weight = guidance_weight(sampling, t)
            output, variance = jax.lax.cond(jnp.any(weight != 1.0), guided, conditional_only)
        x0 = convert(output, x_t, schedule.logsnr(t), prediction, "x0")
        x0 = THRESHOLDS[sampling.threshold](x0, sampling)
        return Denoised(x0, variance if sampling.learned_variance else None)

    return denoise


def _split(
    output: Float[Array, "batch height width outputs"], channels: int
) -> tuple[Images, Images | None]:
    """The prediction, and the learned variance from [-1, 1] to [0, 1] if any; both float32."""
    output = output.astype(jnp.float32)
    if output.shape[-1] == channels:
        return output, None
    return output[..., :channels], 0.5 * (output[..., channels:] + 1.0)
