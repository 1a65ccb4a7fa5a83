"""An evaluation from prompts to figures: images, features, then what each metric makes of them.

Every image and every part of the features is a file of its own: what is there is not made again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import protocol, retrieval, super_resolution
from imagen_jax.evaluation.extraction import Extractor, cached_features
from imagen_jax.evaluation.generation import (
    ALL,
    LEAST_PART,
    Generate,
    Share,
    generate_images,
    image_files,
    open_directory,
)
from imagen_jax.evaluation.image_folder import Treatment, common_size, read_image, read_parts
from imagen_jax.evaluation.image_quality import WINDOW, psnr, ssim
from imagen_jax.evaluation.image_set import ImageSet, Prompts, select
from imagen_jax.evaluation.measures import KINDS, Truth, measure
from imagen_jax.evaluation.prompts import PromptList
from imagen_jax.evaluation.report import SHEET_IMAGES, SHEET_SIDE, ProgressLine, contact_sheet
from imagen_jax.images.grid import image_grid
from imagen_jax.images.pixels import resize
from imagen_jax.typing import Params

STRIP, STRIP_IMAGES = "strip.png", 8  # of each point, in the page of a sweep
QUALITY = {"psnr": psnr, "ssim": ssim}
METRICS = (*KINDS, "retrieval", *QUALITY, "images")  # "images": no figure, images alone


@dataclass(frozen=True, eq=False)
class Subject:
    """The model under evaluation: how it generates, and the stages and parameters it is made of.

    about: for the report: where it comes from, its fingerprint and notes. place: what puts a batch
    on the mesh (`drawing.spread`).
    """

    name: str
    about: dict[str, Any]
    cascade: Cascade
    params: Mapping[str, Params]
    generate: Generate
    settings: Sequence[Sampling]
    seed: int
    place: Callable[[Any], Any] | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """What is measured, the same for every point of a sweep.

    prompts: in their order, each `copies` times; None for images of unknown captions. emoji: the
    set of images that retrieval, psnr and ssim look at, and its names. size: of the images.
    files: given images, measured instead of generated ones, one a prompt in their order.
    true_files: what psnr and ssim compare those with, in their order. named_by_ids: whether given
    images are named after the prompts' ids; None where there are no prompts or no such images.
    """

    metrics: tuple[str, ...]
    size: int | None
    prompts: PromptList | None = None
    copies: int = 1
    emoji: ImageSet | None = None
    names: Prompts | None = None
    files: tuple[Path, ...] | None = None
    true_files: tuple[Path, ...] | None = None
    extractors: tuple[Extractor, ...] = ()
    truth: Truth | None = None
    skip_broken: bool = False
    share: Share = ALL
    batch_size: int = 16
    named_by_ids: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The prompt of every image."""
        return [text for text in self.prompts.texts for _ in range(self.copies)]


@dataclass(frozen=True, eq=False)
class Result:
    """values: for the report. tables: rows of strings by file name. sheets: images, likewise."""

    values: dict[str, Any]
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    sheets: dict[str, Image.Image] = field(default_factory=dict)


