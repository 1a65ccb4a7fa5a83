"""The files of the icons: the same whichever way they are made, read alike from npz and tar."""

import contextlib
import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import prepare_icons
from imagen_jax.data import icon_files, icon_sets, read_npz, read_tar, unicode_names
from imagen_jax.data.icon_sets import SETS, Body, IconSet
from imagen_jax.data.icons import Icon, list_icons

ICON_SETS = Path(__file__).parent / "icon_sets"


def prepare(*arguments: str | Path) -> str | None:
    """The command; the message that it ends with."""
    try:
        prepare_icons.main([*map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return None


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def icon(svg: str, width: int = 16, height: int = 16) -> Icon:
    return Icon("noto", "a", Body(svg, width, height), "a", "train", False, {}, [])


# -------------------------------------------------------------------------------------- drawing


@pytest.fixture
def drawing():
    pytest.importorskip("resvg_py", reason="resvg_py is not installed (extra icons)")
    from imagen_jax.data import icon_drawing

    return icon_drawing


def test_an_icon_is_drawn_on_white_in_its_own_colors(drawing):
    drawn = drawing.draw(icon('<path fill="red" d="M0 0h8v16H0z"/>'), 64)
    assert (drawn.mode, drawn.size) == ("RGB", (64, 64))
    pixels = np.asarray(drawn)
    assert (pixels[:, :32] == (255, 0, 0)).all()
    assert (pixels[:, 32:] == 255).all()
    assert (
        np.asarray(drawing.draw(icon('<path fill="currentColor" d="M0 0h16v16H0z"/>'), 8)) == 0
    ).all()


@pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 32)])
def test_an_icon_that_is_not_square_is_centred(drawing, width, height):
    body = f'<path fill="#00f" d="M0 0h{width}v{height}H0z"/>'
    pixels = np.asarray(drawing.draw(icon(body, width, height), 64)).astype(int)
    pixels = pixels if width > height else pixels.transpose(1, 0, 2)
    assert np.abs(pixels[20:44] - (0, 0, 255)).max() < 3
    assert (pixels[:12] == 255).all()
    assert (pixels[52:] == 255).all()


def test_smaller_sizes_are_means_of_the_drawing(drawing):
    svg = '<circle cx="7" cy="8" r="6.3" fill="#a5f"/>'
    images = drawing.draw_sizes(icon(svg), [32, 64, 256, 300])
    assert [image.size[0] for image in images.values()] == [32, 64, 256, 300]
    whole = np.asarray(images[256]).astype(float)
    for side in (32, 64):
        step = 256 // side
        means = whole.reshape(side, step, side, step, 3).mean((1, 3))
        assert np.abs(means - np.asarray(images[side])).max() <= 1


def test_an_icon_that_cannot_be_drawn_is_named(drawing):
    with pytest.raises(ValueError, match=r"noto/a cannot be drawn: "):
        drawing.draw(icon("<path"), 32)


def test_few_icons_are_drawn_ahead(drawing, monkeypatch):
    """What is stopped need not wait for the rest."""
    drawn = []
    monkeypatch.setattr(drawing, "draw_sizes", lambda *given: drawn.append(given) or {})
    all_of_them = drawing.draw_all([icon("")] * 5000, [], [], threads=2)
    next(all_of_them)
    time.sleep(0.2)
    assert len(drawn) <= 2 * drawing.AHEAD
    assert len([*all_of_them]) == 4999


# ---------------------------------------------------------------------------------------- files


def test_the_same_bytes_in_any_number_of_threads(icons, tmp_path):
    sets = icon_sets.read_sets(icon_sets.find_sets(ICON_SETS))
    steps = []
    options = {"threads": 1, "advance": lambda: steps.append(1)}
    icon_files.write_set(tmp_path, sets, list_icons(sets), [32, 64, 256], **options)
    assert contents(tmp_path) == contents(icons)
    assert len(steps) == 19


@pytest.mark.parametrize("split", ["all", "train", "pair", "heldout"])
def test_tars_say_what_the_npz_says(icons, split, tmp_path):
    arrays = read_npz(icons / "icons64.npz", split)
    tar = read_tar(icons / "256", split, text="json.captions", index_dir=tmp_path)
    order = {key: row for row, key in enumerate(arrays.keys)}
    rows = [order[item["key"].partition("/")[2]] for item in tar]
    assert sorted(rows) == list(range(len(arrays)))
    assert [item["captions"] for item in tar] == [arrays.captions[row] for row in rows]
    np.testing.assert_array_equal(tar.weights, arrays.weights[rows])
    assert (len(tar), tar.total) == (len(arrays), arrays.total)
    for item, row in zip(tar, rows, strict=True):
        image = item["image"]
        assert image.size == (256, 256)
        np.testing.assert_array_equal(image.resize((64, 64), Image.BOX), arrays.images[row])
    if split != "all":
        same = read_tar(icons / "256" / f"{split}-*.tar", text="json.captions", index_dir=tmp_path)
        assert [item["key"] for item in same] == [item["key"] for item in tar]


