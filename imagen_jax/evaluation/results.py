"""What an evaluation leaves in its directory: report.json, report.html, tables, sheets, a curve."""

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from imagen_jax.evaluation import prompts as prompts_room
from imagen_jax.evaluation import report as report_room
from imagen_jax.evaluation import sweep
from imagen_jax.evaluation.html_report import make_page, notes_of, rows_of
from imagen_jax.evaluation.image_set import ImageSet
from imagen_jax.evaluation.runner import STRIP, Job, Result, Subject
from imagen_jax.evaluation.sweep import Point

SHEETS = {"pictures.png": "Pictures", "retrieval.png": "True and generated images"}


def describe(job: Job, subject: Subject | None, images: Path | None = None) -> dict[str, Any]:
    """Everything that decides the figures besides the code, as JSON values."""
    reference = None if job.truth is None else job.truth.reference
    about: dict[str, Any] = {
        "model": {"name": f"images in {images}"} if subject is None else subject.about,
        "prompts": None if job.prompts is None else prompts_room.describe(job.prompts),
        "features": [extractor.describe() for extractor in job.extractors],
        "settings": {
            "metrics": list(job.metrics),
            "num_images": job.copies,
            "size": job.size,
            "batch_size": job.batch_size,
            "skip_broken": job.skip_broken,
            "images": None if images is None else str(images),
            "images_named_by_ids": job.named_by_ids,
        },
        "versions": report_room.versions(),
        "device": report_room.device(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if subject is not None:
        about["settings"] |= {"seed": subject.seed, "sampling": sampling(subject)}
    if reference is not None:
        about["reference"] = {**reference.about, "fingerprint": reference.fingerprint}
    if job.emoji is not None:
        about["data"] = describe_emoji(job.emoji)
    return about


def sampling(subject: Subject) -> dict[str, Any]:
    """The settings of each stage by its name."""
    stages = subject.cascade.stages
    return {s.name: asdict(entry) for s, entry in zip(stages, subject.settings, strict=True)}


def describe_emoji(images: ImageSet) -> dict[str, Any]:
    return {
        "path": images.path,
        "fingerprint": images.fingerprint,
        "split": images.split,
        "pictures": len(images),
        "distinct_in_all_splits": len(images.gallery.classes),
    }


def image_settings(job: Job, subject: Subject) -> dict[str, Any]:
    """What decides the generated images: those of other settings never mix with them."""
    versions, device = report_room.versions(), report_room.device()
    return {
        "model": {key: subject.about.get(key) for key in ("name", "fingerprint", "dtype")},
        "prompts": job.prompts.fingerprint,
        "num_images": job.copies,
        "size": job.size,
        "seed": subject.seed,
        "batch_size": job.batch_size,
        "sampling": sampling(subject),
        "versions": {key: versions[key] for key in ("imagen_jax", "jax")},
        "device": {key: device[key] for key in ("platform", "kind")},
    }


def write_point(result: Result, directory: Path) -> list[Path]:
    """CSV files and PNG files of a result; gives their paths."""
    paths = []
    for name, rows in result.tables.items():
        _write_csv(directory / name, rows)
        paths.append(directory / name)
    for name, sheet in result.sheets.items():
        sheet.save(directory / name)
        paths.append(directory / name)
    return paths


def keep_strip(result: Result) -> Result:
    """The result without its sheets, but for the strip: what the page of a sweep shows."""
    return replace(result, sheets={k: v for k, v in result.sheets.items() if k == STRIP})


def write_results(
    out: Path,
    about: dict[str, Any],
    points: Sequence[Point],
    results: Sequence[Result],
    subjects: Sequence[Subject] | None,
) -> tuple[dict[str, Any], list[Path]]:
    """(the report, the files written): of one point, or of a sweep with its curve."""
    if len(points) == 1:
        report = {**results[0].values, **about}
        sheets = results[0].sheets
        shown = {SHEETS.get(name, name): sheets[name] for name in sheets if name != STRIP}
        page, paths = make_page(report, shown), []
    else:
        values = [result.values for result in results]
        entries = [
            {**asdict(point), "sampling": sampling(subject), **found}
            for point, subject, found in zip(points, subjects, values, strict=True)
        ]
        about["settings"].pop("sampling")
        report = {"points": entries, **about}
        rows, curve = sweep.table(points, values), None
        paths = [out / "sweep.csv"]
        _write_csv(paths[0], rows)
        if sweep.choose_axes(values[0]):
            curve = out / "sweep.png"
            sweep.plot(points, values, curve)
            paths.append(curve)
        sheets = {
            point.name: result.sheets[STRIP]
            for point, result in zip(points, results, strict=True)
            if STRIP in result.sheets
        }
        page = make_page(report, sheets, curve, rows)
    report_room.write_report(out / "report.json", report)
    (out / "report.html").write_text(page, encoding="utf-8")
    return report, [*paths, out / "report.json", out / "report.html"]


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def summary(report: Mapping[str, Any]) -> str:
    """The figures in a few lines, those of a sweep by point."""
    if "points" in report:
        lines = []
        for entry in report["points"]:
            point = Point(entry["guidance"], entry["aug_level"])
            figures = [f"{metric} {value:.5g}" for metric, _, value, _ in rows_of(entry)]
            lines.append(f"{point.name}: {', '.join(figures)}")
        return "\n".join(lines)
    lines = []
    if found := report.get("retrieval"):
        groups = {"all": found, **found["by_language"], "variants": found["variants"]}
        for name, scores in groups.items():
            if scores["n"]:
                top1, top5 = scores["top1"], scores["top5"]
                lines.append(f"{name:9s} top-1 {top1:6.1%}  top-5 {top5:6.1%}  n {scores['n']}")
    for metric, name, value, rest in rows_of(report):
        if metric != "retrieval":
            lines.append(f"{metric} ({name}): {value:.5g} ({rest})")
    off = notes_of(report)
    lines += [f"off protocol: {name}: {'; '.join(reasons)}" for name, reasons in off]
    return "\n".join(lines)
