"""What the documents name exists: functions, files, links, and no blank left to fill in."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from imagen_jax import __version__
from imagen_jax.commands import main
from imagen_jax.training.config import (
    apply_overrides,
    config_names,
    load_config,
    split_overrides,
)
from imagen_jax.training.run_config import read_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
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
    files = [x for x in files if not Path(x).stem.isupper()]  # VERB.py stands for all
    missing += [x for x in files if x not in str(links) and not (ROOT / x).exists()]
    assert not missing


CALL = re.compile(
    r"^\s*(?:\$ )?imagen-jax (?P<block>[a-z_]+\b.*)|`imagen-jax (?P<inline>[a-z_]+\b[^`]*)`"
)


def commands_in(text: str) -> list[list[str]]:
    """The calls of imagen-jax in a document or a docstring, each as its words."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [x for line in lines for x in CALL.finditer(line)]
    return [shlex.split(x["block"] or x["inline"], comments=True) for x in found]


def unknown_options(words: list[str]) -> list[str]:
    """Those that the verb does not have."""
    verb, *rest = words
    if verb == "completion":
        return []
    actions = main.module(verb).parser()._option_string_actions
    for action in main.module(verb).parser()._actions:
        if isinstance(action.choices, dict) and rest and rest[0] in action.choices:
            actions = actions | action.choices[rest[0]]._option_string_actions
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return [x for x in options if x not in actions and not x.startswith("--config.")]


CALLERS = [
    *(*DOCUMENTS, *ROOT.glob("configs/*.py"), *ROOT.glob("imagen_jax/**/*.py")),
    ROOT / "docs/quickstart.ipynb",
]


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_the_options_that_are_shown(path: Path):
    found = commands_in(path.read_text(encoding="utf-8"))
    known = {*main.verbs(), "completion"}
    assert not [words for words in found if words[0] not in known]
    assert not {words[0]: unknown for words in found if (unknown := unknown_options(words))}
    names = [w for x in found for a, w in itertools.pairwise(x) if a == "--config"]
    for name in {*names} - {"CONFIG", "NAME", "..."}:
        assert name in config_names(), f"--config {name}"


def test_commands_are_found_and_wrong_options_seen():
    found = commands_in(
        "    imagen-jax train --confg a \\\n   --workdir x  # --no\n$ imagen-jax plan --b"
    )
    assert found == [["train", "--confg", "a", "--workdir", "x"], ["plan", "--b"]]
    assert [unknown_options(words) for words in found] == [["--confg"], ["--b"]]
    assert unknown_options(["human_eval", "serve", "x", "--port", "1"]) == []


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


def test_every_config_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in config_names() if f"`{name}`" not in text]


def test_the_citation_has_the_version_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
