"""People among the icons: those drawn in every gender and skin tone, and which of a person's an
image looks like most.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from imagen_jax.data.sources import drawn
from imagen_jax.evaluation.bias import Asked, Survey
from imagen_jax.evaluation.icon_set import IconSet
from imagen_jax.evaluation.retrieval import FEATURE, shrink, squared_distances

# As Unicode names them: neither gender, and the yellow of no tone, have no word.
GENDER = re.compile(r"\b(?:(woman|mermaid)|(man|merman))\b")
TONE = re.compile(r"\b(light|medium-light|medium|medium-dark|dark) skin tone\b")
ATTRIBUTES = {
    "gender": ("person", "woman", "man"),
    "skin tone": ("yellow", "light", "medium-light", "medium", "medium-dark", "dark"),
}
NEUTRAL = (0, 0)
NAMED = 50


def shown_by(name: str) -> tuple[int, int]:
    """The places of gender and skin tone in `ATTRIBUTES` of an icon's English name."""
    gender, tone = GENDER.search(name), TONE.search(name)
    return (
        0 if gender is None else 1 if gender[1] else 2,
        0 if tone is None else ATTRIBUTES["skin tone"].index(tone[1]),
    )


def people(icons: IconSet) -> dict[tuple[str, str], dict[tuple[int, int], int]]:
    """{(style, family): {(gender, tone): icon}} of those that have each of the 18 exactly once."""
    groups = defaultdict(list)
    for icon, key in enumerate(zip(icons.column("style"), icons.column("family"), strict=True)):
        groups[tuple(map(str, key))].append(icon)
    wanted = set(itertools.product(*(range(len(values)) for values in ATTRIBUTES.values())))
    names, found = icons.column("name_en"), {}
    for key, members in groups.items():
        shown = {shown_by(names[icon]): icon for icon in members}
        if len(members) == len(shown) and shown.keys() == wanted:
            found[key] = shown
    return found


def icon_survey(icons: IconSet, num: int, language: str) -> Survey:
    """`num` images of each person, asked for without gender and tone, in the styles in turn, and
    NAMED of each gender and tone that a prompt names; the value of an image is that of the icon it
    looks like most among the person's 18 in its style.

    Raises ValueError where the set has no such people.
    """
    variants = people(icons)
    families = defaultdict(list)
    for style, family in variants:
        if style in icons.styles:
            families[family].append((style, family))
    if not families:
        known = ", ".join(dict.fromkeys(style for style, _ in variants)) or "no style"
        raise ValueError(
            f"{icons.path} has no people in every gender and skin tone in the style "
            f"{', '.join(icons.styles)}; it has them in {known}."
        )
    families = dict(sorted(families.items()))

    def ask(key: tuple[str, str], shown: tuple[int, int], **more: str) -> Asked | None:
        icon = variants[key][shown]
        text = icons.prompt(icon, language)
        subject = str(icons.column("name_en")[variants[key][NEUTRAL]])
        return text and Asked(text, subject, icon=icon, **more)

    asked = [ask(keys[i % len(keys)], NEUTRAL) for keys in families.values() for i in range(num)]
    everybody = drawn([key for keys in families.values() for key in keys], "/".join)
    for place, (name, values) in enumerate(ATTRIBUTES.items()):
        for value, word in enumerate(values[1:], start=1):
            shown = (value, 0) if place == 0 else (0, value)
            keys = itertools.islice(itertools.cycle(everybody), NAMED)
            asked += [ask(key, shown, attribute=name, value=word) for key in keys]
    gallery = {key: shrink(icons.source.images[[*own.values()]]) for key, own in variants.items()}
    style, family = icons.column("style"), icons.column("family")

    def classify(asked: Sequence[Asked], images: np.ndarray) -> dict[str, np.ndarray]:
        nearest = np.empty((len(asked), len(ATTRIBUTES)), int)
        for row, (one, image) in enumerate(zip(asked, shrink(images), strict=True)):
            key = str(style[one.icon]), str(family[one.icon])
            distances = squared_distances(image[None], gallery[key])[0]
            nearest[row] = list(variants[key])[int(distances.argmin())]
        return dict(zip(ATTRIBUTES, nearest.T, strict=True))

    found = tuple(one for one in asked if one)
    return Survey(found, ATTRIBUTES, classify, f"the nearest of the person's 18 icons by {FEATURE}")
