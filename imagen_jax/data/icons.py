"""A captioned image set of icons: 4,400 things in seven styles, in English and Chinese.

An icon is matched with Unicode's names by its characters or its own name. A **family** is a thing
without skin tone and gender: a man, a woman and a person of any tone are one. Families are held
out, not icons, since a near twin of what is held out would otherwise be trained on:

    heldout  5 % of the families, in every style
    pair     5 % of the (family, style) pairs of families that are trained on in other styles; they
             measure composition, since the thing is seen in other styles, and the style with other
             things
    train    the rest
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from imagen_jax.data import icon_captions
from imagen_jax.data.captions import Captions
from imagen_jax.data.icon_sets import Body, OpenSet
from imagen_jax.data.sources import is_heldout
from imagen_jax.data.unicode_names import VARIATION_SELECTOR, Named, read_names

SPLITS = ("train", "pair", "heldout")
SKIN_TONES = "\U0001f3fb-\U0001f3ff"
JOINED_GENDERS = "\u200d[\u2640\u2642]"
MAN_OR_WOMAN, PERSON = "[\U0001f468\U0001f469]", "\U0001f9d1"
LETTERS = str.maketrans("ñéãçôíå", "neacoia")
UNMATCHED_LEFT_OUT = ("fxemoji",)  # most of its names run together: "blackdiamondsuit"


@dataclasses.dataclass(frozen=True)
class Icon:
    """One icon: what it is called and how it is used.

    family: its characters without tone and gender, or its name where Unicode has none for it.
    variant: whether it differs from another icon only by skin tone or gender. weight: how often it
    is drawn when training, 1/sqrt(icons of its family and style), so that a thing with many
    variants does not come much more often than others.
    """

    style: str
    name: str
    body: Body
    family: str
    split: str
    variant: bool
    names: dict[str, str]
    captions: Captions
    weight: float = 1.0

    @property
    def key(self) -> str:
        """What tells it from all others: style and name."""
        return f"{self.style}/{self.name}"


def slug(name: str) -> str:
    """A name as icon sets write it: "piñata" -> "pinata", "keycap: #" -> "keycap-hash"."""
    words = {"&": "and", "#": "hash", "*": "asterisk"}
    for sign, word in words.items():
        name = name.replace(sign, word)
    plain = re.sub(r"[’'“”.()!]", "", name.lower().translate(LETTERS))
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def family_of(text: str) -> str:
    """The characters without skin tone and gender."""
    plain = re.sub(f"[{SKIN_TONES}{VARIATION_SELECTOR}]", "", text)
    return re.sub(MAN_OR_WOMAN, PERSON, re.sub(JOINED_GENDERS, "", plain))


def split_of(family: str, style: str, matched: bool) -> str:
    """By a hash of the family's code points (or its name), then of those with the style."""
    which = " ".join(f"{ord(character):X}" for character in family) if matched else family
    if is_heldout(which):
        return "heldout"
    return "pair" if is_heldout(f"{which} {style}") else "train"


def list_icons(sets: Sequence[OpenSet]) -> list[Icon]:
    """The icons of all sets in their order, matched with the names that the system's tables have.

    Raises:
        ValueError: tables are missing.
    """
    icons = list(_matched(sets, read_names()))
    trained = {icon.family for icon in icons if icon.split == "train"}
    sizes = collections.Counter((icon.family, icon.style) for icon in icons)
    return [
        dataclasses.replace(
            icon,
            split="heldout"  # a pair that no other style teaches
            if icon.split == "pair" and icon.family not in trained
            else icon.split,
            weight=1 / math.sqrt(sizes[icon.family, icon.style]),
        )
        for icon in icons
    ]


def _matched(sets: Sequence[OpenSet], known: Sequence[Named]) -> Iterator[Icon]:
    by_text = {item.text.replace(VARIATION_SELECTOR, ""): item for item in known}
    by_name: dict[str, Named] = {}
    for item in known:
        written = slug(item.names["en"])
        for name in (written, written.replace("-", "")):
            by_name.setdefault(name, item)
    shared: dict[str, str] = {}  # sets name things alike
    for each in sets:
        shared = each.characters | shared
    for each in sets:
        for name, body in each.bodies.items():
            texts = [own.get(name, "") for own in (each.characters, shared)]
            found = [by_text.get(text.replace(VARIATION_SELECTOR, "")) for text in texts]
            found += [by_name.get(name), by_name.get(name.replace("-", ""))]
            item = next(filter(None, found), None)
            if item is not None or each.icon_set.style not in UNMATCHED_LEFT_OUT:
                yield _icon(each.icon_set.style, name, body, item)


def _icon(style: str, name: str, body: Body, item: Named | None) -> Icon:
    family = name if item is None else family_of(item.text)
    names = {"en": name.replace("-", " ")} if item is None else item.names
    return Icon(
        style=style,
        name=name,
        body=body,
        family=family,
        split=split_of(family, style, matched=item is not None),
        variant=item is not None and item.text.replace(VARIATION_SELECTOR, "") != family,
        names=names,
        captions=icon_captions.captions(names, item.keywords if item else {}, style),
    )


def as_columns(icons: Sequence[Icon]) -> dict[str, np.ndarray]:
    """The arrays that the source `npz` reads, all but `image`: a row an icon.

    `captions` is UTF-8 JSON, a list of [text, weight] for each icon; `label` the number of its
    family.
    """
    labels = {family: row for row, family in enumerate(sorted({icon.family for icon in icons}))}
    captions = json.dumps([icon.captions for icon in icons], ensure_ascii=False)
    return {
        "captions": np.frombuffer(captions.encode(), np.uint8),
        "key": np.asarray([icon.key for icon in icons]),
        "split": np.asarray([icon.split for icon in icons]),
        "style": np.asarray([icon.style for icon in icons]),
        "name": np.asarray([icon.name for icon in icons]),
        "family": np.asarray([icon.family for icon in icons]),
        "label": np.asarray([labels[icon.family] for icon in icons], np.int32),
        "variant": np.asarray([icon.variant for icon in icons]),
        "name_en": np.asarray([icon.names["en"] for icon in icons]),
        "name_zh": np.asarray([icon.names.get("zh", "") for icon in icons]),
        "weight": np.asarray([icon.weight for icon in icons], np.float32),
    }
