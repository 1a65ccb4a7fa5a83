"""Images beside the true ones, by PSNR and SSIM: what a super-resolution stage makes of the true
image, downsampled, beside bicubic; or pairs of given images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.diffusion.augmentation import downsample
from imagen_jax.evaluation.image_folder import Preprocessing, common_size, read_chunks
from imagen_jax.evaluation.image_quality import QUALITY, WINDOW
from imagen_jax.evaluation.image_set import ImageSet
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.progress import image_bar
from imagen_jax.evaluation.report import Report, contact_sheet
from imagen_jax.images.pixels import resize, to_float, to_uint8
from imagen_jax.pipeline.generation import encode_request, sample_cascade, spread
from imagen_jax.pipeline.guides import guides_in_use, with_guides
from imagen_jax.pipeline.progress import Progress
from imagen_jax.pipeline.request import Request
from imagen_jax.storage.codec import require
from imagen_jax.typing import Images


def super_resolution_stages(cascade: Cascade) -> list[int]:
    """Positions in the cascade of the stages that upsample images."""
    return [i for i, stage in enumerate(cascade.stages) if stage.low_resolution is not None]


def check_super_resolution(metrics: Sequence[str], model: EvaluatedModel, emoji: ImageSet) -> None:
    """ValueError where psnr or ssim is asked for and the model or the images cannot have it."""
    asked = [name for name in metrics if name in QUALITY]
    if not asked:
        return
    stages, sides = model.pipeline.cascade.stages, emoji.source.images.shape[1:3]
    names = ", ".join(stage.name for stage in stages)
    stages = [stages[i] for i in super_resolution_stages(model.pipeline.cascade)]
    require(
        (
            stages,
            f"{' and '.join(asked)} need a super-resolution stage; {model.pipeline.name!r} has "
            f"only {names}.",
        ),
        (
            "ssim" not in asked or all(stage.resolution >= WINDOW for stage in stages),
            f"ssim needs stages that make images of at least {WINDOW} pixels.",
        ),
    )
    for stage in stages:
        require(
            (
                stage.conditioning != "label",
                f"Stage {stage.name!r} reads classes, which the emoji do not have: {asked[0]} "
                "cannot be measured.",
            ),
            (
                min(sides) >= stage.resolution,
                f"Stage {stage.name!r} makes images of {stage.resolution} pixels, but those of "
                f"{emoji.path} have {sides[0]}x{sides[1]}: nothing to compare them with.",
            ),
        )


def evaluate_super_resolution(
    metrics: Sequence[str], model: EvaluatedModel, emoji: ImageSet, seed: int, batch_size: int
) -> Report:
    """Each super-resolution stage from every true image, downsampled, with its English name.

    A stage is judged by itself: no image that a stage before it made is involved.
    """
    values: dict[str, Any] = {name: {} for name in metrics}
    sheets, prompts = {}, emoji.names("en")
    for position in super_resolution_stages(model.pipeline.cascade):
        stage = model.pipeline.cascade.stages[position]
        truth = np.stack([resize(image, stage.resolution) for image in emoji.source.images])
        # In [-1, 1], as its training does it.
        low_res = downsample(to_float(jnp.asarray(truth)), stage.low_resolution)
        plain = bicubic(low_res, stage.resolution)
        made = upsample(model, position, low_res, prompts, seed, batch_size)
        for name in metrics:
            values[name][stage.name] = compare(name, made, plain, truth)
        rows = list(zip(plain, made, truth, strict=True))
        sheets[f"{stage.name}.png"] = contact_sheet(rows, prompts, columns=3)
    return Report(values, sheets=sheets)


def bicubic(low_res: Images, resolution: int) -> np.ndarray:
    """uint8 images upsampled by cubic convolution (Keys 1981, a = -0.5)."""
    batch, _, _, channels = low_res.shape
    large = jax.image.resize(low_res, (batch, resolution, resolution, channels), "cubic")
    return to_uint8(np.asarray(large))


def upsample(
    model: EvaluatedModel,
    position: int,
    low_res: Images,
    prompts: Sequence[str],
    seed: int,
    batch_size: int,
) -> np.ndarray:
    """uint8 images of stage `position` from images of its low resolution.

    Args:
        prompts: one an image, for a stage that reads text.
        seed: image i has noise of its own from seed and i.

    Raises ValueError where it makes values that are not finite.
    """
    pipeline, count = model.pipeline, len(low_res)
    stage = pipeline.cascade.stages[position]
    what = {"prompt": list(prompts)} if stage.conditioning == "text" else {"num_images": count}
    with image_bar(stage.name, count) as bar:

        def advance(progress: Progress) -> None:
            if progress.step == progress.steps:
                bar.update(progress.count)

        request = Request(
            stages=range(position, position + 1),
            seed=seed,
            batch_size=batch_size,
            callback=advance,
            **what,
        )
        conditions = encode_request(pipeline.cascade, pipeline.params, request)
        guides = guides_in_use(pipeline.cascade, pipeline.guides, model.sampling, request)
        batches = sample_cascade(
            pipeline.cascade,
            with_guides(pipeline.params, guides),
            model.sampling,
            request,
            conditions._replace(low_res=low_res),
            spread(batch_size, pipeline.mesh)[1],
        )
        images = np.concatenate(list(batches))
    if not np.isfinite(images).all():
        raise ValueError(f"Stage {stage.name!r} makes images that are not finite.")
    return to_uint8(images)


def compare(metric: str, made: np.ndarray, plain: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The mean of a metric of the model's and of bicubic's images, and what the model gains."""
    model, bicubic_values = QUALITY[metric](made, truth), QUALITY[metric](plain, truth)
    with np.errstate(invalid="ignore"):  # where both are exact
        gain = model - bicubic_values
    return finite_means(
        model=model, bicubic=bicubic_values, gain=gain, better=model > bicubic_values
    )


def evaluate_pairs(
    metrics: Sequence[str], files: Sequence[Path], true_files: Sequence[Path], size: int | None
) -> Report:
    """Compares each image with the true one at the same place; both are brought to one size.

    Equal images have an infinite PSNR: they are left out of its mean, and counted.
    """
    size = size or common_size([*files, *true_files])
    preprocessing = Preprocessing(size), Preprocessing(size)
    chunks = [
        read_chunks(paths, each, skip_broken=None)
        for paths, each in zip((files, true_files), preprocessing, strict=True)
    ]
    found: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for made, true in zip(*chunks, strict=True):
        for name in metrics:
            found[name].append(QUALITY[name](made.images, true.images))
    values: dict[str, Any] = {"pairs": [each.to_dict() for each in preprocessing]}
    for name, parts in found.items():
        values[name] = {"pairs": finite_means(model=np.concatenate(parts))}
    return Report(values)


def finite_means(**values: np.ndarray) -> dict[str, Any]:
    """The mean of each of these values [images], and of how many images; None where there is none.

    Images that are exact have an infinite PSNR: they are left out of all means, and counted.
    """
    finite = np.all([np.isfinite(each) for each in values.values()], axis=0)
    count = int(finite.sum())
    means = {k: float(each[finite].mean()) if count else None for k, each in values.items()}
    return {**means, "n": count, "left_out_as_exact": len(finite) - count}
