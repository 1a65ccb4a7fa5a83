"""PSNR of the super-resolution stage on icons of held-out families, beside bicubic, and crops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.evaluation import generation
from imagen_jax.evaluation.captioned_set import CaptionedSet
from imagen_jax.evaluation.image_folder import Preprocessing, read_chunks
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.prompts import plain_list
from imagen_jax.evaluation.report import Report, image_settings
from imagen_jax.evaluation.super_resolution import (
    bicubic,
    check_super_resolution,
    compare,
    make_upsample,
    shrunk,
    super_resolution_stages,
)
from imagen_jax.images.grid import image_grid, magnify
from imagen_jax.images.pixels import to_pil
from imagen_jax.images.provenance import COMPOSITE, marked
from imagen_jax.storage import fingerprints
from imagen_jax.typing import Images

CROPS, CROP, TIMES = 4, 64, 4  # how many, of how many pixels, how many times as large


def measure_super_resolution(
    model: EvaluatedModel, true: CaptionedSet, seed: int, batch_size: int, directory: Path
) -> Report:
    """The first super-resolution stage from the true images downsampled as in its training, without
    noise on them and with the model's own.

    Raises ValueError where the model has no such stage, or the images are too small for it.
    """
    check_super_resolution(("psnr",), model, true)
    position = super_resolution_stages(model.pipeline.cascade)[0]
    stage, own = model.pipeline.cascade.stages[position], model.sampling[position]
    truth = true.at(stage.resolution)
    low_res = shrunk(truth, stage)
    plain, sheets, levels = bicubic(low_res, stage.resolution), {}, {}
    for level in sorted({0.0, float(own.aug_level)}):
        sampling = list(model.sampling)
        sampling[position] = replace(own, aug_level=level)
        made = upsampled(
            replace(model, sampling=tuple(sampling)),
            position,
            low_res,
            true,
            seed,
            batch_size,
            directory / f"aug_level_{level:g}",
        )
        levels[f"{level:g}"] = compare("psnr", made, plain, truth)
        sheets[f"crops_aug_level_{level:g}.png"] = crop_sheet(plain, made, truth)
    about: dict[str, Any] = {"stage": stage.name, "resolution": stage.resolution}
    about |= {"from": stage.low_resolution, "ships_with": float(own.aug_level)}
    return Report({"super_resolution": {**about, "psnr": levels}}, sheets=sheets)


def upsampled(
    model: EvaluatedModel,
    position: int,
    low_res: Images,
    true: CaptionedSet,
    seed: int,
    batch_size: int,
    directory: Path,
) -> np.ndarray:
    """uint8 images, kept in a folder as they come."""
    stage = model.pipeline.cascade.stages[position]
    prompts = plain_list("captions", true.captions).fingerprint
    digest = fingerprints.of_bytes(np.asarray(low_res).tobytes())
    settings = image_settings(model, prompts, low_res=digest, seed=seed)
    generation.open_directory(directory, settings)
    upsample = make_upsample(model, position, low_res, seed, batch_size)
    generation.generate_images(
        lambda prompts, first: [
            marked(to_pil(image), COMPOSITE) for image in upsample(prompts, first)
        ],
        true.captions,
        directory,
        batch_size,
        [range(len(true))],
        f"{stage.name}, {directory.name}",
    )
    files = generation.image_files(directory, len(true))
    chunks = read_chunks(files, Preprocessing(stage.resolution))
    return np.concatenate([chunk.images for chunk in chunks])


def crop_sheet(plain: np.ndarray, made: np.ndarray, truth: np.ndarray) -> Image.Image:
    """Bicubic, the model's and the true image of the first few, where the true one varies most."""
    shown = []
    for images in list(zip(plain, made, truth, strict=True))[:CROPS]:
        y, x = busiest(images[-1])
        crops = [to_pil(image[y : y + CROP, x : x + CROP]) for image in images]
        shown += [magnify(crop, TIMES * CROP) for crop in crops]
    captions = ["bicubic", "upsampled", "true"] * (len(shown) // 3)
    return image_grid(shown, captions, columns=3, source=COMPOSITE)


def busiest(image: np.ndarray) -> tuple[int, int]:
    """Where the window of the largest variance begins, of those half a window apart."""
    starts = range(0, max(1, image.shape[0] - CROP + 1), CROP // 2)
    windows = {(y, x): image[y : y + CROP, x : x + CROP].var() for y in starts for x in starts}
    return max(windows, key=windows.__getitem__)
