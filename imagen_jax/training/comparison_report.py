"""What a comparison leaves: comparison.json, a table in Markdown, and curves."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.evaluation.heldout import ALL
from imagen_jax.evaluation.retrieval import TOP, percent, share
from imagen_jax.images.image_file import SHEET
from imagen_jax.storage.json_file import write_object

JSON_FILE, TABLE_FILE, PLOT_FILE = "comparison.json", "comparison.md", "comparison.png"
Result = Mapping[str, Any]  # of comparison.run_cell, with "name" and "seed"


def by_cell(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of the seeds of each cell."""
    groups = groupby(sorted(results, key=lambda r: r["name"]), key=lambda r: r["name"])
    found = {name: list(group) for name, group in groups}
    order = dict.fromkeys(result["name"] for result in results)
    return {name: found[name] for name in order}


def retrieved(runs: Sequence[Result], split: str, top: str) -> dict[str, float]:
    """A cell's share of found images, all its seeds together."""
    each = [run["retrieval"]["shares"][split][top] for run in runs]
    return share(sum(x["hits"] for x in each), sum(x["n"] for x in each))


def means(runs: Sequence[Result]) -> dict[str, tuple[float, float, float]]:
    """{log-SNR: (mean, lowest, highest) x0 error over the seeds of a cell}."""
    levels = runs[0]["x0_error"]
    values = {level: [run["x0_error"][level] for run in runs] for level in levels}
    return {level: (float(np.mean(v)), min(v), max(v)) for level, v in values.items()}


def table(results: Sequence[Result]) -> str:
    """A row a cell, its seeds together: what it is, how it retrieves, and its x0 errors with half
    the distance of its seeds.
    """
    cells, splits = by_cell(results), list(results[0]["retrieval"]["shares"])
    levels = list(results[0]["x0_error"])
    names = [f"top-{k}, {split}" for split in splits for k in TOP if split == ALL or k == TOP[-1]]
    columns = ["cell", "seeds", "parameters", "GFLOP an image", "images", *names]
    columns += [f"x0 error at {level}" for level in levels]
    rows = [columns, ["---"] * len(columns)]
    for name, runs in cells.items():
        first = runs[0]
        row = [
            name,
            str(len(runs)),
            f"{first['parameters'] / 1e6:.1f}M",
            f"{first['flops_per_step'] * first['steps'] / first['images'] / 1e9:.2f}",
            f"{first['images']:,}",
        ]
        row += [
            percent(retrieved(runs, split, f"top{k}"))
            for split in splits
            for k in TOP
            if split == ALL or k == TOP[-1]
        ]
        spread = len(runs) > 1
        row += [
            f"{mean:.4f}" + (f" ± {(high - low) / 2:.4f}" if spread else "")
            for mean, low, high in means(runs).values()
        ]
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    found = results[0]["retrieval"]
    chance = ", ".join(f"top-{k} {found['chance'][f'top{k}']:.2%}" for k in TOP)
    lines += [
        "",
        f"Retrieval by {found['feature']} among {found['candidates']} held-out images; chance: "
        f"{chance}. Shares with the 95 % interval of Wilson; x0 errors as the mean of the seeds "
        "± half their distance.",
    ]
    return "\n".join(lines) + "\n"


def relative(
    errors: Mapping[str, Mapping[str, tuple[float, float, float]]],
) -> dict[str, dict[float, float]]:
    """{cell: {log-SNR: its mean error over the geometric mean of all cells'}}, of `means`."""
    levels = next(iter(errors.values()))
    typical = {
        level: np.exp(np.mean([np.log(e[level][0]) for e in errors.values()])) for level in levels
    }
    return {
        name: {float(level): own[level][0] / typical[level] for level in levels}
        for name, own in errors.items()
    }


def plot(results: Sequence[Result], path: Path) -> None:
    """A PNG: mean x0 error over FLOPs, loss over FLOPs, and the last x0 error over log-SNR beside
    the other cells', a line a cell (the mean of its seeds). Needs matplotlib.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 4.4), layout="constrained", dpi=80)
    on_the_way, loss, final = drawing.subplots(1, 3)
    for name, runs in by_cell(results).items():
        for place, kind in ((on_the_way, "x0_error"), (loss, "loss")):
            curves = [run["curves"][kind] for run in runs]
            length = min(len(curve["flops"]) for curve in curves)
            values = [np.array(curve["value"][:length]) for curve in curves]
            mean = np.mean(values, axis=0)
            if mean.ndim > 1:  # over the noise levels, each counting alike
                mean = np.exp(np.log(mean).mean(axis=1))
            place.plot(curves[0]["flops"][:length], mean, linewidth=1.2, label=name)
    errors = {name: means(runs) for name, runs in by_cell(results).items()}
    for level_means in relative(errors).values():
        final.plot(*zip(*level_means.items(), strict=True), "o-", markersize=4, linewidth=1.2)
    texts = (
        (on_the_way, "training FLOPs", "x0 error, geometric mean of the noise levels"),
        (loss, "training FLOPs", "training loss (each cell's own)"),
        (final, "log-SNR", "x0 error at the end / geometric mean of the cells"),
    )
    for place, across, up in texts:
        place.set(xlabel=across, ylabel=up)
        place.grid(alpha=0.3)
    on_the_way.set_yscale("log")
    loss.set_yscale("log")
    on_the_way.legend(fontsize=8)
    drawing.savefig(path, format="png", metadata=SHEET)


def write_report(out: Path, results: Sequence[Result]) -> list[Path]:
    """Writes comparison.json, comparison.md and comparison.png; gives their paths."""
    paths = [out / name for name in (JSON_FILE, TABLE_FILE, PLOT_FILE)]
    write_object(paths[0], {"cells": list(results)})
    paths[1].write_text(table(results), encoding="utf-8")
    plot(results, paths[2])
    return paths
