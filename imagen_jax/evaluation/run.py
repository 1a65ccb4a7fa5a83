"""An evaluation from the request to the report: images, features, then what each metric makes of
them, at every point of a sweep.

Every image and every chunk of the features is a file: what is there is not made again.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.evaluation import (
    generation,
    image_folder,
    inputs,
    report,
    super_resolution,
    sweep,
)
from imagen_jax.evaluation.extraction import extract
from imagen_jax.evaluation.image_quality import QUALITY
from imagen_jax.evaluation.image_set import make_prompts
from imagen_jax.evaluation.inputs import EvaluatedModel, EvaluationRequest, EvaluationRun
from imagen_jax.evaluation.metrics import Targets, compute_targets, measure
from imagen_jax.evaluation.protocol import departures
from imagen_jax.evaluation.reference import read_reference
from imagen_jax.evaluation.report import Report
from imagen_jax.evaluation.retrieval import evaluate_retrieval
from imagen_jax.evaluation.shards import WHOLE
from imagen_jax.pipeline.generation import spread
from imagen_jax.pipeline.request import class_numbers
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import output_folder
from imagen_jax.text.encoder import ShortenedWarning, tokenize


def evaluate(request: EvaluationRequest) -> None:
    """Makes the reference that is asked for, measures every point of the sweep, writes the report
    and prints a summary. For a shard of the work: only images and features.

    Raises ValueError or FileNotFoundError where the request cannot be met.
    """
    if request.out is not None:
        with output_folder(request.out):
            _evaluate_all(request)
    elif request.make_reference is not None:
        inputs.save_reference(request, inputs.read_extractors(request))
    else:
        raise ValueError("Say with --out DIR where the report is to go.")


def _evaluate_all(request: EvaluationRequest) -> None:
    making = request.make_reference is not None
    run = inputs.read_run(request)
    points = sweep.make_points(request.guidance, request.aug_level)
    models: list[EvaluatedModel] = []
    if run.files is None or (run.true_files is None and set(request.metrics) & set(QUALITY)):
        model = inputs.read_model(request)
        run = replace(run, request=_fitted(run, model))
        _check_model(run, model)
        # Only traced numbers differ between the points, so nothing recompiles.
        models = [
            replace(model, sampling=with_overrides(model.sampling, **vars(point)))
            for point in points
        ]
    _check_sweep(run, points, models)
    if making:
        inputs.save_reference(request, run.extractors)
    targets: dict[str, Targets] = {}
    if run.request.shard == WHOLE:
        if making:
            run = replace(run, reference=read_reference(request.reference))
        targets = compute_targets(request.metrics, run.extractors, run.reference, run.texts)
    about = report.describe(run, models[0] if models else None)
    begin, reports = time.monotonic(), []
    for point, model in zip(points, models or [None], strict=True):
        directory = request.out if len(points) == 1 else request.out / "points" / point.name
        found = measure_point(run, model, targets, directory)
        found.write(directory)
        reports.append(found if len(points) == 1 else found.only_strip())
    if run.request.shard != WHOLE:
        print(f"Share {request.share} is done; the figures are for a run without --share.")
        return
    about["total_seconds"] = round(time.monotonic() - begin, 2)
    values, paths = report.write_results(request.out, about, points, reports, models)
    print(*paths, sep="\n")
    print(report.summary(values))


def _fitted(run: EvaluationRun, model: EvaluatedModel) -> EvaluationRequest:
    """The request with a batch size for all devices, and with the size of generated images."""
    request, pipeline = run.request, model.pipeline
    batch_size, _ = spread(request.batch_size, pipeline.mesh)
    size = inputs.choose_size(request, pipeline.sizes) if run.files is None else request.size
    return replace(request, batch_size=batch_size, size=size)


def _check_model(run: EvaluationRun, model: EvaluatedModel) -> None:
    """ValueError where the model cannot be measured in this way."""
    metrics = run.request.metrics
    if run.emoji is not None:
        super_resolution.check_super_resolution(metrics, model, run.emoji)
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


def _check_sweep(
    run: EvaluationRun, points: Sequence[sweep.SweepPoint], models: Sequence[EvaluatedModel]
) -> None:
    """ValueError where several points are asked for and something is missing to compare them."""
    request = run.request
    if len(points) > 1:
        if request.images is not None:
            raise ValueError(
                "--images are what they are: several --guidance or --aug_level need a model that "
                "generates them."
            )
        import matplotlib  # noqa: F401  (an error before the work, not after it)
    if not request.aug_level or set(request.metrics) & set(QUALITY):
        return
    stages = models[0].pipeline.cascade.stages if models else ()
    if not any(s.low_resolution is not None and s.resolution <= request.size for s in stages):
        raise ValueError(
            f"--aug_level changes nothing: no super-resolution stage makes images of "
            f"{request.size}."
        )


def measure_point(
    run: EvaluationRun,
    model: EvaluatedModel | None,
    targets: Mapping[str, Targets],
    directory: Path,
) -> Report:
    """Everything that the metrics ask for at one point of a sweep; "seconds" among its values.

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
                generation.open_directory(directory / "images", report.image_settings(run, model))
                count = generation.generate_images(
                    _generator(request, model),
                    run.texts,
                    directory / "images",
                    request.batch_size,
                    run.request.shard,
                )
                files = generation.image_files(
                    directory / "images", len(run.texts), run.request.shard
                )
            found = Report({"newly_generated": count})
        with _timed(seconds, "measurement"):
            found |= measure_images(run, files, targets, directory / "features")
    if quality and run.request.shard == WHOLE and run.true_files is not None:
        with _timed(seconds, "pairs"):
            found |= super_resolution.evaluate_pairs(
                quality, run.files, run.true_files, request.size
            )
    elif quality and run.request.shard == WHOLE:
        with _timed(seconds, "super_resolution"):
            found |= super_resolution.evaluate_super_resolution(
                quality, model, run.emoji, request.seed, request.batch_size
            )
    return found | Report({"seconds": seconds})


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begin, 2)


