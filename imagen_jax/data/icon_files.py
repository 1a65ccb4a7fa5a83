"""The files of the icon set: npz for small images, tars of PNGs for larger ones, and licences.

    icons64.npz         arrays as `icons.as_columns` gives them, and `image` uint8 [N, 64, 64, 3]
    256/train-00000.tar NAME.png and NAME.json, whose fields are the columns of the npz file
    manifest.json, LICENCES.txt    where the images and names come from

The same icons give the same bytes, in however many threads they are drawn.
"""

import collections
import contextlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import unicode_names
from imagen_jax.data.icon_drawing import draw_all
from imagen_jax.data.icon_sets import OpenSet
from imagen_jax.data.icons import SPLITS, Icon, as_columns
from imagen_jax.data.shard_writing import add_member
from imagen_jax.storage.atomic import written_together

LARGEST_ARRAY = 64  # pixels: larger images go into tars
SHARD_SIZE = 4096  # icons of a tar
MANIFEST, LICENCES = "manifest.json", "LICENCES.txt"
NAMES_FROM = {
    "title": "Unicode's list of emoji, and names and keywords of the CLDR",
    "author": {"name": "Unicode, Inc.", "url": "https://www.unicode.org"},
    "licence": {"title": "Unicode License", "url": "https://www.unicode.org/license.txt"},
}


def array_file(folder: Path, side: int) -> Path:
    """The file of all icons at a size in pixels."""
    return folder / f"icons{side}.npz"


def existing_files(folder: Path, sizes: Sequence[int]) -> list[Path]:
    """What a folder holds already of the set at these sizes."""
    tars = [path for side in sizes for path in _tars(folder / str(side))]
    return [*filter(Path.is_file, (array_file(folder, side) for side in sizes)), *tars]


def _tars(folder: Path) -> list[Path]:
    return sorted(path for split in SPLITS for path in folder.glob(f"{split}-[0-9]*.tar"))


def write_set(
    folder: Path,
    sets: Sequence[OpenSet],
    icons: Sequence[Icon],
    sizes: Sequence[int],
    threads: int,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Draws the icons at these sizes and writes all files, each whole or not at all.

    Args:
        advance: called after each icon.
    """
    small = [side for side in sizes if side <= LARGEST_ARRAY]
    large = [side for side in sizes if side > LARGEST_ARRAY]
    columns = as_columns(icons)
    shards = _shards(icons)
    tars = [folder / str(side) / name for side in large for name in shards]
    arrays = [array_file(folder, side) for side in small]
    targets = [*arrays, *tars, folder / MANIFEST, folder / LICENCES]
    old = [path for side in large for path in _tars(folder / str(side))]
    with written_together(targets) as paths, contextlib.ExitStack() as opened:
        found = dict(zip(targets, paths, strict=True))
        files = {path: opened.enter_context(tarfile.open(found[path], "w")) for path in tars}
        images = {side: np.empty((len(icons), side, side, 3), np.uint8) for side in small}
        where = {row: name for name, rows in shards.items() for row in rows}
        fields = _fields(icons, columns)
        for row, (pixels, pngs) in enumerate(draw_all(icons, small, large, threads)):
            for side, image in pixels.items():
                images[side][row] = image
            for side, png in pngs.items():
                tar = files[folder / str(side) / where[row]]
                add_member(tar, f"{icons[row].key}.png", png)
                add_member(tar, f"{icons[row].key}.json", fields[row])
            advance()
        for side, path in zip(small, arrays, strict=True):
            with found[path].open("wb") as file:  # numpy would add an ending to a path
                np.savez_compressed(file, image=images[side], **columns)
        content = manifest(sets, icons)
        found[folder / MANIFEST].write_text(_json(content, indent=2) + "\n", encoding="utf-8")
        found[folder / LICENCES].write_text(licences(content), encoding="utf-8")
        opened.close()  # the tars end
    for path in set(old) - set(tars):
        path.unlink()  # of an earlier, larger set


def _shards(icons: Sequence[Icon]) -> dict[str, Sequence[int]]:
    """The rows in each tar by its name, such as pair-00000.tar."""
    rows = {split: [i for i, icon in enumerate(icons) if icon.split == split] for split in SPLITS}
    return {
        f"{split}-{number:05d}.tar": own[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
        for split, own in rows.items()
        for number in range(-(-len(own) // SHARD_SIZE))
    }


def _fields(icons: Sequence[Icon], columns: Mapping[str, np.ndarray]) -> list[bytes]:
    """The JSON beside each image."""
    lists = {name: values.tolist() for name, values in columns.items() if name != "captions"}
    lists["captions"] = [icon.captions for icon in icons]
    return [
        _json({name: values[row] for name, values in lists.items()}).encode()
        for row in range(len(icons))
    ]


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def manifest(sets: Sequence[OpenSet], icons: Sequence[Icon]) -> dict[str, Any]:
    """Where everything comes from, with authors, licences and numbers of images."""
    styles = collections.Counter(icon.style for icon in icons)
    splits = collections.Counter(icon.split for icon in icons)
    return {
        "images": len(icons),
        "splits": {split: splits[split] for split in SPLITS},
        "drawn_by": f"resvg_py {version('resvg_py')}",
        "sets": [
            {
                "style": each.icon_set.style,
                "package": each.icon_set.package,
                "version": each.icon_set.version,
                "images": styles[each.icon_set.style],
            }
            | each.info
            for each in sets
        ],
        "names": NAMES_FROM | {"emoji_version": unicode_names.version()},
    }


def licences(content: Mapping[str, Any]) -> str:
    """The manifest's attributions for a reader."""
    return "\n".join(_lines(content))


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    yield "The images of this set are drawn, on white and scaled, from these sets of icons:\n"
    for each in content["sets"]:
        author, licence = each["author"], each["licence"]
        yield f"{each['title']} ({each['package']} {each['version']}, style {each['style']!r})"
        yield f"  by {author['name']}, {author['url']}"
        yield f"  licence: {licence['title']} ({licence['spdx']}), {licence['url']}\n"
    names = content["names"]
    yield f"Their captions are made of {names['title']} (emoji {names['emoji_version']})"
    yield f"  by {names['author']['name']}, {names['author']['url']}"
    yield f"  licence: {names['licence']['title']}, {names['licence']['url']}\n"
