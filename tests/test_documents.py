"""What the documents name exists: functions, files, links, and no blank left to fill in."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from imagen_jax.training.config import apply_overrides, load_config, split_overrides
from imagen_jax.training.run_config import read_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "web/README.md",
    *(ROOT / "docs").glob("*.md"),
    *ROOT.glob("imagen_jax/**/*.md"),
]
TOP = ("configs", "scripts", "tests", "docs", "imagen_jax")
NAMES = sorted(set(re.findall(r"`(imagen_jax(?:\.\w+)+)`", (ROOT / "docs/paper.md").read_text())))


def resolve(name: str):
    """The module, or the attribute of a module, that a dotted name means."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                raise  # a library is missing, not the name
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute)
        return found
    raise AttributeError(f"no module leads to {name}")


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_table_names_what_exists(name: str):
    resolve(name)


def test_the_papers_table_is_read():
    assert len(NAMES) > 25
    with pytest.raises(AttributeError):
        resolve("imagen_jax.diffusion.process.no_such_name")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_links_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [x for x in links if "://" not in x and not (path.parent / x).exists()]
    files = re.findall(rf"\b((?:{'|'.join(TOP)})/[\w./-]+\.(?:py|md|png|ipynb))\b", text)
    missing += [x for x in files if x not in str(links) and not (ROOT / x).exists()]
    assert not missing


def test_settings_of_images_can_be_read():
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    sources = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        raw = load_config(ROOT / "configs/imagen_base64.py")
        rest, overrides = split_overrides(shlex.split(block.replace("\\\n", " ")))
        apply_overrides(raw, overrides)
        sources.append(read_config(raw).data.source)
        assert not rest
    assert sources == ["tar", "tfrecord", "tar", "mixture"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_blank_is_left(path: Path):
    assert not re.findall(r"FILL_\w+", path.read_text(encoding="utf-8"))
