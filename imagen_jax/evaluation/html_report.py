"""The report as one page of HTML that needs no other file: figures, notes, images, settings."""

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from imagen_jax.images.image_file import save_image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; margin: .5em 0 }
td, th { border: 1px solid #ccc; padding: .25em .6em; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.note { background: #fff4d6; border-left: 4px solid #d99a00; padding: .6em 1em; margin: 1em 0 }
img { max-width: 100%; height: auto }
.bar { display: flex; height: 1.1em; min-width: 18em } .bar span { display: block }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; white-space: pre-wrap }
"""
NAMES = {
    "fid": "FID",
    "kid": "KID",
    "fd_dinov2": "FD-DINOv2",
    "kd_dinov2": "KD-DINOv2",
    "cmmd": "CMMD",
    "clip": "CLIP score",
    "r_precision": "R-precision",
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
}
LABELS = {"pictures": "images", "n": "images", "left_out_as_exact": "equal and left out"}
NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?|inf")
Row = tuple[str, str, float, str]  # metric, of which network or stage, value, what else


def rows_of(values: Mapping[str, Any]) -> list[Row]:
    """Every figure of a report as a row."""
    rows: list[Row] = []
    for metric in NAMES:
        found = values.get(metric)
        if found and metric in ("psnr", "ssim"):
            # Where every image equals the true one there is no mean: an infinite PSNR.
            for stage, entry in found.items():
                mean = math.inf if entry["model"] is None else entry["model"]
                rows.append((metric, stage, mean, _rest(entry)))
        elif found:
            rows += [(metric, name, e["value"], _rest(e)) for name, e in found.items()]
    return rows


def _rest(entry: Mapping[str, Any]) -> str:
    left_out = ("value", "model", "off_protocol")
    shown = {k: v for k, v in entry.items() if k not in left_out and v is not None}
    shown = {k: v for k, v in shown.items() if v or k not in ("n", "left_out_as_exact")}
    return "; ".join(
        f"{LABELS.get(k, k).replace('_', ' ')} {f'{v:.4g}' if isinstance(v, float) else v}"
        for k, v in shown.items()
    )


def notes_of(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(figure, reasons) of each one that is off its protocol."""
    return [
        (f"{title}, {name}", entry["off_protocol"])
        for metric, title in NAMES.items()
        for name, entry in values.get(metric, {}).items()
        if isinstance(entry, Mapping) and entry.get("off_protocol")
    ]


def make_page(
    report: Mapping[str, Any],
    images: Mapping[str, Image.Image],
    table: Sequence[Sequence[str]] | None = None,
) -> str:
    """The page; all text escaped, all images inside it.

    Args:
        report: what report.json holds; the points of a curve under "points".
        images: to be shown, by title.
        table: of the points of a curve.
    """
    points = report.get("points") or [report]
    title = f"Evaluation of {report['model']['name']}"
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(str(report['date']))}</p>"]
    missing = [pair for point in points for pair in point.get("not_measured", {}).items()]
    lines = [f"<p>{html.escape(f'Not measured: {what}: {why}')}</p>" for what, why in missing]
    body += [f'<div class="note">{line}</div>' for line in lines] + _notes(points)
    if table is None:
        rows = [(NAMES[m], name, f"{value:.5g}", rest) for m, name, value, rest in rows_of(report)]
        body += ["<h2>Figures</h2>", table_of([("metric", "of", "value", "details"), *rows])]
    else:
        body += ["<h2>Points</h2>", table_of(table)]
    body += ["<p>Of FID, KID, FD, KD and CMMD less is better; of all others more.</p>"]
    for name, image in images.items():
        body += [f"<h2>{html.escape(name)}</h2>", image_of(image, name)]
    settings = {
        k: v for k, v in report.items() if k not in NAMES and k not in ("points", "date", "seconds")
    }
    return whole_page(title, [*body, *what_decides(settings)])


def what_decides(settings: Mapping[str, Any]) -> list[str]:
    """The last part of a page: all settings."""
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    return ["<h2>What decides the figures</h2>", f"<pre>{html.escape(text)}</pre>"]


def whole_page(title: str, body: Sequence[str]) -> str:
    """A page of these parts, which are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _notes(points: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = dict(pair for point in reversed(points) for pair in reversed(notes_of(point)))
    if not notes:
        return []
    blocks = [
        f"<p>{html.escape(name)}:</p><ul>"
        + "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
        + "</ul>"
        for name, reasons in notes.items()
    ]
    head = "<b>Off protocol.</b> These figures do not compare with published ones."
    return [f'<div class="note">{head}{"".join(blocks)}</div>']


def table_of(rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML; the first row is its head."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])]
    for row in rows[1:]:
        kinds = ["number" if NUMBER.fullmatch(cell) else "text" for cell in row]
        cells = zip(kinds, map(html.escape, row), strict=True)
        lines.append("".join(f'<td class="{kind}">{cell}</td>' for kind, cell in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def image_of(image: Image.Image, name: str) -> str:
    """An image in HTML, within the page."""
    buffer = io.BytesIO()
    save_image(image, buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
