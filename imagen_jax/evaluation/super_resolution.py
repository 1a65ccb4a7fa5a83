"""Images beside the true ones, by PSNR and SSIM: what a super-resolution stage makes of the true
image, downsampled, beside bicubic; or pairs of given images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import Stage
from imagen_jax.diffusion.augmentation import downsample
from imagen_jax.evaluation.captioned_set import CaptionedSet
from imagen_jax.evaluation.image_folder import Preprocessing, common_size, read_chunks
from imagen_jax.evaluation.image_quality import QUALITY, WINDOW
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.progress import image_bar
from imagen_jax.evaluation.report import Report, contact_sheet
from imagen_jax.images.pixels import to_float, to_uint8
from imagen_jax.pipeline.generation import encode_request, sample_cascade, spread
from imagen_jax.pipeline.guides import guides_in_use, with_guides
from imagen_jax.pipeline.request import Request
from imagen_jax.storage.codec import require
from imagen_jax.typing import Images


def super_resolution_stages(cascade: Cascade) -> list[int]:
    """Positions in the cascade of the stages that upsample images."""
    return [i for i, stage in enumerate(cascade.stages) if stage.low_resolution is not None]


def check_super_resolution(
    metrics: Sequence[str], model: EvaluatedModel, true: CaptionedSet
) -> None:
    """ValueError where psnr or ssim is asked for and the model or the images cannot have it."""
    asked = [name for name in metrics if name in QUALITY]
    stages = model.pipeline.cascade.stages
    sides = min(min(image.shape[:2]) for image in true.images)
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
                f"Stage {stage.name!r} reads classes, and {true.path} has captions: {asked[0]} "
                "cannot be measured.",
            ),
            (
                sides >= stage.resolution,
                f"Stage {stage.name!r} makes images of {stage.resolution} pixels, but some of "
                f"{true.path} have only {sides}: nothing to compare them with.",
            ),
        )


def evaluate_super_resolution(
    metrics: Sequence[str], model: EvaluatedModel, true: CaptionedSet, seed: int, batch_size: int
) -> Report:
    """Each super-resolution stage from every true image, downsampled, with its caption.

    A stage is judged by itself: no image that a stage before it made is involved.
    """
    values: dict[str, Any] = {name: {} for name in metrics}
    sheets, prompts = {}, true.captions
    for position in super_resolution_stages(model.pipeline.cascade):
        stage = model.pipeline.cascade.stages[position]
        truth = true.at(stage.resolution)
        low_res = shrunk(truth, stage)
        plain, made = bicubic(low_res, stage.resolution), []
        upsample = make_upsample(model, position, low_res, seed, batch_size)
        with image_bar(stage.name, len(true)) as bar:
            for start in range(0, len(true), batch_size):
                made += upsample(prompts[start : start + batch_size], start)
                bar.update(len(made) - start)
        for name in metrics:
            values[name][stage.name] = compare(name, np.stack(made), plain, truth)
        rows = list(zip(plain, made, truth, strict=True))
        sheets[f"{stage.name}.png"] = contact_sheet(rows, prompts, columns=3)
    return Report(values, sheets=sheets)


def shrunk(truth: np.ndarray, stage: Stage) -> Images:
    """uint8 images at a stage's low resolution, in [-1, 1], as its training makes them."""
    return downsample(to_float(jnp.asarray(truth)), stage.low_resolution)


def bicubic(low_res: Images, resolution: int) -> np.ndarray:
    """uint8 images upsampled by cubic convolution (Keys 1981, a = -0.5)."""
    batch, _, _, channels = low_res.shape
    large = jax.image.resize(low_res, (batch, resolution, resolution, channels), "cubic")
    return to_uint8(np.asarray(large))


def make_upsample(
    model: EvaluatedModel, position: int, low_res: Images, seed: int, batch_size: int
) -> Callable[[Sequence[str], int], list[np.ndarray]]:
    """(prompts, index of the first) -> uint8 images of stage `position`, from those of `low_res`
    with the same indices. Image i has noise of its own from seed and i.

    It raises ValueError where values are not finite.
    """
    pipeline = model.pipeline
    stage, low_res = pipeline.cascade.stages[position], np.asarray(low_res)

    def upsample(prompts: Sequence[str], first: int) -> list[np.ndarray]:
        text = stage.conditioning == "text"
        request = Request(
            stages=range(position, position + 1),
            seed=seed,
            first_index=first,
            batch_size=batch_size,
            **({"prompt": list(prompts)} if text else {"num_images": len(prompts)}),
        )
        conditions = encode_request(pipeline.cascade, pipeline.params, request)
        guides = guides_in_use(pipeline.cascade, pipeline.guides, model.sampling, request)
        batches = sample_cascade(
            pipeline.cascade,
            with_guides(pipeline.params, guides),
            model.sampling,
            request,
            conditions._replace(low_res=low_res[first : first + len(prompts)]),
            spread(batch_size, pipeline.mesh)[1],
        )
        images = np.concatenate(list(batches))
        if not np.isfinite(images).all():
            raise ValueError(f"Stage {stage.name!r} makes images that are not finite.")
        return list(to_uint8(images))

    return upsample


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
