"""Colour emoji as a captioned image set, made from an installed font and the Unicode tables.

Needs no download: on Debian and Ubuntu `apt-get install fonts-noto-color-emoji unicode-data
unicode-cldr-core libfribidi0` brings the font (SIL Open Font License), the list of emoji and their
names and keywords in English and Chinese (Unicode licence). Pure Pillow and numpy.
"""

import dataclasses
import hashlib
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, features

from imagen_jax.data import sources
from imagen_jax.data.captions import Captions
from imagen_jax.images import decoding

FONT_FILE = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
CLDR_FOLDER = Path("/usr/share/unicode/cldr/common")
DEBIAN_PACKAGES = "fonts-noto-color-emoji unicode-data unicode-cldr-core libfribidi0"

LANGUAGES = ("en", "zh")
NAME_SHARE = 0.6  # how often a caption is the full name; the others are keywords
FONT_SIZE = 109  # the only one that the font has bitmaps of
BITMAP_SIZE = (136, 128)
IMAGE_SIZE = 128

VARIATION_SELECTOR = "\ufe0f"  # CLDR leaves it out of its keys
SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
GENDER_SIGNS = "\u2640\u2642"
MAN, WOMAN, PERSON = "\U0001f468", "\U0001f469", "\U0001f9d1"

# The groups of emoji-test.txt and what CLDR's main/<language>.xml calls them in <characterLabels>.
GROUP_LABELS = {
    "Smileys & Emotion": "smiley",
    "People & Body": "person",
    "Animals & Nature": "animals_nature",
    "Food & Drink": "food_drink",
    "Travel & Places": "travel_places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji: its text, where Unicode lists it, and by language what it is called."""

    text: str
    group: str
    groups: dict[str, str]
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    variant: bool  # differs from another emoji only by skin tone, gender or hair

    @property
    def codepoints(self) -> str:
        return " ".join(f"{ord(character):X}" for character in self.text)


def missing_files() -> list[str]:
    """The needed system files that are not there; empty when the set can be built."""
    tables = ("annotations/zh.xml", "annotationsDerived/zh.xml", "main/zh.xml")
    files = [FONT_FILE, EMOJI_LIST, *(CLDR_FOLDER / table for table in tables)]
    bidirectional = features.check("raqm") and features.check("fribidi")
    missing = [str(file) for file in files if not file.is_file()]
    return missing if bidirectional else [*missing, "libfribidi"]


def read_annotations(language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """CLDR's names and keywords, both keyed by the emoji without U+FE0F.

    The derived ones are those of flags, of skin tones and of other joined sequences.
    """
    names, keywords = {}, {}
    for folder in ("annotations", "annotationsDerived"):
        tree = ElementTree.parse(CLDR_FOLDER / folder / f"{language}.xml")
        for element in tree.iter("annotation"):
            key = element.get("cp").replace(VARIATION_SELECTOR, "")
            text = (element.text or "").strip()
            if element.get("type") == "tts":
                names[key] = text
            else:
                keywords[key] = tuple(word.strip() for word in text.split("|") if word.strip())
    return names, keywords


def read_group_names(language: str) -> dict[str, str]:
    """What emoji-test.txt's groups are called in a language."""
    tree = ElementTree.parse(CLDR_FOLDER / "main" / f"{language}.xml")
    labels = {element.get("type"): element.text for element in tree.iter("characterLabel")}
    return {group: labels[label] for group, label in GROUP_LABELS.items()}


def read_emoji_list(path: Path = EMOJI_LIST) -> Iterator[tuple[str, str, str]]:
    """(text, English name, group) of every fully qualified emoji."""
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif match := re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)", line):
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            yield text, match[2], group


def is_variant(text: str, name: str, group: str, listed: set[str]) -> bool:
    """Whether an emoji differs from another one only by skin tone, gender, hair or family."""
    if any(character in SKIN_TONES + GENDER_SIGNS for character in text[1:]):
        return True
    neutral = text.replace(MAN, PERSON).replace(WOMAN, PERSON)
    return (neutral != text and neutral in listed) or (group == "People & Body" and ":" in name)


def list_emoji() -> list[Emoji]:
    """Every emoji of the Unicode list, with names and keywords where CLDR has them.

    An emoji newer than the annotations has its English name from the list, and no Chinese one.

    Raises:
        FileNotFoundError: a system file is missing; the message names the packages to install.
    """
    if missing := missing_files():
        raise FileNotFoundError(
            f"the emoji set needs {', '.join(missing)}: apt-get install {DEBIAN_PACKAGES}"
        )
    rows = list(read_emoji_list())
    listed = {text for text, *_ in rows}
    annotations = {language: read_annotations(language) for language in LANGUAGES}
    group_names = {language: read_group_names(language) for language in LANGUAGES}
    result = []
    for text, english, group in rows:
        key = text.replace(VARIATION_SELECTOR, "")
        names = {"en": english} | {
            language: found[key] for language, (found, _) in annotations.items() if found.get(key)
        }
        keywords = {
            language: tuple(word for word in annotations[language][1].get(key, ()) if word != name)
            for language, name in names.items()
        }
        result.append(
            Emoji(
                text,
                group,
                groups={language: group_names[language][group] for language in LANGUAGES},
                names=names,
                keywords=keywords,
                variant=is_variant(text, english, group, listed),
            )
        )
    return result


def captions(emoji: Emoji, combinations: int = 6) -> Captions:
    """(caption, probability) pairs: languages alike, the name 60 % of the time, else keywords.

    Half of the keyword captions are a single keyword; the others are two or three, the group among
    them, chosen once for each emoji. With fewer than three keywords the name comes more often.
    """
    result = []
    share = 1.0 / len(emoji.names)
    for language, name in emoji.names.items():
        words = list(emoji.keywords[language])
        # A flag's only keyword is "flag".
        keyword_share = (1.0 - NAME_SHARE) * min(1.0, len(words) / 3)
        result.append((name, (1.0 - keyword_share) * share))
        if words:
            rng = random.Random(f"{emoji.codepoints} {language}")
            pool = list(dict.fromkeys([*words, emoji.groups[language]]))
            joined = {
                ", ".join(rng.sample(pool, min(len(pool), rng.choice((2, 3)))))
                for _ in range(combinations)
            }
            half = keyword_share * share / 2
            result += [(word, half / len(words)) for word in words]
            result += [(text, half / len(joined)) for text in sorted(joined)]
    return result


def load_font(path: Path = FONT_FILE) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The font's own 136x128 bitmap on white; None where the font has no single image for it."""
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    if (right - left, bottom - top) != BITMAP_SIZE:
        return None
    glyph = Image.new("RGBA", BITMAP_SIZE, (255, 255, 255, 0))
    ImageDraw.Draw(glyph).text((-left, -top), text, font=font, anchor="ls", embedded_color=True)
    image = Image.fromarray(decoding.to_rgb(glyph))
    return None if image.getextrema() == ((255, 255),) * 3 else image


def square(image: Image.Image, size: int = IMAGE_SIZE) -> np.ndarray:
    """uint8 [size, size, 3]: padded with white to a square, then resized with antialiasing."""
    side = max(image.size)
    padded = ImageOps.pad(image, (side, side), color="white")
    return np.asarray(padded.resize((size, size), Image.Resampling.BICUBIC))


def is_heldout(codepoints: str) -> bool:
    """Whether an image is never trained on: 5 % by a hash of its code points, U+FE0F left out."""
    return sources.is_heldout(" ".join(code for code in codepoints.split() if code != "FE0F"))


def build(emoji: Sequence[Emoji] | None = None) -> tuple[list[Emoji], dict[str, np.ndarray]]:
    """Renders the set: the emoji that render, and arrays `image, label, split, ...` in their order.

    Pixel-identical images share a class (`label`) and, with it, the split of the first of them.
    `captions` is UTF-8 JSON, a list of [text, probability] for each image. The layout is the one
    that `sources.read_npz` reads.
    """
    emoji = list_emoji() if emoji is None else emoji
    font = load_font()
    rendered = ((item, render(item.text, font)) for item in emoji)
    kept = [
        (item, square(image), hashlib.sha256(image.tobytes()).digest())
        for item, image in rendered
        if image is not None
    ]
    items, images, digests = zip(*kept, strict=True)
    labels = {digest: label for label, digest in enumerate(dict.fromkeys(digests))}
    firsts = dict(zip(reversed(digests), reversed(items), strict=True))  # the first of each class
    heldout = [is_heldout(firsts[digest].codepoints) for digest in digests]
    text = json.dumps([captions(item) for item in items], ensure_ascii=False)
    arrays = {
        "image": np.stack(images),
        "label": np.asarray([labels[digest] for digest in digests], np.int32),
        "split": np.where(heldout, "heldout", "train"),
        "key": np.asarray([item.codepoints for item in items]),
        "name_en": np.asarray([item.names["en"] for item in items]),
        "name_zh": np.asarray([item.names.get("zh", "") for item in items]),
        "group": np.asarray([item.group for item in items]),
        "variant": np.asarray([item.variant for item in items]),
        "captions": np.frombuffer(text.encode(), np.uint8),
    }
    return list(items), arrays


def train_captions(arrays: dict[str, np.ndarray]) -> list[str]:
    """The training captions for a tokenizer: about 40 an image, by their probabilities."""
    all_captions = json.loads(arrays["captions"].tobytes())
    train = [
        pairs
        for pairs, split in zip(all_captions, arrays["split"], strict=True)
        if split == "train"
    ]
    return [
        text
        for pairs in train
        for text, probability in pairs
        for _ in range(max(1, round(40 * probability)))
    ]