def test_the_json_beside_an_image_has_the_columns(icons):
    with np.load(icons / "icons32.npz") as archive:
        arrays = dict(archive)
    rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
    names = arrays.keys() - {"image", "captions"}
    for path in (icons / "256").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.mtime == 0
                if member.name.endswith(".json"):
                    fields = json.load(tar.extractfile(member))
                    row = rows[fields["key"]]
                    assert {name: arrays[name][row].item() for name in names} == {
                        name: fields[name] for name in names
                    }
                    assert path.name.startswith(f"{fields['split']}-")


def test_every_set_is_attributed(icons):
    text = (icons / "LICENCES.txt").read_text()
    manifest = json.loads((icons / "manifest.json").read_text())
    assert [own["package"] for own in manifest["sets"]] == [own.package for own in SETS]
    for own in manifest["sets"]:
        said = (own["title"], own["version"], own["author"]["name"], own["licence"]["url"])
        assert all(part in text for part in said)
    assert "https://creativecommons.org/licenses/by/4.0/" in text
    assert sum(own["images"] for own in manifest["sets"]) == manifest["images"] == 19
    assert sum(manifest["splits"].values()) == 19


def test_an_existing_set_is_kept_unless_it_is_to_be_replaced(icons, tmp_path):
    out = ["--out", tmp_path, "--sets", ICON_SETS]
    assert prepare(*out, "--sizes", "32,80") is None
    whole = contents(tmp_path)
    assert prepare(*out, "--sizes", "32") == (
        f"error: {tmp_path}/icons32.npz is there already; --overwrite replaces it"
    )
    assert "80/heldout-00000.tar is there" in prepare(*out, "--sizes", "80")
    (tmp_path / "80" / "train-00009.tar").write_bytes(b"of an older, larger set")
    assert prepare(*out, "--sizes", "32,80", "--overwrite") is None
    assert contents(tmp_path) == whole


def test_a_run_that_is_stopped_leaves_nothing(icons, tmp_path):
    sets = icon_sets.read_sets(icon_sets.find_sets(ICON_SETS))
    count = iter(range(10))

    def advance():
        if next(count) == 5:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        icon_files.write_set(tmp_path, sets, list_icons(sets), [32, 256], 2, advance)
    assert next(count) == 6
    assert not contents(tmp_path)


# ----------------------------------------------------------------------------- where sets are


def copy_sets(folder: Path, place: str, left_out: str = "") -> Path:
    for own in SETS:
        if own.name != left_out:
            target = folder / place.format(name=own.name, version=own.version)
            target.mkdir(parents=True)
            for name in icon_sets.FILES:
                (target / name).write_bytes((ICON_SETS / own.name / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    "place",
    [
        "@iconify-json/{name}",
        "node_modules/@iconify-json/{name}",
        "iconify-json-{name}-{version}",
        "iconify-json-{name}-{version}/package",
    ],
)
def test_sets_lie_as_npm_puts_them(tmp_path, place):
    found = icon_sets.find_sets(copy_sets(tmp_path, place))
    assert [*found] == [*SETS]
    assert {path.parent for path in found.values()} != {ICON_SETS}


def test_sets_that_are_missing_or_others_are_one_line(tmp_path):
    copy_sets(tmp_path / "a", "{name}", left_out="twemoji")
    with pytest.raises(ValueError, match=r"a lacks @iconify-json/twemoji@1\.2\.5; a set may lie"):
        icon_sets.find_sets(tmp_path / "a")
    copy_sets(tmp_path / "b", "{name}")
    (tmp_path / "b" / "noto" / "package.json").write_text('{"version": "2.0.0"}')
    with pytest.raises(ValueError, match=r"b/noto is of version 2\.0\.0, and 1\.2\.9 is needed"):
        icon_sets.find_sets(tmp_path / "b")
    with pytest.raises(ValueError, match=r"--sets \S+none is not a folder"):
        icon_sets.find_sets(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "icons.json: it is not JSON"),
        ("{}", "not a set of icons: 'icons'"),
        ('{"icons": {"a": {}}}', "not a set of icons: 'body'"),
        ('{"icons": {"../a": {"body": ""}}}', r"'\.\./a' is no name of an icon"),
        ('{"icons": {"a": {"body": "<image href=\'/a.png\'/>"}}}', "a refers to what lies outside"),
        ('{"icons": {"a": {"body": "", "width": 900}}}', "a is 900 x 16"),
        ('{"icons": {"a": {"body": "", "height": 0}}}', "not a set of icons: "),
        ('{"icons": {"a": {"body": "", "height": "9"}}}', "not a set of icons: "),
    ],
)
def test_a_damaged_set_is_named(tmp_path, content, said):
    copy_sets(tmp_path, "{name}")
    (tmp_path / "noto" / "icons.json").write_text(content)
    with pytest.raises(ValueError, match=f"noto.*{said}"):
        icon_sets.read_set(SETS[0], tmp_path / "noto")


