"""What the benchmark of icons leaves: benchmark.json, tables in Markdown, and sheets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.data.icon_captions import STYLE_WORDS
from imagen_jax.data.unicode_names import LANGUAGES
from imagen_jax.evaluation.attention_share import attention_table
from imagen_jax.evaluation.icon_retrieval import SHARES
from imagen_jax.evaluation.icon_set import ROWS, IconSet, Prompt
from imagen_jax.evaluation.report import SHEET_IMAGES, Table, contact_sheet, markdown
from imagen_jax.evaluation.retrieval import FEATURE, percent
from imagen_jax.storage.json_file import write_object

JSON_FILE, TABLE_FILE = "benchmark.json", "benchmark.md"


def sheets(
    icons: IconSet,
    prompts: Sequence[Prompt],
    rows: Mapping[str, range],
    images: Mapping[str, np.ndarray],
) -> dict[str, Image.Image]:
    """For each row and language the true and the generated images of its first prompts."""
    found = {}
    for name, places in rows.items():
        for language in LANGUAGES:
            asked = [i for i, place in enumerate(places) if prompts[place].language == language]
            asked = asked[:SHEET_IMAGES]
            shown = [prompts[places[i]] for i in asked]
            pairs = [
                (icons.source.images[prompt.icon], images[name][i])
                for i, prompt in zip(asked, shown, strict=True)
            ]
            if pairs:
                texts = [prompt.text for prompt in shown]
                found[f"{name}_{language}.png"] = contact_sheet(pairs, texts)
    return found


def tables(values: Mapping[str, Any]) -> str:
    """The figures in Markdown."""
    parts = []
    if retrieval := values.get("retrieval"):
        parts += [markdown(_rows(retrieval)), _explained(values), markdown(_styles(retrieval))]
    if found := values.get("super_resolution"):
        parts += [markdown(_levels(found))]
    if found := values.get("attention"):
        parts += [markdown(attention_table(found))]
    return "\n\n".join(parts) + "\n"


def _rows(retrieval: Mapping[str, Any]) -> Table:
    """A row of the benchmark and a language each."""
    table = [["asked for", "in", "n", "top-1", "top-5", "chance (top-1, top-5)", "style obeyed"]]
    for row, found in retrieval.items():
        for language, name in {"en": "English", "zh": "Chinese"}.items():
            if scores := found.get(language):
                chance = f"{scores['chance']['top1']:.2%}, {scores['chance']['top5']:.2%}"
                top1, top5, style = (percent(scores[key]) for key in SHARES)
                n = str(scores["top1"]["n"])
                table.append([ROWS[row].title, name, n, top1, top5, chance, style])
        if points := found.get("difference"):
            top1, top5, style = (f"{points[key]:+.1f} points" for key in SHARES)
            n, name = str(found["zh"]["top1"]["n"]), "Chinese minus English, same icons"
            table.append([ROWS[row].title, name, n, top1, top5, "", style])
    return table


def _explained(values: Mapping[str, Any]) -> str:
    settings = values["protocol"]
    stage, own = next(iter(settings["sampling"].items()))
    how = f"{own['sampler']}, {own['steps']} steps, guidance {own['guidance']:g}"
    return (
        f"Nearest image of the asked style by {FEATURE}; shares with the 95 % interval of Wilson. "
        f"Stage {stage}: {how}, threshold {own['threshold']}, seed {settings['seed']}."
    )


def _styles(retrieval: Mapping[str, Any]) -> Table:
    """Top-1, top-5 and style obeyed in English, a row a style by its word in prompts."""
    names = [name for name in ("trained", "pairs", "families") if name in retrieval]
    table = [
        ["style, in English", *(f"{ROWS[name].title}: n, top-1, top-5, style" for name in names)]
    ]
    styles = dict.fromkeys(style for name in names for style in retrieval[name]["by_style"])
    for style in styles:
        cells = []
        for name in names:
            scores = retrieval[name]["by_style"].get(style)
            shares = [f"{scores[key]['share']:.1%}" for key in SHARES] if scores else []
            cells.append(", ".join([str(scores["top1"]["n"]), *shares]) if scores else "")
        table.append([STYLE_WORDS[style]["en"], *cells])
    return table


def _levels(found: Mapping[str, Any]) -> Table:
    head = f"{found['stage']}, from {found['from']} to {found['resolution']} pixels"
    table = [[head, "n", "PSNR in dB", "bicubic", "gain"]]
    for level, scores in found["psnr"].items():
        ships = " (ships with it)" if level == f"{found['ships_with']:g}" else ""
        numbers = [scores[key] for key in ("model", "bicubic", "gain")]
        cells = ["" if number is None else f"{number:.2f}" for number in numbers]
        table.append([f"augmentation level {level}{ships}", str(scores["n"]), *cells])
    return table


def write_report(out: Path, values: Mapping[str, Any]) -> list[Path]:
    """Writes the figures and the tables; gives the files."""
    write_object(out / JSON_FILE, dict(values))
    (out / TABLE_FILE).write_text(tables(values), encoding="utf-8")
    return [out / JSON_FILE, out / TABLE_FILE]
