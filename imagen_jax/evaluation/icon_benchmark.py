"""The benchmark of icons: fixed prompts, seed, steps and guidance; retrieval, style, sharpness and
a matching test for a reader.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation import generation, icon_report, report
from imagen_jax.evaluation.attention_share import PROMPTS, measure_attention
from imagen_jax.evaluation.captioned_set import read_captioned
from imagen_jax.evaluation.icon_retrieval import measure_retrieval
from imagen_jax.evaluation.icon_set import IconSet, Prompt, make_prompts, ranges, read_icons
from imagen_jax.evaluation.icon_super_resolution import measure_super_resolution
from imagen_jax.evaluation.image_folder import Preprocessing, read_chunks
from imagen_jax.evaluation.inputs import EvaluatedModel, read_model
from imagen_jax.evaluation.matching_test import (
    IMAGES,
    make_matching_prompts,
    write_matching_test,
)
from imagen_jax.evaluation.report import Report
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.evaluation.super_resolution import super_resolution_stages
from imagen_jax.pipeline.generation import spread
from imagen_jax.storage.folders import output_folder, user_path

# The protocol: how the base stage is sampled. Super-resolution is sampled as the model ships.
SEED = 0
BASE = Sampling(sampler="dpmpp_2m", steps=16, guidance=3.0, threshold="static")
PARTS = ("retrieval", "super_resolution", "matching")
ALL_PARTS = (*PARTS, "attention")  # that only where it is asked for
SHARPNESS = "256/heldout-*.tar"  # held-out families, without those of pairs


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is to be measured; the options of imagen-jax benchmark_icons explain each field."""

    model: str | list[str]
    data: Path
    out: Path
    own_sampling: bool = False
    steps: int | None = None
    styles: Sequence[str] | None = None
    plain_prompts: bool = False
    parts: Sequence[str] | None = None
    num: int | None = None
    sr_images: int = 128
    batch_size: int = 32


def benchmark(request: BenchmarkRequest) -> None:
    """Measures, prints the tables and writes the report; images that are there already are kept.

    Raises ValueError or FileNotFoundError where something does not fit, before the work.
    """
    icons = read_icons(request.data, request.styles, request.plain_prompts)
    of_model = EvaluationRequest(model=request.model, batch_size=request.batch_size)
    model = read_model(of_model)
    base, *others = model.sampling
    if not (request.own_sampling or model.pipeline.cascade.stages[0].is_flow_map):
        base = BASE
    base = replace(base, steps=request.steps or base.steps)
    model = replace(model, sampling=(base, *others))
    request = replace(request, batch_size=spread(request.batch_size, model.pipeline.mesh)[0])
    parts = _parts(request, icons, model)
    measure = {
        "retrieval": lambda: _retrieval(request, icons, model),
        "super_resolution": lambda: _super_resolution(request, icons, model),
        "matching": lambda: _matching(request, icons, model),
        "attention": lambda: measure_attention(
            icons, model, SEED, request.batch_size, request.num or PROMPTS
        ),
    }
    found = Report()
    with output_folder(request.out):
        for part in parts:
            found |= measure[part]()
        values = {**found.values, **_about(request, icons, model)}
        files = icon_report.write_report(request.out, values) + found.write(request.out)
    print(icon_report.tables(values), *files, sep="\n")


def _parts(request: BenchmarkRequest, icons: IconSet, model: EvaluatedModel) -> Sequence[str]:
    """Those asked for, or all but super-resolution where it cannot be measured; a line says so.

    Raises ValueError where what was asked for cannot be measured.
    """
    missing = {
        f"{model.pipeline.name!r} has no such stage": not super_resolution_stages(
            model.pipeline.cascade
        ),
        f"there is no {user_path(request.data) / SHARPNESS}": not any(
            user_path(request.data).glob(SHARPNESS)
        ),
    }
    parts = request.parts or PARTS
    reasons = [reason for reason, true in missing.items() if true]
    if reasons and "super_resolution" in parts:
        if request.parts:
            raise ValueError(f"Super-resolution cannot be measured: {reasons[0]}.")
        print(f"Super-resolution is not measured: {reasons[0]}.")
        parts = [part for part in parts if part != "super_resolution"]
    if "matching" in parts:
        make_matching_prompts(icons)  # a set with too few icons is refused before the work
    return parts


def _about(request: BenchmarkRequest, icons: IconSet, model: EvaluatedModel) -> dict[str, Any]:
    return {
        "model": model.about,
        "data": {
            "path": icons.path,
            "fingerprint": icons.fingerprint,
            "icons": len(icons.source),
            "held_out_but_seen_under_another_name": int(icons.seen.sum()),
        },
        "protocol": {
            "seed": SEED,
            "sampling": report.sampling(model),
            "own_sampling": request.own_sampling,
            "styles": list(icons.styles),
            "plain_prompts": request.plain_prompts,
            "num": request.num,
            "batch_size": request.batch_size,
        },
        **report.surroundings(),
    }


def _generate(
    request: BenchmarkRequest,
    model: EvaluatedModel,
    prompts: Sequence[Prompt],
    rows: Sequence[range],
    size: int,
    directory: Path,
) -> tuple[list[np.ndarray], float | None]:
    """(uint8 images of each range of prompts, how many were made a second)."""
    texts, begin = [prompt.text for prompt in prompts], time.monotonic()
    count = generation.generate_list(
        model, texts, directory, rows, size=size, seed=SEED, batch_size=request.batch_size
    )
    seconds = time.monotonic() - begin
    images = []
    for places in rows:
        files = [generation.image_file(directory, place) for place in places]
        chunks = read_chunks(files, Preprocessing(size))
        images.append(np.concatenate([chunk.images for chunk in chunks]))
    return images, count / seconds if count else None


def _retrieval(request: BenchmarkRequest, icons: IconSet, model: EvaluatedModel) -> Report:
    """Of images of the base stage."""
    prompts, places = make_prompts(icons)
    rows, size = ranges(places, request.num), model.pipeline.sizes[0]
    made, rate = _generate(
        request, model, prompts, list(rows.values()), size, request.out / "images"
    )
    if rate is not None:
        print(f"{rate:.2f} images of {size} pixels a second, compilation included")
    images = dict(zip(rows, made, strict=True))
    values = {"retrieval": measure_retrieval(icons, prompts, rows, images)}
    return Report(values, sheets=icon_report.sheets(icons, prompts, rows, images))


def _super_resolution(request: BenchmarkRequest, icons: IconSet, model: EvaluatedModel) -> Report:
    seen = {icons.source.keys[row] for row in np.flatnonzero(icons.seen)}
    num = min(request.sr_images, request.num or request.sr_images)
    path = user_path(request.data) / SHARPNESS
    true = read_captioned(path, "all", num, "json.captions", left_out=seen)
    batch_size = max(1, request.batch_size // 8)  # of images 16 times as large
    directory = request.out / "super_resolution"
    return measure_super_resolution(model, true, SEED, batch_size, directory)


def _matching(request: BenchmarkRequest, icons: IconSet, model: EvaluatedModel) -> Report:
    """Of images of the last stage."""
    prompts, size = make_matching_prompts(icons), model.pipeline.sizes[-1]
    small = replace(request, batch_size=spread(4, model.pipeline.mesh)[0])
    rows, directory = [range(IMAGES)], request.out / "matching"
    (images,), _ = _generate(small, model, prompts, rows, size, directory)
    return Report(sheets=write_matching_test(prompts, list(images), request.out))
