"""What an evaluation says before its work begins: what is measured, of what, where it goes."""

from collections.abc import Sequence

import jax

from imagen_jax.devices.accelerators import describe
from imagen_jax.evaluation.generation import image_file
from imagen_jax.evaluation.guidance_curve import CurvePoint, text
from imagen_jax.evaluation.inputs import EvaluatedModel, EvaluationRun
from imagen_jax.evaluation.metrics import DISTANCES, FRECHET, metrics_of

WIDTH = 11  # of the column of names


def lines(
    run: EvaluationRun, points: Sequence[CurvePoint], models: Sequence[EvaluatedModel]
) -> str:
    """One line each, by name; then a note for everything that makes a figure doubtful."""
    request = run.request
    images = f"{run.count} images of {request.size}x{request.size} pixels"
    values = {"measured": ", ".join(request.metrics)}
    if models:
        values["model"] = _describe_model(models)
    if run.files is not None:
        values["images"] = f"{images}, in {request.images}"
    else:
        values["images"] = f"{images} to generate, {request.batch_size} at a time"
        folder = request.out / "images"
        there = sum(image_file(folder, index).is_file() for index in range(run.count))
        values["images"] += f"; {there} are there already" if there else ""
    if len(points) > 1:
        values["points"] = f"{len(points)}: {', '.join(point.name for point in points)}"
    if run.prompts is not None:
        values["prompts"] = f"{len(run.prompts)} of {request.prompts or run.prompts.name}"
    if request.truth is not None:
        values["truth"] = f"the images of the same names in {request.truth}"
    if (true := run.true_images or run.reference) is not None:
        values["reference"] = f"{true.count} images of {true.size}x{true.size} pixels, in "
        values["reference"] += str(request.make_reference or request.reference)
    if run.extractors:
        values["networks"] = "; ".join(extractor.name for extractor in run.extractors)
    values["device"] = describe(jax.devices())
    none = "none: --out DIR writes one, and keeps what a stopped run has done"
    values["report"] = f"{request.out}/report.html" if request.out else none
    shown = [*values.items(), *(("note", note) for note in notes(run))]
    return "\n".join(f"{name:{WIDTH}s} {value}" for name, value in shown)


def _describe_model(models: Sequence[EvaluatedModel]) -> str:
    """The model's name, and how its stages are sampled at the first point."""
    model = models[0]
    stages = [
        f"{stage.name} {own.sampler} {own.steps} steps, guidance {text(own.guidance)}"
        for stage, own in zip(model.pipeline.cascade.stages, model.sampling, strict=True)
    ]
    return f"{model.pipeline.name}: {'; '.join(stages)}"


def notes(run: EvaluationRun) -> list[str]:
    """What makes the figures doubtful, as far as it is known before the work."""
    request, true, found = run.request, run.true_images or run.reference, []
    if true is None:
        return found
    given = request.images, request.reference
    if None not in given and given[1].is_dir():
        inner, outer = sorted(
            (path.resolve() for path in given), key=lambda path: len(path.parts), reverse=True
        )
        if inner == outer:
            found.append("the images and the reference are the same folder")
        elif inner.is_relative_to(outer):
            found.append(f"{inner} lies in {outer}: its images count for both")
    if true.size != request.size:
        found.append(
            f"the images have {request.size} pixels and the reference {true.size}: a distance "
            "also measures how sharp they are; --size N brings folders to one size"
        )
    for extractor in run.extractors:
        wanted = [m for m in metrics_of(request.metrics, extractor) if m in DISTANCES]
        if not wanted:
            continue
        if "random" in extractor.name.lower():
            found.append(f"{extractor.name}: random weights, whose distances are not FID or KID")
        fewest = min(run.count, true.count)
        found += [
            f"{metric} of {fewest} images, no more than {extractor.name} has features "
            f"({extractor.dim}): it is too large, and compares only with figures of as many "
            f"images; {FRECHET[metric]} is not biased so"
            for metric in wanted
            if metric in FRECHET and fewest <= extractor.dim
        ]
    return found
