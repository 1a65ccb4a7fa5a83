"""A report on bias: makes the images of a survey, and writes bias.json, bias.csv and bias.html."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.evaluation import bias_lists, generation, report
from imagen_jax.evaluation.bias import Survey, clip_survey, spread_of
from imagen_jax.evaluation.feature_files import find_network, load_extractor
from imagen_jax.evaluation.html_report import image_of, table_of, what_decides, whole_page
from imagen_jax.evaluation.icon_people import icon_survey
from imagen_jax.evaluation.icon_set import read_icons
from imagen_jax.evaluation.image_folder import Preprocessing, read_chunks
from imagen_jax.evaluation.inputs import EvaluatedModel, read_model
from imagen_jax.evaluation.networks import PLACES
from imagen_jax.evaluation.report import Report
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.evaluation.retrieval import percent
from imagen_jax.evaluation.shards import WHOLE
from imagen_jax.images.provenance import TRAINED
from imagen_jax.pipeline.generation import spread
from imagen_jax.pipeline.request import last_stage
from imagen_jax.storage.folders import output_folder
from imagen_jax.storage.json_file import write_object

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
HEAD = ["attribute", "subject", "value", "n", "share", "low", "high"]
LIMITS = (
    "Every image is given the value that fits best, even where it shows nobody, and what decides "
    "that errs and has leanings of its own. How often a value is recognized where the prompt names "
    "it says how far to trust the shares. How people look does not tell who they are: the report "
    "is about images, and of no use for sorting people."
)


@dataclass(frozen=True)
class BiasRequest:
    """What is to be reported; the options of imagen-jax bias explain each field."""

    model: str | list[str]
    out: Path
    data: Path | None = None
    clip: Path | None = None
    lists: Path | None = None
    num: int = 20
    language: str = "en"
    styles: Sequence[str] | None = None
    size: int | None = None
    seed: int = 0
    batch_size: int = 32


def write_bias_report(request: BiasRequest) -> None:
    """Makes the images that are not there yet, prints the table over all subjects, and writes the
    report.

    Raises ValueError or FileNotFoundError where something does not fit, before the work.
    """
    lists = bias_lists.DEFAULT if request.lists is None else bias_lists.read_lists(request.lists)
    if request.data is None:
        place = str(request.clip or PLACES["clip"])
        if request.clip is None and not PLACES["clip"].is_dir():
            raise ValueError(
                "The report needs --clip DIR, a CLIP model from Hugging Face, or for a model of "
                "icons --data DIR, what imagen-jax prepare_icons wrote."
            )
        find_network(place)
    else:
        icons = read_icons(request.data, request.styles)
        survey = icon_survey(icons, request.num, request.language)
    of_model = EvaluationRequest(model=request.model, size=request.size, seed=request.seed)
    model = read_model(of_model)
    pipeline = model.pipeline
    if all(stage.conditioning != "text" for stage in pipeline.cascade.stages):
        raise ValueError(f"{pipeline.name!r} reads no text: a report on bias asks in words.")
    if request.data is None:
        survey = clip_survey(lists, load_extractor(place), request.num)
    size = request.size or pipeline.sizes[0 if request.data else -1]
    last_stage(pipeline.cascade, pipeline.name, size)
    with output_folder(request.out):
        files = _made(request, survey, model, size)
        found = _classified(survey, files, size, request.batch_size)
        values = spread_of(survey, found)
        paths = write(request.out, survey, values, _about(request, survey, model, size), files)
    print(summary(values), *paths, sep="\n")


def _made(request: BiasRequest, survey: Survey, model: EvaluatedModel, size: int) -> list[Path]:
    """The files of all images, made where they are not there."""
    texts, directory = [one.text for one in survey.asked], request.out / "images"
    batch_size, _ = spread(request.batch_size, model.pipeline.mesh)
    given = {"size": size, "seed": request.seed, "batch_size": batch_size}
    about = {"num": request.num, "language": request.language, "styles": request.styles}
    generation.generate_list(model, texts, directory, [range(len(texts))], about=about, **given)
    return generation.image_files(directory, len(texts))


def _classified(
    survey: Survey, files: Sequence[Path], size: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Each image's value of each attribute."""
    chunks = read_chunks(files, Preprocessing(size), WHOLE.chunks(len(files), batch_size))
    parts = [
        survey.classify(survey.asked[chunk.start : chunk.start + len(chunk.images)], chunk.images)
        for chunk in chunks
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in survey.attributes}


def _about(
    request: BiasRequest, survey: Survey, model: EvaluatedModel, size: int
) -> dict[str, Any]:
    return {
        "model": model.about,
        "classified_by": survey.how,
        "settings": {
            "images_of_each_subject": request.num,
            "size": size,
            "seed": request.seed,
            "language": request.language,
            "styles": request.styles,
            "sampling": report.sampling(model),
        },
        **report.surroundings(),
    }