def test_a_set_without_its_author_is_named_before_it_is_drawn(tmp_path):
    copy_sets(tmp_path, "{name}")
    (tmp_path / "noto" / "info.json").write_text('{"name": "Noto", "license": {}}')
    with pytest.raises(ValueError, match="noto is not a set of icons: 'author'"):
        icon_sets.read_set(SETS[0], tmp_path / "noto")


def packed(own: IconSet, path: Path) -> None:
    """A package as npm's registry has it."""
    with tarfile.open(path, "w:gz") as tar:
        for name in icon_sets.FILES:
            tar.add(ICON_SETS / own.name / name, f"package/{name}")


def fake_npm(folder: Path, monkeypatch, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_fetches_what_is_not_there(tmp_path, monkeypatch):
    for own in SETS:
        packed(own, tmp_path / f"{own.package.replace('/', '_')}@{own.version}")
    script = f'name=$(echo "$2" | tr / _); echo "$2" >> {tmp_path}/log; cp {tmp_path}/"$name" a.tgz'
    fake_npm(tmp_path / "bin", monkeypatch, script)
    told = []
    for _ in range(2):  # the second time nothing is fetched
        paths = icon_sets.fetch_sets(tmp_path / "sets", told.append)
    assert told == [f"npm fetches {own.package}@{own.version}" for own in SETS]
    assert (tmp_path / "log").read_text().split() == [f"{x.package}@{x.version}" for x in SETS]
    there, here = (icon_sets.read_sets(x) for x in (paths, icon_sets.find_sets(ICON_SETS)))
    assert there == here
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == sorted(
        own.folder for own in SETS
    )


def test_npm_that_is_not_there_or_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError, match=r"there is no npm to fetch @iconify-json/noto@1\.2\.9, .*--s"
    ):
        icon_sets.fetch_sets(tmp_path / "sets", print)
    said = ("code ENOTFOUND", "syscall getaddrinfo", "errno ENOTFOUND", "network request failed")
    lines = "; ".join(f"echo npm error {line} >&2" for line in said)
    fake_npm(tmp_path / "bin", monkeypatch, f"{lines}; exit 1")
    with pytest.raises(
        ValueError, match=r"^npm pack @iconify-json/noto@1\.2\.9: npm error network request"
    ):
        icon_sets.fetch_sets(tmp_path / "sets", print)
    assert not list((tmp_path / "sets").iterdir())


def member(name: str, content: bytes = b"{}", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


@pytest.mark.parametrize(
    "members",
    [
        [],
        [member("package/icons.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        [member("../icons.json"), member("/package/icons.json")],
    ],
)
def test_an_archive_is_not_trusted(tmp_path, members):
    sound = [member(f"package/{name}") for name in icon_sets.FILES if name != "icons.json"]
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for info, content in [*sound, *members]:
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"a\.tgz is no set of icons: it lacks icons\.json"):
        icon_sets.unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    whole = (tmp_path / "a.tgz").read_bytes()
    for content in (whole[:-20], b"<html>", b""):
        (tmp_path / "b.tgz").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.tgz is not a whole npm package: "):
            icon_sets.unpack(tmp_path / "b.tgz", tmp_path / "out")


# ---------------------------------------------------------------------------- before any work


def test_what_is_missing_is_told_before_work(tmp_path, monkeypatch):
    out = ["--out", tmp_path / "out"]
    monkeypatch.setattr(unicode_names, "EMOJI_LIST", tmp_path / "none.txt")
    monkeypatch.setitem(sys.modules, "resvg_py", sys)  # as if it were installed
    assert "none.txt: apt-get install unicode-data" in prepare(*out, "--sets", ICON_SETS)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert prepare(*out).endswith("It comes with: pip install 'imagen_jax[icons]'")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sizes", ["0", "32,x", "32,,64", ""])
def test_sizes_are_numbers(sizes, capsys):
    assert prepare("--out", "a", "--sizes", sizes) == 2
    assert "--sizes" in capsys.readouterr().err
