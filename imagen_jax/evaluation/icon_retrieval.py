"""How often the icon that was asked for is the nearest among all of its style, and how often the
nearest among those of all styles has the asked style.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.evaluation.icon_set import IconSet, Prompt
from imagen_jax.evaluation.retrieval import (
    TOP,
    distinct,
    ranks,
    share,
    shrink,
    squared_distances,
    top_shares,
)

SHARES = ("top1", "top5", "style")


class Found(NamedTuple):
    """Of each image: its rank, of how many candidates, and whether it has the asked style."""

    rank: np.ndarray
    candidates: np.ndarray
    obeyed: np.ndarray

    def select(self, rows: np.ndarray) -> "Found":
        """What was found of some of the prompts."""
        return Found(*(column[rows] for column in self))


def find(icons: IconSet, asked: np.ndarray, images: np.ndarray) -> Found:
    """Looks for each image among the icons of its style, things that look the same at 32x32
    counting once, and among those of all styles.

    Args:
        asked: the icon that each image should show.
        images: uint8 [asked, H, W, 3], of any size.
    """
    style, images = icons.column("style"), shrink(images)
    wanted = style[asked]
    rank, candidates, own = (np.zeros(len(asked), int) for _ in range(3))
    others = np.full(len(asked), np.inf)
    for name in np.unique(style):
        rows, mine = np.flatnonzero(style == name), wanted == name
        gallery, place = distinct(shrink(icons.source.images[rows]))
        distances = squared_distances(images, gallery)
        right = place[np.searchsorted(rows, asked[mine])]
        rank[mine], candidates[mine] = ranks(distances[mine], right), len(gallery)
        nearest = distances.min(axis=1)
        own[mine] = nearest[mine]
        others[~mine] = np.minimum(others[~mine], nearest[~mine])
    return Found(rank, candidates, own <= others)


def scores(found: Found) -> dict[str, Any]:
    """Shares of top-1, top-5 and style, and what images without any relation would get."""
    chance = {f"top{k}": float(np.minimum(k / found.candidates, 1).mean()) for k in TOP}
    obeyed = share(int(found.obeyed.sum()), len(found.obeyed))
    return {**top_shares(found.rank), "style": obeyed, "chance": chance}


def row_scores(icons: IconSet, prompts: Sequence[Prompt], found: Found) -> dict[str, Any]:
    """Scores of a row by language, and in English by style.

    "difference": of Chinese from English on the icons that have names in both, in percentage
    points.
    """
    language = np.asarray([prompt.language for prompt in prompts])
    icon = np.asarray([prompt.icon for prompt in prompts])
    english, chinese = np.flatnonzero(language == "en"), np.flatnonzero(language == "zh")
    values: dict[str, Any] = {"en": scores(found.select(english))}
    if len(chinese):
        same = english[np.isin(icon[english], icon[chinese])]
        values["zh"], there = scores(found.select(chinese)), scores(found.select(same))
        values["difference"] = {
            name: 100 * (values["zh"][name]["share"] - there[name]["share"]) for name in SHARES
        }
    style = icons.column("style")[icon]
    values["by_style"] = {
        name: scores(found.select(rows))
        for name in icons.styles
        if len(rows := english[style[english] == name])
    }
    return values


def measure_retrieval(
    icons: IconSet,
    prompts: Sequence[Prompt],
    rows: Mapping[str, range],
    images: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """{row: `row_scores`} of the images of each row's prompts, uint8 [prompts, H, W, 3]."""
    values = {}
    for name, places in rows.items():
        asked = [prompts[place] for place in places]
        found = find(icons, np.asarray([prompt.icon for prompt in asked]), images[name])
        values[name] = row_scores(icons, asked, found)
    return values