# ---------------------------------------------------------------------------- what is written


def write(
    out: Path,
    survey: Survey,
    values: Mapping[str, Any],
    about: Mapping[str, Any],
    files: Sequence[Path],
) -> list[Path]:
    """Writes the figures as JSON and CSV, and the page; gives their paths."""
    neutral = {}
    for one, file in zip(survey.asked, files, strict=True):
        if one.attribute is None:
            neutral.setdefault(one.subject, file)
    images = [[image] for image in _read(list(neutral.values()), report.SHEET_IMAGES)]
    sheet = report.contact_sheet(images, list(neutral), source=TRAINED)
    write_object(out / "bias.json", {"attributes": values, **about})
    (table,) = Report(tables={"bias.csv": rows_of(values)}).write(out)
    page = make_page(values, about, {f"The first image of {len(images)} subjects": sheet})
    (out / "bias.html").write_text(page, encoding="utf-8")
    return [out / "bias.json", table, out / "bias.html"]


def _read(files: Sequence[Path], num: int) -> list[np.ndarray]:
    chunks = read_chunks(files[:num], Preprocessing(report.SHEET_SIDE))
    return [image for chunk in chunks for image in chunk.images]


def rows_of(values: Mapping[str, Any]) -> list[list[str]]:
    """All shares: of each subject, of all together, and of the prompts that name the value."""
    rows = [HEAD]
    for name, own in values.items():
        recognized = {f"asked for: {value}": {value: s} for value, s in own["recognized"].items()}
        for subject, shares in {"all": own["all"], **own["subjects"], **recognized}.items():
            for value, found in shares.items():
                numbers = [f"{found[key]:.4f}" for key in ("share", "low", "high")]
                rows.append([name, subject, value, str(found["n"]), *numbers])
    return rows


def overall(values: Mapping[str, Any]) -> list[list[str]]:
    """The table over all subjects."""
    table = [["attribute", "value", "share, all subjects", "recognized where it is asked for"]]
    for name, own in values.items():
        for value, found in own["all"].items():
            known = own["recognized"].get(value)
            table.append([name, value, percent(found), percent(known) if known else ""])
    return table


def distances(values: Mapping[str, Any]) -> list[list[str]]:
    """How far subjects are from even, beside what chance alone does."""
    table = [["attribute", "distance from even", "of a model without preference"]]
    for name, own in values.items():
        found = own["distance"]
        interval = f"{found['mean']:.2f} ({found['low']:.2f}-{found['high']:.2f})"
        table.append([name, interval, f"{found['of_an_even_model']:.2f}"])
    return table


def summary(values: Mapping[str, Any]) -> str:
    """The tables over all subjects, in Markdown."""
    return f"{report.markdown(overall(values))}\n\n{report.markdown(distances(values))}\n"


def make_page(values: Mapping[str, Any], about: Mapping[str, Any], images: Mapping) -> str:
    """The page; all text escaped, all images inside it."""
    title = f"Bias of {about['model']['name']}"
    num = about["settings"]["images_of_each_subject"]
    how = (
        f"{num} images of each subject, by prompts that name none of the values. "
        f"What decides an image's value: {about['classified_by']}. In brackets: 95 % intervals."
    )
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(str(about['date']))}</p>"]
    body += [f"<p>{html.escape(how)}</p>", f'<div class="note">{html.escape(LIMITS)}</div>']
    body += ["<h2>All subjects</h2>", table_of(overall(values)), table_of(distances(values))]
    for name, own in values.items():
        body += [f"<h2>{html.escape(name)}, by subject</h2>", _bars(own)]
    for name, image in images.items():
        body += [f"<h2>{html.escape(name)}</h2>", image_of(image, name)]
    return whole_page(title, [*body, *what_decides(about)])


def _bars(own: Mapping[str, Any]) -> str:
    """A bar for each subject, divided among the values; least of the first value first."""
    first, colors = next(iter(own["all"])), dict(zip(own["all"], cycle(COLORS), strict=False))
    key = " ".join(f'<b style="color:{c}">&#9632;</b> {html.escape(v)}' for v, c in colors.items())
    lines = []
    for subject, shares in sorted(own["subjects"].items(), key=lambda x: x[1][first]["share"]):
        parts = "".join(
            f'<span style="width:{found["share"]:.1%};background:{colors[value]}"></span>'
            for value, found in shares.items()
        )
        told = "; ".join(f"{value} {percent(found)}" for value, found in shares.items())
        lines.append(
            f'<tr><td>{html.escape(subject)}</td><td><div class="bar">{parts}</div></td>'
            f"<td>{html.escape(told)}</td></tr>"
        )
    return f"<p>{key}</p><table>{''.join(lines)}</table>"
