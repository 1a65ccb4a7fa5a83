"""The models that come with the package, found without JAX."""

import re
from pathlib import Path

PRETRAINED = Path(__file__).parents[1] / "pretrained"
MODEL_FILE = "model.json"
CARD = "README.md"
DEFAULT = "icons"  # of the commands


def list_models() -> dict[str, str]:
    """The names that `load_model` knows without a directory, each with a line about the model: the
    first sentence of its card.
    """
    folders = sorted(path.parent for path in PRETRAINED.glob(f"*/{MODEL_FILE}"))
    return {folder.name: _first_sentence(folder / CARD) for folder in folders}


def _first_sentence(card: Path) -> str:
    """Of the text below the title of a card; empty where there is none."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    below = ("\n" + text).partition("\n# ")[2].partition("\n")[2].strip()
    paragraph = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(below.split("\n\n")[0].split()))
    return paragraph.split(". ")[0].removesuffix(".")
