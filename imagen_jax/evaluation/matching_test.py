"""A test for a reader: 16 images, and 32 captions of which 16 are theirs. Which are?

What is asked for is drawn by the icons' keys from the trained things, so that it was fixed before
any model was trained; each image is the first try.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image

from imagen_jax.data.sources import drawn
from imagen_jax.data.unicode_names import LANGUAGES
from imagen_jax.evaluation.icon_set import IconSet, Prompt
from imagen_jax.images.grid import image_grid
from imagen_jax.images.provenance import TRAINED

IMAGES = 16
LETTERS = [*ascii_uppercase, *("A" + letter for letter in ascii_uppercase)]


def make_matching_prompts(icons: IconSet) -> list[Prompt]:
    """16 prompts, then 16 others of the same styles and languages: styles in turn, every other one
    in Chinese, no family twice.

    Raises:
        ValueError: the set has too few trained things with names in both languages.
    """
    style, family = icons.column("style"), icons.column("family")
    named = [i for i in icons.select("train", False) if icons.column("name_zh")[i]]
    taken, prompts = set(), []
    for place in range(2 * IMAGES):
        number = place % IMAGES
        wanted, language = icons.styles[number % len(icons.styles)], LANGUAGES[number % 2]
        fitting = (i for i in named if style[i] == wanted and family[i] not in taken)
        if (icon := next(fitting, None)) is None:
            raise ValueError(
                f"{icons.path} has too few trained things of style {wanted!r} for the matching "
                f"test, which needs {2 * IMAGES} with names in both languages."
            )
        taken.add(family[icon])
        prompts.append(Prompt(icons.prompt(icon, language), language, icon))
    return prompts


def write_matching_test(
    prompts: Sequence[Prompt], images: Sequence[np.ndarray], directory: Path
) -> dict[str, Image.Image]:
    """match.md and match_key.json; gives match.png. Captions and images are in orders of their own:
    that of `prompts` would tell which images are of an English caption.
    """
    texts = [prompt.text for prompt in prompts]
    shown = dict(zip(texts, images, strict=False))
    letters = dict(zip(_mixed(texts, "caption"), LETTERS, strict=False))
    lines = [
        "Which caption belongs to which image of match.png? Half of the captions belong to none.",
        "",
        *(f"- {letter}: {text}" for text, letter in letters.items()),
    ]
    (directory / "match.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    order = _mixed(shown, "image")
    key = {str(number): letters[text] for number, text in enumerate(order, 1)}
    (directory / "match_key.json").write_text(json.dumps(key, indent=1) + "\n")
    shown_images = [shown[text] for text in order]
    grid = image_grid(shown_images, [*key], columns=4, min_cell=192, source=TRAINED)
    return {"match.png": grid}


def _mixed(texts: Iterable[str], what: str) -> list[str]:
    return drawn(texts, lambda text: f"{what} {text}")
