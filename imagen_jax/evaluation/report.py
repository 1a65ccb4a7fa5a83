"""What an evaluation leaves in its directory: report.json, report.html, tables, sheets, a curve."""

import contextlib
import csv
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax import __version__
from imagen_jax.diffusion.overrides import sampling_to_dict
from imagen_jax.evaluation import guidance_curve
from imagen_jax.evaluation.guidance_curve import CurvePoint
from imagen_jax.evaluation.html_report import NAMES, make_page, notes_of, rows_of
from imagen_jax.evaluation.image_folder import Preprocessing, read_image
from imagen_jax.evaluation.inputs import EvaluatedModel, EvaluationRun
from imagen_jax.images import decoding
from imagen_jax.images.grid import image_grid, magnify
from imagen_jax.images.image_file import has_settings, save_image
from imagen_jax.images.pixels import resize, to_pil
from imagen_jax.images.provenance import COMPOSITE, TRAINED
from imagen_jax.storage.json_file import read_object, write_object

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow")  # that figures may depend on
SHEET_IMAGES, SHEET_SIDE = 64, 256  # on a sheet: how many images, and their pixels at most
STRIP, STRIP_IMAGES = "strip.png", 8  # of each point, in the page of a curve
TITLES = {"pictures.png": "Images"}
Table = list[list[str]]


@dataclass(frozen=True, eq=False)
class Report:
    """The results: values for report.json, tables and sheets by their files' names, and why what
    else was asked for is not there.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    sheets: dict[str, Image.Image] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __or__(self, other: "Report") -> "Report":
        return Report(**{name: own | vars(other)[name] for name, own in vars(self).items()})

    def only_strip(self) -> "Report":
        """Without all sheets but the strip, which the page of a curve shows."""
        return replace(self, sheets={k: v for k, v in self.sheets.items() if k == STRIP})

    def write(self, directory: Path) -> list[Path]:
        """The CSV files of the tables and the PNG files of the sheets; gives their paths."""
        for name, rows in self.tables.items():
            with open(directory / name, "w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(rows)
        for name, sheet in self.sheets.items():
            save_image(sheet, directory / name)
        return [directory / name for name in (*self.tables, *self.sheets)]


def attempt(what: str, compute: Callable[[], Report]) -> Report:
    """compute(), or why `what` is not there: it does not cost what else was measured."""
    try:
        return compute()
    except (ValueError, MemoryError) as error:
        return Report(failures={what: str(error) or "not enough memory"})


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
    columns: int = 8,
    source: str = COMPOSITE,
) -> Image.Image:
    """The first images of an evaluation, each row images of one thing: true and sampled ones,
    unless `source` (as of `image_grid`) says otherwise.

    Large ones are shrunk; those smaller than others in their row are magnified, pixel for pixel.
    """
    shown = []
    for row in rows[:SHEET_IMAGES]:
        images = [resize(x, SHEET_SIDE) if min(x.shape[:2]) > SHEET_SIDE else x for x in row]
        width = max(image.shape[1] for image in images)
        images = [magnify(to_pil(image), width) for image in images]
        shown.append(image_grid(images, columns=len(images), gap=1))
    captions = captions[:SHEET_IMAGES]
    return image_grid(shown, captions, columns=columns, min_cell=128, source=source)


def image_sheets(
    files: Sequence[Path], captions: Sequence[str] | None, size: int
) -> dict[str, Image.Image]:
    """The first images with their captions, large ones shrunk; and a strip of a few."""
    preprocessing = Preprocessing(min(size, SHEET_SIDE))
    shown = [read_image(file, preprocessing) for file in files[:SHEET_IMAGES]]
    captions = None if captions is None else captions[:SHEET_IMAGES]
    source = TRAINED if all(map(has_settings, files[:SHEET_IMAGES])) else None
    return {
        "pictures.png": image_grid(
            shown, captions, columns=STRIP_IMAGES, min_cell=128, source=source
        ),
        STRIP: image_grid(shown[:STRIP_IMAGES], columns=STRIP_IMAGES, source=source),
    }


def markdown(table: Table) -> str:
    """A table in Markdown; the first row is its head."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# ------------------------------------------------------------------------------- what decides


def sampling(model: EvaluatedModel) -> dict[str, Any]:
    """How each stage is sampled, by its name."""
    stages = model.pipeline.cascade.stages
    entries = zip(stages, model.sampling, strict=True)
    return {stage.name: sampling_to_dict(entry) for stage, entry in entries}


