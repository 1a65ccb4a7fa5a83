"""What a super-resolution stage makes of the true image, downsampled, beside bicubic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, sample_keys
from imagen_jax.cascade.sample import sample_stage
from imagen_jax.cascade.stage import Conditions, Stage
from imagen_jax.diffusion.augmentation import downsample
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images.pixels import to_float, to_uint8
from imagen_jax.pipeline.generation import take_rows
from imagen_jax.text import encoder as text_room
from imagen_jax.typing import Images, Params

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


def enlarging_stages(cascade: Cascade) -> list[int]:
    """Places in the cascade of the stages that enlarge images."""
    return [i for i, stage in enumerate(cascade.stages) if stage.low_resolution is not None]


def low_resolution(stage: Stage, truth: np.ndarray) -> Images:
    """uint8 images at the stage's resolution, downsampled in [-1, 1] as its training does it."""
    pixels = to_float(jnp.asarray(truth))
    return downsample(pixels, stage.low_resolution)


def bicubic(low_res: Images, resolution: int) -> np.ndarray:
    """uint8 images enlarged by cubic convolution (Keys 1981, a = -0.5)."""
    batch, _, _, channels = low_res.shape
    large = jax.image.resize(low_res, (batch, resolution, resolution, channels), "cubic")
    return to_uint8(np.asarray(large))


def enlarge(
    cascade: Cascade,
    params: Mapping[str, Params],
    position: int,
    low_res: Images,
    prompts: Sequence[str] | None,
    *,
    seed: int,
    settings: Sequence[Sampling] | None = None,
    batch_size: int = 16,
    place: Callable[[Any], Any] | None = None,
) -> Iterator[np.ndarray]:
    """uint8 images of stage `position` from images of its low resolution, batch by batch.

    Args:
        prompts: one an image, for a stage that reads text.
        seed: image i has noise of its own from seed and i.
        place: puts a batch on its devices; the default device when None.

    Raises:
        ValueError: the stage reads classes, or makes values that are not finite.
    """
    stage, encoder = cascade.stages[position], cascade.encoder
    settings = cascade.sampling if settings is None else settings
    if stage.conditioning == "label":
        raise ValueError(f"Stage {stage.name!r} reads classes, which the images do not have.")
    if stage.conditioning == "text" and (prompts is None or len(prompts) != len(low_res)):
        raise ValueError(f"Stage {stage.name!r} reads text: give one prompt an image.")
    for start in range(0, len(low_res), batch_size):
        # The last batch is filled up with its last image: one program for all.
        rows = np.minimum(np.arange(start, start + batch_size), len(low_res) - 1)
        valid = min(batch_size, len(low_res) - start)
        text = null = None
        if stage.conditioning == "text":
            chosen = [prompts[row] for row in rows]
            text = text_room.encode(encoder, params[TEXT_ENCODER], chosen)
            null = text_room.unconditional(encoder, params[TEXT_ENCODER])
        keys = jax.vmap(jax.random.fold_in, (0, None))(sample_keys(seed, rows), position)
        conditions = Conditions(text=text, null=null, low_res=low_res[rows])
        batch = keys, take_rows(conditions, np.arange(len(rows)))
        batch = batch if place is None else place(batch)
        sampled = sample_stage(stage, params[stage.name], *batch, settings[position])
        images = np.asarray(sampled)[:valid]
        if not np.isfinite(images).all():
            raise ValueError(f"Stage {stage.name!r} makes images that are not finite.")
        yield to_uint8(images)


def compare(
    measure: Measure, enlarged: np.ndarray, plain: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """The mean of a measure of the model's and of bicubic's images, and what the model gains.

    Images where either is exact have an infinite PSNR: they are left out of all means, and
    counted.
    """
    model, bicubic_values = measure(enlarged, truth), measure(plain, truth)
    finite = np.isfinite(model) & np.isfinite(bicubic_values)
    summary: dict[str, Any] = {"model": None, "bicubic": None, "gain": None}
    if finite.any():
        means = float(model[finite].mean()), float(bicubic_values[finite].mean())
        summary = {"model": means[0], "bicubic": means[1], "gain": means[0] - means[1]}
        summary["better"] = float((model > bicubic_values)[finite].mean())
    return {**summary, "n": int(finite.sum()), "left_out_as_exact": int((~finite).sum())}