def check_known(metrics: Sequence[str]) -> None:
    """ValueError where a metric is unknown, or there is none."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"Unknown metric {name!r}; known are {', '.join(METRICS)}.")
    if not metrics:
        raise ValueError(f"No metric is asked for; known are {', '.join(METRICS)}.")


def check_quality(metrics: Sequence[str], subject: Subject, images: ImageSet) -> None:
    """ValueError where psnr or ssim is asked for and the model or the images cannot have it."""
    stages = subject.cascade.stages
    asked = [name for name in metrics if name in QUALITY]
    enlarging = super_resolution.enlarging_stages(subject.cascade)
    if asked and not enlarging:
        raise ValueError(
            f"{' and '.join(asked)} need a stage that enlarges images; {subject.name!r} has only "
            f"{', '.join(stage.name for stage in stages)}."
        )
    if "ssim" in asked and min(stages[i].resolution for i in enlarging) < WINDOW:
        raise ValueError(f"ssim needs stages that make images of at least {WINDOW} pixels.")
    sides = images.source.images.shape[1:3]
    for stage in (stages[position] for position in enlarging if asked):
        if min(sides) < stage.resolution:
            raise ValueError(
                f"Stage {stage.name!r} makes images of {stage.resolution} pixels, but those of "
                f"{images.path} have {sides[0]}x{sides[1]}: nothing to compare them with."
            )


def check_files(job: Job) -> None:
    """ValueError where the number of given images is not that of the prompts."""
    if job.files is None or job.prompts is None or set(job.metrics) <= set(QUALITY):
        return
    if len(job.files) != len(job.texts):
        raise ValueError(
            f"There are {len(job.files)} images for {len(job.texts)} prompts: give one each, "
            "named after the prompts' ids, or in the order of the sorted names."
        )


def evaluate(
    job: Job,
    subject: Subject | None,
    directory: Path,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Everything that the metrics ask for, as one result; "seconds" among its values.

    With a share of the work: its images and their features alone, and no figures.

    Args:
        subject: None where all images are given.
        directory: for images and features.
        settings: what decides the generated images, kept beside them.
    """
    values, tables, sheets, seconds = {}, {}, {}, {}
    files = job.files
    if any(name not in QUALITY for name in job.metrics):
        if files is None:
            begin = time.monotonic()
            open_directory(directory / "images", dict(settings or {}))
            count = generate_images(
                subject.generate, job.texts, directory / "images", job.batch_size, job.share
            )
            files = image_files(directory / "images", len(job.texts), job.share)
            values["newly_generated"] = count
            seconds["generation"] = round(time.monotonic() - begin, 2)
        begin = time.monotonic()
        result = measure_files(job, files, directory)
        seconds["measurement"] = round(time.monotonic() - begin, 2)
        values, tables, sheets = values | result.values, result.tables, result.sheets
    quality = {name: QUALITY[name] for name in job.metrics if name in QUALITY}
    if quality and job.share == ALL:
        begin = time.monotonic()
        if job.true_files is not None:
            result = evaluate_pairs(job.files, job.true_files, quality, job.size)
        else:
            result = evaluate_super_resolution(subject, job.emoji, quality, job.batch_size)
        seconds["super_resolution" if job.true_files is None else "pairs"] = round(
            time.monotonic() - begin, 2
        )
        values, tables, sheets = values | result.values, tables, sheets | result.sheets
    return Result({**values, "seconds": seconds}, tables, sheets)


def measure_files(job: Job, files: Sequence[Path], directory: Path) -> Result:
    """The figures of images in files, each with its departures from the metric's protocol."""
    check_files(job)
    treatment = Treatment(job.size or common_size(files))
    features, rows = cached_features(
        job.extractors,
        files,
        treatment,
        directory / "features",
        job.batch_size,
        skip_broken=job.skip_broken,
        share=job.share,
    )
    if job.share != ALL:
        return Result({})
    if not rows:
        raise ValueError(f"None of {len(files)} images can be read, {files[0]} first.")
    values = figures(job, features, rows, treatment)
    files = [files[row] for row in rows]
    sheets = _sheets(job, files, rows, treatment.size)
    if "retrieval" not in job.metrics:
        return Result(values, {}, sheets)
    found = evaluate_retrieval(job.emoji, select(job.names, rows), files, treatment.size)
    return Result({**values, **found.values}, found.tables, {**sheets, **found.sheets})


def figures(
    job: Job,
    features: Mapping[str, np.ndarray],
    rows: Sequence[int],
    treatment: Treatment,
) -> dict[str, Any]:
    """{metric: {network: {"value", ..., "off_protocol": [reasons]}}}, and {"pictures": ...}."""
    values: dict[str, Any] = {"pictures": treatment.to_dict()}
    if not job.extractors:
        return values
    values |= measure(job.metrics, job.extractors, features, job.truth, np.asarray(rows))
    at = protocol.Circumstances(
        len(rows),
        treatment.size,
        job.prompts,
        job.truth.reference,
        treatment.to_dict(),
        job.files is None,
        job.copies,
        job.named_by_ids is False,
    )
    for metric in [name for name in job.metrics if name in KINDS]:
        for extractor in job.extractors:
            if found := values[metric].get(extractor.name):
                found["off_protocol"] = protocol.departures(metric, extractor, found, at)
    return values


