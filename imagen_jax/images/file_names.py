"""The names of image files: safe in every file system, whatever a prompt holds."""

import re
import sys
import unicodedata
from pathlib import Path

from imagen_jax.images import decoding

GRID_FILE = "grid.png"
CHARACTERS, BYTES = 40, 100  # of a prompt, in a name; encrypted folders allow 143 bytes for all
OWN = re.compile(r"\d{4,}(_.*)?\.png", re.DOTALL)


def file_name(index: int, prompt: str | None) -> str:
    """0007_red_heart.png: letters and digits of any script, the rest as underscores.

    What the file system cannot name (Chinese, where it is ASCII) is left out.
    """
    text = unicodedata.normalize("NFC", prompt or "").replace("\ufe0f", "")
    kept = "".join(sign if _is_of_word(sign) else " " for sign in text)
    encoding = sys.getfilesystemencoding()
    short = "_".join(kept.split())[:CHARACTERS].encode(encoding, "ignore")[:BYTES]
    words = re.sub("_+", "_", short.decode(encoding, "ignore")).strip("_")
    return f"{index:04d}_{words}.png" if words else f"{index:04d}.png"


def check_folder_name(folder: Path, option: str) -> None:
    """ValueError for a new folder that is named like an image: a file was meant."""
    if folder.suffix.lower() in decoding.SUFFIXES and not folder.is_dir():
        raise ValueError(
            f"{option} {folder} is named like one image; it is the folder of all: images are named "
            "after their prompts"
        )


def own_images(folder: Path) -> list[str]:
    """The names in a folder that are such as `file_name` gives, and a grid's, in their order."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if OWN.fullmatch(name) or name == GRID_FILE]


def _is_of_word(sign: str) -> bool:
    """A letter, a digit, or a mark on one, as in Hindi."""
    return unicodedata.category(sign) in ("Mn", "Mc") or sign.isalnum()
