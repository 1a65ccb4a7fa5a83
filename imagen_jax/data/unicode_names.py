"""What Unicode calls its emoji: names and keywords in English and Chinese, from system files.

On Debian and Ubuntu `apt-get install unicode-data unicode-cldr-core` brings them (Unicode licence).
"""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

EMOJI_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
CLDR_FOLDER = Path("/usr/share/unicode/cldr/common")
DEBIAN_PACKAGES = "unicode-data unicode-cldr-core"

LANGUAGES = ("en", "zh")
ANNOTATIONS = ("annotations", "annotationsDerived")
VARIATION_SELECTOR = "\ufe0f"  # CLDR leaves it out of its keys


@dataclasses.dataclass(frozen=True)
class Named:
    """A character, or several that are shown as one, and by language what it is called."""

    text: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]


def missing_tables() -> list[str]:
    """The needed system files that are not there."""
    tables = [f"{folder}/{name}.xml" for folder in ANNOTATIONS for name in LANGUAGES]
    files = [EMOJI_LIST, *(CLDR_FOLDER / table for table in tables)]
    return [str(file) for file in files if not file.is_file()]


def check_tables() -> None:
    """ValueError where a system file is missing; the message names the packages to install."""
    if missing := missing_tables():
        raise ValueError(
            f"the icons' names need {', '.join(missing)}: apt-get install {DEBIAN_PACKAGES}"
        )


def version() -> str:
    """Which Unicode the list of emoji is of, such as "15.0"."""
    found = re.search(r"^# Version: (\S+)$", EMOJI_LIST.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"


def read_annotations(language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """CLDR's names and keywords, both keyed by the characters without U+FE0F.

    The derived ones are those of flags, of skin tones and of other joined sequences.
    """
    names, keywords = {}, {}
    for folder in ANNOTATIONS:
        tree = ElementTree.parse(CLDR_FOLDER / folder / f"{language}.xml")
        for element in tree.iter("annotation"):
            key = element.get("cp").replace(VARIATION_SELECTOR, "")
            text = (element.text or "").strip()
            if element.get("type") == "tts":
                names[key] = text
            else:
                keywords[key] = tuple(word.strip() for word in text.split("|") if word.strip())
    return names, keywords


def read_emoji_list() -> Iterator[tuple[str, str]]:
    """(text, English name) of every fully qualified emoji."""
    for line in EMOJI_LIST.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)", line):
            yield "".join(chr(int(code, 16)) for code in match[1].split()), match[2]


def read_names() -> list[Named]:
    """Every emoji of Unicode's list, with names and keywords where CLDR has them.

    One that is newer than the annotations has its English name from the list, and no Chinese one.

    Raises:
        ValueError: as `check_tables`.
    """
    check_tables()
    annotations = {language: read_annotations(language) for language in LANGUAGES}
    result = []
    for text, english in read_emoji_list():
        key = text.replace(VARIATION_SELECTOR, "")
        names = {"en": english} | {
            language: found[key] for language, (found, _) in annotations.items() if found.get(key)
        }
        keywords = {
            language: tuple(word for word in annotations[language][1].get(key, ()) if word != name)
            for language, name in names.items()
        }
        result.append(Named(text, names, keywords))
    return result