def _sheets(
    job: Job, files: Sequence[Path], rows: Sequence[int], size: int
) -> dict[str, Image.Image]:
    """The first images with their prompts, large ones shrunk; and a strip of a few."""
    treatment = Treatment(min(size, SHEET_SIDE))
    shown = [read_image(file, treatment) for file in files[:SHEET_IMAGES]]
    captions = None
    if job.prompts is not None:
        captions = [str(job.texts[row]) for row in rows[:SHEET_IMAGES]]
    return {
        "pictures.png": image_grid(shown, captions, columns=STRIP_IMAGES, min_cell=128),
        STRIP: image_grid(shown[:STRIP_IMAGES], columns=STRIP_IMAGES),
    }


def evaluate_retrieval(
    images: ImageSet, prompts: Prompts, files: Sequence[Path], size: int
) -> Result:
    """Looks for each generated image among all distinct ones of the set."""
    parts = read_parts(files, Treatment(size), LEAST_PART)
    images = np.concatenate([retrieval.shrink(part.images) for part in parts])
    found = retrieval.find(images, images.classes[prompts.image], images.gallery)
    variant = images.variant[prompts.image]
    values = retrieval.summarize(found.rank, prompts.language, variant, len(images.gallery.classes))
    table = [["index", "key", "language", "prompt", "variant", "rank", "nearest_class"]]
    for index, (text, language, row) in enumerate(
        zip(prompts.text, prompts.language, prompts.image, strict=True)
    ):
        entry = (index, images.source.keys[row], language, text, int(variant[index]))
        table.append([*map(str, entry), str(found.rank[index]), str(found.nearest[index])])
    truth = retrieval.shrink(images.source.images)[prompts.image]
    # English below both, since few machines have a font that draws Chinese.
    english = images.names("en")
    captions = [
        f"rank {rank} ({language}): {english[row]}"
        for rank, language, row in zip(found.rank, prompts.language, prompts.image, strict=True)
    ]
    sheet = contact_sheet(list(zip(truth, images, strict=True)), captions)
    return Result({"retrieval": values}, {"retrieval.csv": table}, {"retrieval.png": sheet})


def evaluate_pairs(
    files: Sequence[Path],
    true_files: Sequence[Path],
    measures: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    size: int | None,
) -> Result:
    """Compares each image with the true one at the same place; both are brought to one size.

    Equal images have an infinite PSNR: they are left out of its mean, and counted.
    """
    size = size or common_size([*files, *true_files])
    found: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    treatments = Treatment(size), Treatment(size)
    pairs = (
        read_parts(paths, treatment, LEAST_PART, skip_broken=None)
        for paths, treatment in zip((files, true_files), treatments, strict=True)
    )
    for made, true in zip(*pairs, strict=True):
        for name, compare in measures.items():
            found[name].append(compare(made.images, true.images))
    values: dict[str, Any] = {"pairs": [treatment.to_dict() for treatment in treatments]}
    for name, parts in found.items():
        each = np.concatenate(parts)
        finite = each[np.isfinite(each)]
        values[name] = {
            "pairs": {
                "model": float(finite.mean()) if len(finite) else None,
                "n": len(finite),
                "left_out_as_exact": len(each) - len(finite),
            }
        }
    return Result(values)


def evaluate_super_resolution(
    subject: Subject,
    images: ImageSet,
    measures: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    batch_size: int = 16,
) -> Result:
    """Enlarges every true image, downsampled, by each stage that enlarges, English names given.

    A stage is judged by itself: no image that a stage before it made is involved.
    """
    values: dict[str, Any] = {name: {} for name in measures}
    sheets = {}
    prompts = images.names("en")
    for position in super_resolution.enlarging_stages(subject.cascade):
        stage = subject.cascade.stages[position]
        truth = np.stack([resize(image, stage.resolution) for image in images.source.images])
        low_res = super_resolution.low_resolution(stage, truth)
        plain = super_resolution.bicubic(low_res, stage.resolution)
        line = ProgressLine(stage.name, len(truth))
        made = []
        for part in super_resolution.enlarge(
            subject.cascade,
            subject.params,
            position,
            low_res,
            prompts,
            seed=subject.seed,
            settings=subject.settings,
            batch_size=batch_size,
            place=subject.place,
        ):
            made.append(part)
            line.advance(len(part))
        enlarged = np.concatenate(made)
        for name, quality in measures.items():
            values[name][stage.name] = super_resolution.compare(quality, enlarged, plain, truth)
        rows = list(zip(plain, enlarged, truth, strict=True))
        sheets[f"{stage.name}.png"] = contact_sheet(rows, prompts, columns=3)
    return Result(values, {}, sheets)
