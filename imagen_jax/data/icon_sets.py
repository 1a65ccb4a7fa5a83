"""The sets of icons: npm packages `@iconify-json/...` of fixed versions, in folders or fetched.

A package holds `icons.json` (SVG bodies by name), `chars.json` (names by code points), `info.json`
(author and licence) and `package.json` (version).
"""

import dataclasses
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.storage.atomic import written_together
from imagen_jax.storage.folders import check_local
from imagen_jax.storage.json_file import parse_object

# The files of a package that are read, and the most bytes of each.
FILES = {"icons.json": 2**28, "chars.json": 2**24, "info.json": 2**20, "package.json": 2**20}
LARGEST_PACKAGE = 2**30
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
NPM_SAYS = re.compile(r"npm (ERR!|error) (?!(code|errno|path|syscall) )")  # why it failed
OUTSIDE = re.compile(r"""href\s*=\s*["'][^#]""")  # resvg would read a file of that name


@dataclasses.dataclass(frozen=True)
class IconSet:
    """npm's package `@iconify-json/<name>` of this version, and the style of its icons."""

    name: str
    version: str
    style: str

    @property
    def package(self) -> str:
        """Its name on npm."""
        return f"@iconify-json/{self.name}"

    @property
    def folder(self) -> str:
        """What `npm pack` calls it."""
        return f"iconify-json-{self.name}-{self.version}"


SETS = (
    IconSet("noto", "1.2.9", "noto"),
    IconSet("noto-v1", "1.2.5", "noto-v1"),
    IconSet("twemoji", "1.2.5", "twemoji"),
    IconSet("fluent-emoji", "1.2.7", "fluent"),
    IconSet("fluent-emoji-flat", "1.2.6", "flat"),
    IconSet("fluent-emoji-high-contrast", "1.2.6", "outline"),
    IconSet("fxemoji", "1.2.2", "fxemoji"),
)


@dataclasses.dataclass(frozen=True)
class Body:
    """An icon's SVG, without the element `svg` around it, and its width and height."""

    svg: str
    width: int | float
    height: int | float


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """A set that is read. characters: of icons by name. info: `title`, `author` and `licence`, as
    the manifest has them.
    """

    icon_set: IconSet
    bodies: dict[str, Body]
    characters: dict[str, str]
    info: dict[str, Any]


# ------------------------------------------------------------------------------------- folders


def find_sets(folder: Path) -> dict[IconSet, Path]:
    """Where each set lies in a folder: as npm installs, packs or names it.

    Raises:
        ValueError: there is no such folder, or a set is missing or of another version.
    """
    if not folder.is_dir():
        raise ValueError(f"--sets {folder} is not a folder")
    found, missing, wrong = {}, [], []
    for own in SETS:
        versions = {path: _version(path) for path in _places(folder, own)}
        good = [path for path, version in versions.items() if version == own.version]
        if good:
            found[own] = good[0]
        elif versions:
            path, version = next(iter(versions.items()))
            wrong.append(f"{path} is of version {version}, and {own.version} is needed")
        else:
            missing.append(f"{own.package}@{own.version}")
    if missing:
        raise ValueError(
            f"--sets {folder} lacks {', '.join(missing)}; a set may lie there as NAME, "
            "@iconify-json/NAME or iconify-json-NAME-VERSION"
        )
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _places(folder: Path, own: IconSet) -> list[Path]:
    """The folders that hold the set, of whatever version."""
    named = [own.folder, own.name, own.package, f"node_modules/{own.package}"]
    others = sorted(path.name for path in folder.glob(f"iconify-json-{own.name}-[0-9]*"))
    names = dict.fromkeys([*named, *others])
    inner = [folder / name / part for name in names for part in (".", "package")]
    return [path for path in inner if (path / "icons.json").is_file()]


def _version(path: Path) -> str:
    return str(_read(path, "package.json").get("version"))


