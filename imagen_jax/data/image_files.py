"""Which files below a folder are its images, and what is said of those that are left out."""

import collections
import concurrent.futures
import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from imagen_jax.images import decoding, image_file
from imagen_jax.images.file_names import GRID_FILE, OWN
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.trees import name_some

# What systems leave in folders without asking; names that begin with a dot as well.
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SYSTEM_FOLDERS = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
# What a set says of itself: nobody misses these among the images.
TEXTS = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".html", ".xml", ".yaml", ".yml"),
    *(".toml", ".ini", ".cfg", ".log", ".parquet", ".npz", ".npy", ".py", ".sh", ".db", ".sha256"),
    *(".caption", ".cls", ".lock", ".tmp"),
)
ABOUT_NAMES = {
    *("readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors"),
    *("manifest", "makefile", "classes", "labels", "metadata"),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
ADVICE = {
    **dict.fromkeys((".heic", ".heif"), "convert them, for example with pillow-heif"),
    **dict.fromkeys(ARCHIVES, "unpack them"),
    ".tar": "unpack them, or train with data.source=tar",
}
SHOWN = 6  # kinds of files that a line names
THREADS = 16  # that read first bytes; on a network each file is waited for

# Grids, pages and plots without a mark in them: those of version 0.1, and the sheets of a study,
# which show raters nothing but images. Their names, and the file of ours that lies beside them.
UNMARKED = {
    re.compile(r"samples_\d{7}\.png"): "../metrics.jsonl",  # of training
    re.compile(r"[0-9a-f]{12}-[01]\.png"): "../trials.json",  # of a study
    re.compile(r"loss\.png"): "model.json",  # of an export
    re.compile(r"(pictures|retrieval|strip|sweep)\.png"): "report.json",  # of an evaluation
}


class ImageFiles(NamedTuple):
    """The files of a folder and of those below it, named relative to it, hidden ones left out.

    images: those that count, sorted. others: all the rest.
    """

    folder: Path
    images: tuple[str, ...]
    others: frozenset[str]


def find_images(path: str | os.PathLike) -> ImageFiles:
    """The images of a folder and of those below it: by the endings that the decoder reads, without
    the grids, pages and plots of our own commands. One warning says what else was left out.

    Links to folders are followed, and no folder is read twice.

    Raises:
        ValueError: there is no such folder, one below it cannot be read, or no image is in it.
    """
    folder = user_path(path)
    _check_folder(folder)
    found, dangling = _files_below(folder)
    named = sorted(name for name in found if name.lower().endswith(decoding.SUFFIXES))
    sheets = _sheets(folder, named)
    images = tuple(name for name in named if name not in sheets)
    others = frozenset(found.difference(images))
    kinds = count_kinds(name for name in others if name not in sheets)
    parts = [f"{dangling} links that lead nowhere"] if dangling else []
    if sheets:
        parts.insert(0, f"{len(sheets)} grids or plots of ours ({name_some(sorted(sheets))})")
    if not images:
        seen = [*parts, *describe_kinds(kinds)]
        raise ValueError(
            f"{folder} holds no image ({', '.join(decoding.SUFFIXES)})"
            + (f"; it has {', '.join(seen)}" if seen else "")
        )
    parts += describe_kinds({kind: n for kind, n in kinds.items() if kind not in TEXTS})
    if parts:
        _warn(f"{folder}: left out {', '.join(parts)}; {len(images)} images stay")
    return ImageFiles(folder, images, others)


@functools.cache  # a folder may be listed several times in one command
def _warn(line: str) -> None:
    logging.warning("%s", line)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    archive = folder.name.lower().endswith(ARCHIVES)
    unpack = ": unpack it" if archive else ""
    raise ValueError(f"{folder} is a file{unpack}; give the folder that holds the images")


# ------------------------------------------------------------------------------ kinds of files


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of any set."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES | SYSTEM_FOLDERS


def is_about(name: str) -> bool:
    """Whether a file of this name tells of a set, as README and LICENSE do, whatever its ending."""
    return name.rpartition("/")[2].partition(".")[0].lower() in ABOUT_NAMES


def count_kinds(names: Iterable[str]) -> collections.Counter[str]:
    """How many files there are of each ending, in small letters; "" stands for those with none."""
    kinds = collections.Counter()
    for name in names:
        ending = os.path.splitext(name.rpartition("/")[2])[1].lower()
        kinds[ending if ending or not is_about(name) else ".txt"] += 1
    return kinds


def describe_kinds(kinds: Mapping[str, int]) -> list[str]:
    """ "12 .heic (convert them, ...)", "3 .svg", ...; the most frequent first."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        f"{count:,} {kind or 'without an ending'}"
        + (f" ({ADVICE[kind]})" if kind in ADVICE else "")
        for kind, count in ordered[:SHOWN]
    ]
    rest = sum(count for _, count in ordered[SHOWN:])
    return [*shown, *([f"{rest:,} others"] if rest else [])]


# ------------------------------------------------------------------------------ what is there


def _files_below(folder: Path) -> tuple[set[str], int]:
    """(names of all files, relative to the folder, how many links lead nowhere)."""
    found, dangling, read, waiting = set(), 0, set(), collections.deque([""])
    while waiting:
        name = waiting.popleft()
        real = os.path.realpath(folder / name)
        if real in read:
            continue
        read.add(real)
        try:
            with os.scandir(folder / name) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"the folder {folder / name} cannot be read ({error.strerror}); make it readable, "
                "or take it out of the set"
            ) from error
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = os.path.join(name, entry.name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # links in a circle
                is_folder = is_file = False
            if is_folder:  # real ones first, so that links give no other names to their files
                (waiting.append if entry.is_symlink() else waiting.appendleft)(path)
            elif is_file:
                found.add(path)
            else:
                dangling += entry.is_symlink()
    return found, dangling


def _sheets(folder: Path, names: list[str]) -> set[str]:
    """Those of these files that hold a grid, a page of images or a plot that we wrote."""
    files = [name for name in names if name.lower().endswith(".png")]
    paths = [folder / name for name in files]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        marked = list(pool.map(image_file.is_sheet, paths))
    return {
        name
        for name, path, is_marked in zip(files, paths, marked, strict=True)
        if is_marked or _is_unmarked(path)
    }


def _is_unmarked(path: Path) -> bool:
    """Whether a file is a sheet of ours without a mark in it."""
    if path.name == GRID_FILE:
        beside = os.listdir(path.parent)
        made = next((name for name in beside if OWN.fullmatch(name)), None)
        return made is not None and image_file.has_settings(path.with_name(made))
    near = next((near for name, near in UNMARKED.items() if name.fullmatch(path.name)), None)
    return near is not None and (path.parent / near).is_file()
