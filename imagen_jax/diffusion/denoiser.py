"""From a network's output to a denoised image: guidance, prediction type and thresholding.

A denoiser is a function `(x_t, t) -> Denoised`. Samplers see nothing else of a model. That of a
flow map takes `s` too, the time that the step leads to. Guidance with
momentum takes and gives an average, too, which is passed on around the samplers (`guided_steps`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.guidance import GUIDANCES, guidance_weight, rescaled, with_momentum
from imagen_jax.diffusion.process import convert, with_least_scale
from imagen_jax.diffusion.sampling import Number, Sampling
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.thresholding import THRESHOLDS
from imagen_jax.typing import Images


class Denoised(NamedTuple):
    """The model's estimate of the clean image.

    variance: where a network learns it, the place of log variance between the posterior's (0) and
    the forward process's (1), for each value of the image (arXiv 2102.09672, eq. 15); None
    elsewhere. average: of the guidance of this and earlier steps, where one is kept; else None.
    """

    x0: Images
    variance: Images | None = None
    average: Images | None = None


Predict = Callable[..., Images]  # of x_t and times: t, or t and s
PredictPair = Callable[..., tuple[Images, Images]]
Denoiser = Callable[..., Denoised]  # of (x_t, t), or of (x_t, t, average); of a flow map with s=...


def make_denoiser(
    predict: Predict,
    predict_pair: PredictPair | None,
    schedule: Schedule,
    prediction: str,
    sampling: Sampling = Sampling(),
    min_scale: float = 0.0,
    guided: bool | None = None,
) -> Denoiser:
    """The denoiser of a network.

    Args:
        predict: the conditional output at (x_t, t), t in [0, 1] with one value an example; of a
            flow map at (x_t, t, s). With twice as many channels as x_t, the second half is a
            learned variance in [-1, 1].
        predict_pair: the conditional output and that to be led away from, as the same kind of
            prediction; not evaluated where every weight is 1. None where there is no such pair;
            then guidance is not used.
        prediction: what the network outputs, a key of PREDICTIONS.
        sampling: its guidance, thresholding, and whether a learned variance is passed on. Its
            numbers may be traced, and those of guidance and thresholding may be one an example.
        min_scale: of a network that predicts x0, see `with_least_scale`; 0 for none.
        guided: whether the pair is evaluated, always or never; None: where a weight is not 1.
    """
    kind = GUIDANCES[sampling.guidance_kind]
    space = kind.space or prediction

    def denoise(
        x_t: Images, t: Number, average: Images | None = None, s: Number | None = None
    ) -> Denoised:
        x_t, times = x_t.astype(jnp.float32), (t,) if s is None else (t, s)
        times = [jnp.broadcast_to(jnp.asarray(time, jnp.float32), x_t.shape[:1]) for time in times]
        logsnr = schedule.logsnr(times[0])

        def change(value: Images, source: str, target: str) -> Images:
            return convert(value, x_t, logsnr, source, target, schedule)

        def conditional_only() -> tuple[Images, Images | None, Images | None]:
            return *_split(predict(x_t, *times), x_t.shape[-1]), average

        def with_guidance() -> tuple[Images, Images | None, Images | None]:
            (output, variance), (away, _) = (
                _split(output, x_t.shape[-1]) for output in predict_pair(x_t, *times)
            )
            after, wanted = average, change(output, prediction, space)
            other = change(away, prediction, space)
            if average is not None:
                other, after = with_momentum(wanted, other, weight, average, sampling)
            mixed = change(kind.mix(wanted, other, weight, sampling), space, prediction)
            return rescaled(mixed, output, sampling.guidance_rescale), variance, after

        weight = guidance_weight(sampling, times[0])
        if predict_pair is None or guided is False:
            result = conditional_only()
        elif guided:
            result = with_guidance()
        else:
            result = jax.lax.cond(jnp.any(weight != 1.0), with_guidance, conditional_only)
        output, variance, after = result
        x0 = THRESHOLDS[sampling.threshold](change(output, prediction, "x0"), sampling)
        if min_scale and prediction == "x0":
            x0 = with_least_scale(x0, x_t, logsnr, min_scale, schedule)
        return Denoised(x0, variance if sampling.learned_variance else None, after)

    return denoise


def _split(
    output: Float[Array, "batch height width outputs"], channels: int
) -> tuple[Images, Images | None]:
    """The prediction, and the learned variance from [-1, 1] to [0, 1] if any; both float32."""
    output = output.astype(jnp.float32)
    if output.shape[-1] == channels:
        return output, None
    return output[..., :channels], 0.5 * (output[..., channels:] + 1.0)
