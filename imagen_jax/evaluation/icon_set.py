"""The icons that a model is measured on, and which of them are asked for, in what words."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagen_jax.data.icon_captions import STYLE_WORDS, styled
from imagen_jax.data.sources import ArraySource, drawn, read_npz
from imagen_jax.data.unicode_names import LANGUAGES
from imagen_jax.evaluation.retrieval import shrink, squared_distances
from imagen_jax.storage import fingerprints
from imagen_jax.storage.folders import user_path

NEEDED = ("split", "style", "family", "variant", "name_en", "name_zh")
SAME_LOOK = 2.0  # grey levels, root mean square at 32x32: two icons as near as that look the same


@dataclasses.dataclass(frozen=True, eq=False)
class IconSet:
    """All icons, with what imagen-jax prepare_icons says of each.

    plain: whether prompts name no style, for a model that knows one only. styles: those asked for.
    """

    source: ArraySource
    path: str
    fingerprint: str
    styles: tuple[str, ...]
    plain: bool = False

    def column(self, name: str) -> np.ndarray:
        """What is said of every icon under this name."""
        return self.source.extra[name]

    def prompt(self, icon: int, language: str) -> str | None:
        """What the icon is asked for by; None where the language has no name for it."""
        name, style = (str(self.column(x)[icon]) for x in (f"name_{language}", "style"))
        return (name if self.plain else styled(name, style, language)) if name else None

    @functools.cached_property
    def seen(self) -> np.ndarray:
        """Whether an icon that is held out looks like one of its style that is trained on: some
        sets hold an icon under two names, of which Unicode has only one.
        """
        style, train = self.column("style"), self.column("split") == "train"
        seen = np.zeros(len(style), bool)
        for name in np.unique(style):
            known, rows = (np.flatnonzero((style == name) & x) for x in (train, ~train))
            if len(known) and len(rows):
                images, others = (shrink(self.source.images[x]) for x in (rows, known))
                nearest = squared_distances(images, others).min(axis=1)
                seen[rows] = nearest < SAME_LOOK**2 * images[0].size
        return seen

    def select(self, split: str, variant: bool) -> list[int]:
        """The icons of a split in the styles asked for, in an order that is drawn by their keys:
        the first ones are a sample, the same whatever else the set holds. Held-out icons that were
        `seen` under another name are left out.
        """
        wanted = np.isin(self.column("style"), self.styles) & (self.column("split") == split)
        wanted &= ~self.seen
        rows = np.flatnonzero(wanted & (self.column("variant") == variant)).tolist()
        return drawn(rows, self.source.keys.__getitem__)


def read_icons(
    folder: str | Path, styles: Sequence[str] | None = None, plain: bool = False
) -> IconSet:
    """The icons at 64 pixels that imagen-jax prepare_icons wrote; `styles` None asks for all.

    Raises:
        FileNotFoundError: there are none; the message tells how to make them.
        ValueError: the file lacks something, or there is no such style.
    """
    path = user_path(folder) / "icons64.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; make it with: imagen-jax prepare_icons --out {folder}"
        )
    source = read_npz(path, conditioning=None)
    if missing := [name for name in NEEDED if name not in source.extra]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; imagen-jax prepare_icons writes them all."
        )
    there = [style for style in STYLE_WORDS if style in source.extra["style"]]
    if unknown := [style for style in styles or () if style not in there]:
        raise ValueError(f"{path} has no style {unknown[0]!r}; its styles are {', '.join(there)}.")
    digest = fingerprints.of_bytes(path.read_bytes())
    return IconSet(source, str(path), digest, tuple(styles or there), plain)


class Prompt(NamedTuple):
    """What one image is generated from. icon: its row in the set."""

    text: str
    language: str
    icon: int


class Row(NamedTuple):
    """A row of the benchmark's table: which icons, and how many of them at most."""

    title: str
    split: str
    variant: bool
    most: int | None = None


ROWS = {
    "trained": Row("trained things", "train", False, 400),
    "pairs": Row("held-out pairs", "pair", False),
    "families": Row("held-out families", "heldout", False),
    "variants": Row("variants (trained)", "train", True, 200),
}


def make_prompts(icons: IconSet) -> tuple[list[Prompt], dict[str, np.ndarray]]:
    """(all prompts, row -> the icon's place in the row of each of its prompts).

    Every icon is asked for in each language that has a name for it, one after the other. A prompt's
    place among all prompts is what its noise is made from: it does not depend on how many of them
    are asked.
    """
    prompts, places = [], {}
    for name, row in ROWS.items():
        asked = [
            (place, Prompt(text, language, icon))
            for place, icon in enumerate(icons.select(row.split, row.variant)[: row.most])
            for language in LANGUAGES
            if (text := icons.prompt(icon, language))
        ]
        prompts += [prompt for _, prompt in asked]
        places[name] = np.asarray([place for place, _ in asked], int)
    return prompts, places


def ranges(places: dict[str, np.ndarray], num: int | None) -> dict[str, range]:
    """Which prompts are of the first `num` icons of each row; rows without icons are left out."""
    found, start = {}, 0
    for name, place in places.items():
        count = len(place) if num is None else int((place < num).sum())
        if count:
            found[name] = range(start, start + count)
        start += len(place)
    return found
