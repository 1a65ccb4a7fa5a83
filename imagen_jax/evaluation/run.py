"""An evaluation from the request to the report: images, features, then what each metric makes of
them, at every point of a curve.

Every image and every chunk of the features is a file: what is there is not made again. A figure
that cannot be had is told at the end, beside the others.
"""

import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.evaluation import (
    first_screen,
    generation,
    guidance_curve,
    image_folder,
    inputs,
    report,
    super_resolution,
)
from imagen_jax.evaluation.extraction import extract
from imagen_jax.evaluation.image_quality import QUALITY
from imagen_jax.evaluation.inputs import EvaluatedModel, EvaluationRun
from imagen_jax.evaluation.metrics import Targets, compute_targets, measure
from imagen_jax.evaluation.networks import with_features
from imagen_jax.evaluation.protocol import departures
from imagen_jax.evaluation.reference_images import compute_reference, open_reference_images
from imagen_jax.evaluation.report import Report, attempt
from imagen_jax.evaluation.request import EvaluationRequest, with_metrics
from imagen_jax.evaluation.shards import WHOLE
from imagen_jax.pipeline.generation import spread
from imagen_jax.pipeline.request import class_numbers
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import output_folder
from imagen_jax.text.encoder import tokenize


def evaluate(request: EvaluationRequest) -> None:
    """Makes the reference that is asked for, measures every point of the curve, writes the report
    and prints the figures. For a shard of the work: only images and features. Without --out the
    figures of given images are printed and nothing is kept; else only the reference is made.

    Raises ValueError or FileNotFoundError where the request cannot be met, or some figure.
    """
    if request.out is None and request.images is None and request.make_reference is not None:
        request = with_features(request)
        images = open_reference_images(request)
        extractors = inputs.read_extractors(request.features, request.resize)
        if compute_reference(images, extractors, request, request.reference.parent) is None:
            print(f"Share {request.share} of the reference is done; then run without --share.")
        return
    if request.out is None and (request.images is None or request.share is not None):
        raise ValueError("Say with --out DIR where the images and the report are to go.")
    request = with_metrics(request)
    try:
        with _folder(request.out) as directory:
            _evaluate(request, directory)
    except KeyboardInterrupt:
        if request.out is not None:
            print(
                f"Stopped. The same command goes on with what {request.out} holds.", file=sys.stderr
            )
        raise


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """--out, or a folder that is removed afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="imagen_jax_") as temporary:
            yield Path(temporary)
    else:
        with output_folder(out):
            yield out


def _evaluate(request: EvaluationRequest, directory: Path) -> None:
    points = guidance_curve.make_points(request.guidance, request.aug_level)
    if len(points) > 1:
        import matplotlib  # noqa: F401  (an error before the work, not after it)
    run = inputs.read_run(request)
    models = _read_models(run, points)
    if models:
        run = replace(run, request=_fitted(run, models[0]))
    _check_aug_level(run, models)
    places = [directory if len(points) == 1 else directory / "points" / p.name for p in points]
    if run.files is None and run.prompts is not None:
        for model, place in zip(models, places, strict=True):
            generation.check_directory(place / "images", _image_settings(run, model))
    run = inputs.with_networks(run)
    print(first_screen.lines(run, points, models), flush=True)
    whole = run.request.shard == WHOLE
    if run.true_images is not None:
        made = compute_reference(
            run.true_images, run.extractors, run.request, directory / "reference"
        )
        run = replace(run, reference=made)
    targets = {}
    if whole:
        targets = compute_targets(run.request.metrics, run.extractors, run.reference, run.texts)
    about = report.describe(run, models[0] if models else None)
    begin, reports = time.monotonic(), []
    for point, model, place in zip(points, models or [None], places, strict=True):
        one = functools.partial(measure_point, run, model, targets, place)
        found = attempt(point.name, one) if len(points) > 1 else one()
        if whole:
            print(report.summary(found.values, point if len(points) > 1 else None), flush=True)
        if len(points) > 1:
            found.write(place)
        reports.append(found if len(points) == 1 else found.only_strip())
    if not whole:
        print(f"Share {request.share} is done; the figures are for a run without --share.")
        return
    about["total_seconds"] = round(time.monotonic() - begin, 2)
    if request.out is not None:
        print(*report.write_results(request.out, about, points, reports, models), sep="\n")
    failures = [f"{what}: {why}" for each in reports for what, why in each.failures.items()]
    if failures:
        raise ValueError(f"not measured: {'; '.join(failures)}")


def _read_models(
    run: EvaluationRun, points: Sequence[guidance_curve.CurvePoint]
) -> list[EvaluatedModel]:
    """The model at every point; empty where all images are given."""
    if not run.generates:
        return []
    model = inputs.read_model(run.request)
    _check_model(run, model)
    # Only traced numbers differ between the points, so nothing recompiles.
    return [
        replace(model, sampling=with_overrides(model.sampling, **vars(point))) for point in points
    ]


def _fitted(run: EvaluationRun, model: EvaluatedModel) -> EvaluationRequest:
    """The request with a batch size for all devices, and with the size of generated images."""
    request, pipeline = run.request, model.pipeline
    batch_size, _ = spread(request.batch_size, pipeline.mesh)
    size = inputs.choose_size(request, pipeline.sizes) if run.files is None else request.size
    return replace(request, batch_size=batch_size, size=size)


def _check_model(run: EvaluationRun, model: EvaluatedModel) -> None:
    """ValueError where the model cannot be measured in this way."""
    metrics = run.request.metrics
    if run.true_set is not None:
        super_resolution.check_super_resolution(metrics, model, run.true_set)
    kinds = {stage.conditioning for stage in model.pipeline.cascade.stages}
    if "text" in kinds and run.files is None and run.prompts is not None:
        tokenize(model.pipeline.cascade.encoder, run.prompts.texts)  # warns of those that are cut
    if "text" in kinds or set(metrics) <= set(QUALITY):
        return
    name = model.pipeline.name
    require(("label" in kinds, f"{name!r} reads neither text nor classes: give its --images."))
    try:
        class_numbers(model.pipeline.cascade, run.prompts.texts)
    except ValueError as error:
        raise ValueError(
            f"{name!r} reads classes, not text: give --prompts FILE with a class a line. {error}"
        ) from None


def _check_aug_level(run: EvaluationRun, models: Sequence[EvaluatedModel]) -> None:
    """ValueError where --aug_level has no stage that it changes."""
    request = run.request
    if not request.aug_level or set(request.metrics) & set(QUALITY):
        return
    stages = models[0].pipeline.cascade.stages if models else ()
    if not any(s.low_resolution is not None and s.resolution <= request.size for s in stages):
        raise ValueError(
            "--aug_level changes nothing: no super-resolution stage makes images of "
            f"{request.size}."
        )


def measure_point(
    run: EvaluationRun,
    model: EvaluatedModel | None,
    targets: Mapping[str, Targets],
    directory: Path,
) -> Report:
    """Everything that the metrics ask for at one point of a curve; "seconds" among its values.

    For a shard of the work: only its images and their features, no figures.

    Args:
        model: None where all images are given.
        directory: for images and features.
    """
    request, found = run.request, Report()
    seconds: dict[str, float] = {}
    quality = [name for name in request.metrics if name in QUALITY]
    if len(quality) < len(request.metrics):
        files = run.files
        if files is None:
            with _timed(seconds, "generation"):
                files, count = _generated(run, model, directory / "images")
            found = Report({"newly_generated": count})
        with _timed(seconds, "measurement"):
            found |= measure_images(run, files, targets, directory / "features")
    if quality and request.shard == WHOLE:
        if run.true_files is not None:
            name, compute = "pairs", super_resolution.evaluate_pairs
            given = run.files, run.true_files, request.size
        else:
            name, compute = "super_resolution", super_resolution.evaluate_super_resolution
            given = model, run.true_set, request.seed, request.batch_size
        with _timed(seconds, name):
            found |= attempt(", ".join(quality), functools.partial(compute, quality, *given))
    return found | Report({"seconds": seconds})


def _generated(
    run: EvaluationRun, model: EvaluatedModel, directory: Path
) -> tuple[list[Path], int]:
    """(the files of the images, how many were not there and were generated)."""
    request = run.request
    generation.open_directory(directory, _image_settings(run, model))
    size, batch_size = request.size, request.batch_size
    generate = generation.make_generate(model, size, request.seed, batch_size)
    ranges = request.shard.chunks(len(run.texts), batch_size)
    count = generation.generate_images(generate, run.texts, directory, batch_size, ranges)
    return generation.image_files(directory, len(run.texts), request.shard), count


def _image_settings(run: EvaluationRun, model: EvaluatedModel) -> dict[str, Any]:
    names = ("num_images", "size", "seed", "batch_size")
    values = {name: getattr(run.request, name) for name in names}
    return report.image_settings(model, run.prompts.fingerprint, **values)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begin, 2)


def measure_images(
    run: EvaluationRun,
    files: Sequence[Path],
    targets: Mapping[str, Targets],
    directory: Path,
) -> Report:
    """The figures of images in files, each with its departures from the metric's protocol.

    Args:
        directory: for the features.
    """
    request, extractors = run.request, run.extractors
    preprocessing = image_folder.Preprocessing(request.size)
    ranges = request.shard.chunks(len(files), request.batch_size)
    chunks = image_folder.read_chunks(files, preprocessing, ranges, request.skip_broken)
    features = extract(extractors, chunks, directory, sum(map(len, ranges)))
    if request.shard != WHOLE:
        return Report()
    if not features.rows:
        raise ValueError(f"None of {len(files)} images can be read, {files[0]} first.")
    values, failures = measure(
        request.metrics, extractors, features.by_network, targets, features.rows
    )
    for metric, by_network in values.items():
        for extractor in extractors:
            if figure := by_network.get(extractor.name):
                figure["off_protocol"] = departures(metric, extractor, figure, run, preprocessing)
    files = [files[row] for row in features.rows]
    captions = None if run.texts is None else [run.texts[row] for row in features.rows]
    sheets = report.image_sheets(files, captions, preprocessing.size)
    return Report({"pictures": preprocessing.to_dict()} | values, sheets=sheets, failures=failures)
