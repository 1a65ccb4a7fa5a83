"""An evaluation from a set of pictures to a report: which metrics there are, what each runs."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.cascade import Cascade
from imagen_jax.data.preprocess import resize
from imagen_jax.evaluation import retrieval, super_resolution
from imagen_jax.evaluation.image_quality import WINDOW, psnr, ssim
from imagen_jax.evaluation.picture_set import PictureSet, make_prompts
from imagen_jax.evaluation.report import ProgressLine, contact_sheet
from imagen_jax.sampling_settings import SamplingSettings
from imagen_jax.typing import Params

# (prompts, global index of the first) -> uint8 pictures [prompts, height, width, 3].
Generate = Callable[[Sequence[str], int], np.ndarray]

QUALITY = {"psnr": psnr, "ssim": ssim}
METRICS = ("retrieval", *QUALITY)


@dataclass(frozen=True, eq=False)
class Subject:
    """The model under evaluation: how it generates, and the stages and parameters it is made of."""

    name: str
    cascade: Cascade
    params: Mapping[str, Params]
    generate: Generate
    settings: Sequence[SamplingSettings]
    seed: int
    batch_size: int = 16


@dataclass(frozen=True, eq=False)
class Result:
    """values: for the report. tables: rows of strings by file name. sheets: pictures, likewise."""

    values: dict[str, Any]
    tables: dict[str, list[list[str]]]
    sheets: dict[str, Image.Image]


def check_known(metrics: Sequence[str]) -> None:
    """ValueError where a metric is unknown, or there is none."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"Unknown metric {name!r}; known are {', '.join(METRICS)}.")
    if not metrics:
        raise ValueError(f"No metric is asked for; known are {', '.join(METRICS)}.")


def check_metrics(metrics: Sequence[str], subject: Subject, pictures: PictureSet) -> None:
    """ValueError where a metric is unknown, or the model cannot be measured by it."""
    check_known(metrics)
    stages = subject.cascade.stages
    if "retrieval" in metrics and all(stage.conditioning != "text" for stage in stages):
        raise ValueError(f"retrieval needs a model that reads text; {subject.name!r} does not.")
    asked = [name for name in metrics if name in QUALITY]
    enlarging = super_resolution.enlarging_stages(subject.cascade)
    if asked and not enlarging:
        raise ValueError(
            f"{' and '.join(asked)} need a stage that enlarges pictures; {subject.name!r} has only "
            f"{', '.join(stage.name for stage in stages)}."
        )
    if "ssim" in asked and min(stages[i].resolution for i in enlarging) < WINDOW:
        raise ValueError(f"ssim needs stages that make pictures of at least {WINDOW} pixels.")
    sides = pictures.source.images.shape[1:3]
    for stage in (stages[position] for position in enlarging if asked):
        if min(sides) < stage.resolution:
            raise ValueError(
                f"Stage {stage.name!r} makes pictures of {stage.resolution} pixels, but those of "
                f"{pictures.path} have {sides[0]}x{sides[1]}: nothing to compare them with."
            )


def evaluate(metrics: Sequence[str], subject: Subject, pictures: PictureSet) -> Result:
    """Everything that the metrics ask for, as one result; "seconds" among its values."""
    check_metrics(metrics, subject, pictures)
    values: dict[str, Any] = {}
    tables: dict[str, list[list[str]]] = {}
    sheets: dict[str, Image.Image] = {}
    seconds: dict[str, float] = {}
    quality = {name: QUALITY[name] for name in metrics if name in QUALITY}
    runs: dict[str, Callable[[], Result]] = {}
    if "retrieval" in metrics:
        runs["retrieval"] = lambda: evaluate_retrieval(subject, pictures)
    if quality:
        runs["super_resolution"] = lambda: evaluate_super_resolution(subject, pictures, quality)
    for name, run in runs.items():
        begin = time.monotonic()
        result = run()
        seconds[name] = round(time.monotonic() - begin, 2)
        values |= result.values
        tables |= result.tables
        sheets |= result.sheets
    return Result({**values, "seconds": seconds}, tables, sheets)


def evaluate_retrieval(subject: Subject, pictures: PictureSet) -> Result:
    """Generates from every name, and looks for the picture among all distinct ones."""
    prompts = make_prompts(pictures)
    line = ProgressLine("retrieval", len(prompts))
    made = []
    for start in range(0, len(prompts), subject.batch_size):
        part = subject.generate(prompts.text[start : start + subject.batch_size], start)
        made.append(retrieval.shrink(part))
        line.advance(len(part))
    images = np.concatenate(made)
    found = retrieval.find(images, pictures.classes[prompts.picture], pictures.gallery)
    variant = pictures.variant[prompts.picture]
    values = retrieval.summarize(
        found.rank, prompts.language, variant, len(pictures.gallery.classes)
    )
    table = [["index", "key", "language", "prompt", "variant", "rank", "nearest_class"]]
    for index, (text, language, row) in enumerate(
        zip(prompts.text, prompts.language, prompts.picture, strict=True)
    ):
        entry = (index, pictures.source.keys[row], language, text, int(variant[index]))
        table.append([*map(str, entry), str(found.rank[index]), str(found.nearest[index])])
    truth = retrieval.shrink(pictures.source.images)[prompts.picture]
    # English below both, since few machines have a font that draws Chinese.
    english = pictures.names("en")
    captions = [
        f"rank {rank} ({language}): {english[row]}"
        for rank, language, row in zip(found.rank, prompts.language, prompts.picture, strict=True)
    ]
    sheet = contact_sheet(list(zip(truth, images, strict=True)), captions)
    return Result({"retrieval": values}, {"retrieval.csv": table}, {"retrieval.png": sheet})


def evaluate_super_resolution(
    subject: Subject,
    pictures: PictureSet,
    measures: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
) -> Result:
    """Enlarges every true picture, downsampled, by each stage that enlarges, English names given.

    A stage is judged by itself: no picture that a stage before it made is involved.
    """
    values: dict[str, Any] = {name: {} for name in measures}
    sheets = {}
    prompts = pictures.names("en")
    for position in super_resolution.enlarging_stages(subject.cascade):
        stage = subject.cascade.stages[position]
        truth = np.stack([resize(image, stage.resolution) for image in pictures.source.images])
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
            batch_size=subject.batch_size,
        ):
            made.append(part)
            line.advance(len(part))
        enlarged = np.concatenate(made)
        for name, measure in measures.items():
            values[name][stage.name] = super_resolution.compare(measure, enlarged, plain, truth)
        rows = list(zip(plain, enlarged, truth, strict=True))
        sheets[f"{stage.name}.png"] = contact_sheet(rows, prompts, columns=3)
    return Result(values, {}, sheets)


def write_tables_and_sheets(result: Result, directory: Path) -> list[Path]:
    """CSV files and PNG files of a result; gives their paths."""
    paths = []
    for name, rows in result.tables.items():
        with open(directory / name, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
        paths.append(directory / name)
    for name, sheet in result.sheets.items():
        sheet.save(directory / name)
        paths.append(directory / name)
    return paths