def _read(path: Path, name: str) -> dict[str, Any]:
    file = path / name
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if file.stat().st_size > FILES[name]:
        raise ValueError(f"{file} has more than {FILES[name]:,} bytes")
    try:
        return parse_object(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_set(own: IconSet, path: Path) -> OpenSet:
    """A set out of its folder. ValueError where it is damaged."""
    icons, codes, told = (_read(path, f"{name}.json") for name in ("icons", "chars", "info"))
    try:
        sides = icons.get("width", 16), icons.get("height", 16)
        bodies = {name: _body(name, icon, sides) for name, icon in icons["icons"].items()}
        characters = {}
        for code, name in codes.items():
            text = "".join(chr(int(part, 16)) for part in code.split("-"))
            characters.setdefault(name, text)
        info = _info(told)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a set of icons: {str(error) or repr(error)}") from None
    return OpenSet(own, bodies, characters, info)


def _info(told: dict[str, Any]) -> dict[str, Any]:
    author, licence = told["author"], told["license"]
    return {
        "title": told["name"],
        "author": {"name": author["name"], "url": author.get("url", "")},
        "licence": {name: licence[name] for name in ("title", "spdx", "url")},
    }


def _body(name: str, icon: dict[str, Any], sides: tuple[int | float, int | float]) -> Body:
    body = Body(icon["body"], icon.get("width", sides[0]), icon.get("height", sides[1]))
    if not NAME.fullmatch(name) or not isinstance(body.svg, str):
        raise ValueError(f"{name[:80]!r} is no name of an icon, or its body is no text")
    if OUTSIDE.search(body.svg):
        raise ValueError(f"{name} refers to what lies outside of it")
    if not 1 / 16 <= body.width / body.height <= 16:
        raise ValueError(f"{name} is {body.width} x {body.height}")
    return body


# -------------------------------------------------------------------------------------- fetching


def fetch_sets(folder: Path, tell: Callable[[str], None]) -> dict[IconSet, Path]:
    """The sets in a folder, where those that are not there are put by npm.

    Args:
        tell: called with a line before each set that is fetched.

    Raises:
        ValueError: there is no npm, it fails, or what it brings is not the package.
    """
    check_local(folder, "--out")
    paths = {own: folder / own.folder for own in SETS}
    lacking = [own for own in SETS if not all((paths[own] / name).is_file() for name in FILES)]
    npm = shutil.which("npm")
    if lacking and npm is None:
        packages = ", ".join(f"{own.package}@{own.version}" for own in lacking)
        raise ValueError(
            f"there is no npm to fetch {packages}: install Node.js, or give a folder of them with "
            "--sets"
        )
    for own in lacking:
        tell(f"npm fetches {own.package}@{own.version}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
            unpack(_pack(npm, own, Path(temporary)), paths[own])
    return find_sets(folder)


def _pack(npm: str, own: IconSet, folder: Path) -> Path:
    """The archive that npm brings, whose digest npm has compared with the registry's."""
    command = [npm, "pack", f"{own.package}@{own.version}", "--pack-destination", "."]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    archives = list(folder.glob("*.tgz"))
    if ran.returncode or len(archives) != 1:
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        told = [line for line in lines if NPM_SAYS.match(line)]
        why = (told or lines or [f"it ended with status {ran.returncode}"])[0]
        raise ValueError(f"npm pack {own.package}@{own.version}: {why}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> None:
    """Writes the files of a package that are read, all or none, into a folder.

    Raises:
        ValueError: the archive is damaged, or lacks one of them as a plain file.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            size = 0
            for member in tar:
                name = member.name.removeprefix("package/")
                size += member.size
                if size > LARGEST_PACKAGE:
                    raise ValueError(f"it unpacks to more than {LARGEST_PACKAGE:,} bytes")
                if name in FILES and member.isreg() and member.size <= FILES[name]:
                    found[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{archive.name} is not a whole npm package: {error}") from None
    if missing := FILES.keys() - found.keys():
        raise ValueError(
            f"{archive.name} is no set of icons: it lacks {', '.join(sorted(missing))}"
        )
    with written_together([folder / name for name in FILES]) as temporary:
        for name, path in zip(FILES, temporary, strict=True):
            path.write_bytes(found[name])


def read_sets(paths: dict[IconSet, Path]) -> Sequence[OpenSet]:
    """All sets, in the order of `SETS`."""
    return [read_set(own, paths[own]) for own in SETS]