def _generator(request: EvaluationRequest, model: EvaluatedModel) -> generation.Generate:
    """What generates images of prompts, or of classes for a model that reads these."""
    pipeline = model.pipeline
    reads_text = any(stage.conditioning == "text" for stage in pipeline.cascade.stages)

    def generate(prompts: Sequence[str], first: int) -> Sequence[Image.Image]:
        what = {"prompt": list(prompts)} if reads_text else {"label": list(prompts)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortenedWarning)  # one was given for all prompts
            return pipeline.generate_images(
                num_images=1,
                size=request.size,
                seed=request.seed,
                batch_size=request.batch_size,
                progress=False,
                sampling=model.sampling,
                first_index=first,
                **what,
            )

    return generate


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
    preprocessing = image_folder.Preprocessing(request.size or image_folder.common_size(files))
    ranges = request.shard.chunks(len(files), request.batch_size)
    chunks = image_folder.read_chunks(files, preprocessing, ranges, request.skip_broken)
    features = extract(extractors, chunks, directory, sum(map(len, ranges)))
    if run.request.shard != WHOLE:
        return Report()
    if not features.rows:
        raise ValueError(f"None of {len(files)} images can be read, {files[0]} first.")
    values = measure(request.metrics, extractors, features.by_network, targets, features.rows)
    for metric, by_network in values.items():
        for extractor in extractors:
            if figure := by_network.get(extractor.name):
                figure["off_protocol"] = departures(metric, extractor, figure, run, preprocessing)
    files = [files[row] for row in features.rows]
    captions = None if run.texts is None else [run.texts[row] for row in features.rows]
    sheets = report.image_sheets(files, captions, preprocessing.size)
    found = Report({"pictures": preprocessing.to_dict()} | values, sheets=sheets)
    if "retrieval" in request.metrics:
        named = make_prompts(run.emoji, request.language)
        named = [named[row // request.num_images] for row in features.rows]
        found |= evaluate_retrieval(run.emoji, named, files, preprocessing.size)
    return found