def surroundings() -> dict[str, Any]:
    """Versions, devices and the date."""
    devices = jax.devices()
    return {
        "versions": {
            "imagen_jax": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe(run: EvaluationRun, model: EvaluatedModel | None) -> dict[str, Any]:
    """Everything that decides the figures besides the code, as JSON values."""
    request, reference = run.request, run.reference
    images = None if request.images is None else str(request.images)
    about: dict[str, Any] = {
        "model": {"name": f"images in {images}"} if model is None else model.about,
        "prompts": None if run.prompts is None else run.prompts.describe(),
        "features": [extractor.describe() for extractor in run.extractors],
        "settings": {
            "metrics": list(request.metrics),
            "num_images": request.num_images,
            "size": request.size,
            "batch_size": request.batch_size,
            "skip_broken": request.skip_broken,
            "images": images,
            "images_named_by_ids": run.named_by_ids,
        },
        **surroundings(),
    }
    if model is not None:
        about["settings"] |= {"seed": request.seed, "sampling": sampling(model)}
    if reference is not None:
        about["reference"] = {**reference.about, "fingerprint": reference.fingerprint}
    if run.true_set is not None:
        about["data"] = run.true_set.describe()
    return about


def image_settings(model: EvaluatedModel, prompts: str, **more: Any) -> dict[str, Any]:
    """What decides generated images: those of other settings never mix with them.

    Args:
        prompts: their fingerprint.
        more: size, seed and what else decides them.
    """
    about = surroundings()
    kept = ("name", "fingerprint", "dtype", "guide")
    return {
        "model": {key: model.about[key] for key in kept if key in model.about},
        "prompts": prompts,
        **more,
        "sampling": sampling(model),
        "versions": {key: about["versions"][key] for key in ("imagen_jax", "jax")},
        "device": {key: about["device"][key] for key in ("platform", "kind")},
    }


# ------------------------------------------------------------------------------- what is written


def write_results(
    out: Path,
    about: dict[str, Any],
    points: Sequence[CurvePoint],
    reports: Sequence[Report],
    models: Sequence[EvaluatedModel],
) -> list[Path]:
    """Writes the report of one point, or of a curve; gives the files."""
    values = [
        report.values | ({"not_measured": report.failures} if report.failures else {})
        for report in reports
    ]
    _keep_earlier(out, values)
    if len(points) == 1:
        result, paths = values[0] | about, []
        shown = {
            TITLES.get(name, name): sheet
            for name, sheet in reports[0].sheets.items()
            if name != STRIP
        }
        page = make_page(result, shown)
    else:
        entries = [
            {**asdict(point), "sampling": sampling(model), **found}
            for point, model, found in zip(points, models, values, strict=True)
        ]
        about["settings"].pop("sampling")
        result = {"points": entries, **about}
        rows, shown = guidance_curve.table(points, values), {}
        paths = Report(tables={"curve.csv": rows}).write(out)
        if guidance_curve.has_curve(values):
            paths.append(out / "curve.png")
            guidance_curve.plot(points, values, paths[-1])
            shown["Curve"] = decoding.read(paths[-1])
        shown |= {
            point.name: report.sheets[STRIP]
            for point, report in zip(points, reports, strict=True)
            if STRIP in report.sheets
        }
        page = make_page(result, shown, rows)
    write_object(out / "report.json", result)  # first: the disk may be nearly full
    (out / "report.html").write_text(page, encoding="utf-8")
    if len(points) == 1:
        reports[0].write(out)
    return [*paths, out / "report.json", out / "report.html"]


def _keep_earlier(out: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Renames a report of other figures that is there already: it may have taken hours."""
    path = out / "report.json"
    if not path.is_file():
        return
    date = "earlier"
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # no report of ours
        earlier = read_object(path, "a report of imagen-jax evaluate")
        date = re.sub(r"\W", "", earlier["date"])
        if list(map(rows_of, earlier.get("points", [earlier]))) == list(map(rows_of, values)):
            return
    name = f"report_{date}"
    for suffix in (".json", ".html"):
        if path.with_suffix(suffix).is_file():
            path.with_suffix(suffix).rename(out / f"{name}{suffix}")
    print(f"{path} had other figures: it is now {name}.json")


def summary(values: Mapping[str, Any], point: CurvePoint | None = None) -> str:
    """The figures as a table; at a point of a curve, in one line."""
    rows = rows_of(values)
    if point is not None:
        figures = [f"{NAMES[metric]} {value:.5g}" for metric, _, value, _ in rows]
        return f"{point.name}: {', '.join(figures) or 'no figures'}"
    cells = [(NAMES[metric], f"{value:.5g}", name, rest) for metric, name, value, rest in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    if notes := notes_of(values):
        count = len({reason for _, each in notes for reason in each})
        lines.append(
            f"These figures do not compare with published ones; report.html lists {count} reasons."
        )
    return "\n".join(lines)
