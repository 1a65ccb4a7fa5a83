"""The site of documents: it builds, its links lead somewhere, and it explains every public name."""

import ast
import os
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="needs imagen_jax[docs]")
ROOT = Path(__file__).resolve().parents[1]
SPEC = spec_from_file_location("hooks", ROOT / "docs/site/hooks.py")
HOOKS = module_from_spec(SPEC)
SPEC.loader.exec_module(HOOKS)
# Rules of the ONNX writer, one for each operation of JAX: left out in mkdocs.yml, too.
RULES = {f"onnx_{x}" for x in ("elementwise", "graph", "products", "program", "shapes")}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    given = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        capture_output=True, text=True, cwd=ROOT, env=given, check=False,
    )  # fmt: skip
    said = [line for line in ran.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert ran.returncode == 0, "\n".join(said or [ran.stderr])
    return folder


class Page(HTMLParser):
    """The links of a page, what it loads, and its anchors."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.anchors = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list):
        given = dict(attributes)
        self.anchors |= {given.get("id"), given.get("name")}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.add(given["src"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.add(given["href"])


def test_links_lead_somewhere_and_nothing_comes_from_elsewhere(site: Path):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    dead, elsewhere = [], []
    for path, page in pages.items():
        elsewhere += [x for x in page.loaded if urlsplit(x).netloc]
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else {""}
            if not target.exists() or unquote(parts.fragment) not in anchors | {""}:
                dead.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 40
    assert not dead
    assert not elsewhere


def public(path: Path) -> dict[str, bool]:
    """The public names of a file, and whether each has a docstring."""

    def named(nodes, prefix: str):
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{prefix}.{node.name}", ast.get_docstring(node) is not None
                if isinstance(node, ast.ClassDef):
                    yield from named(node.body, f"{prefix}.{node.name}")

    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return {name: ast.get_docstring(tree) is not None} | dict(named(tree.body, name))


def test_every_room_is_in_the_reference_or_belongs_to_a_command():
    rooms = {path.parent.name for path in (ROOT / "imagen_jax").glob("*/__init__.py")}
    assert rooms - {*HOOKS.ROOMS} == {"app", "benchmark", "commands"}


def test_every_public_name_is_explained_on_the_site(site: Path):
    names = {}
    for path in sorted((ROOT / "imagen_jax").rglob("*.py")):
        room = path.relative_to(ROOT / "imagen_jax").with_suffix("").parts[0]
        if room in HOOKS.ROOMS and path.stem not in RULES:
            names |= public(path)
    assert len(names) > 1000
    assert not [name for name, explained in names.items() if not explained]
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    there = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    pages = {f"imagen_jax.{room}" for room in HOOKS.ROOMS}  # whose docstrings stand below the title
    assert not names.keys() - there - pages
