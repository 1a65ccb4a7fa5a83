"""A folder of images as a source: captions beside the images, or a sub-folder for each class."""

import dataclasses
import itertools
import logging
import os
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from imagen_jax.data.captions import CAPTION_FILES, Captions, normalized, read_captions, read_text
from imagen_jax.data.classes import sorted_classes
from imagen_jax.data.image_files import ImageFiles, find_images
from imagen_jax.data.sources import broken_as, check_reading, in_split, make_example
from imagen_jax.images import decoding
from imagen_jax.storage.folders import natural_key
from imagen_jax.storage.trees import name_some

SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing", "heldout"}
# How other programs call captions: beside an image, and of a whole folder.
BESIDE = (".txt", ".caption", ".json")
TABLES = re.compile(r"(captions?|metadata|prompts?|labels)\.(jsonl?|csv|tsv|txt|xlsx|parquet)")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Images in a folder and the folders below it, read when they are asked for.

    class_names: of all splits, by number; empty where no labels are read. with_images: False leaves
    images out, for those who read only captions. total: images of all splits.
    """

    folder: Path
    files: tuple[str, ...]  # relative to the folder, sorted
    # by file: those of a caption file, or the name of the image's own text file
    captions: dict[str, Captions | str] = dataclasses.field(default_factory=dict)
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    max_pixels: int = decoding.MAX_PIXELS
    with_images: bool = True
    total: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.files[index]
        path = self.folder / name
        captions = self.captions.get(name)
        with broken_as(str(path)):
            if isinstance(captions, str):
                captions = read_text(self.folder / captions)
            return make_example(
                key=name,
                image=decoding.decode(path, self.max_pixels) if self.with_images else None,
                captions=captions,
                label=None if self.labels is None else int(self.labels[index]),
            )


def read_folder(
    path: str | Path,
    split: str = "all",
    conditioning: str | None = "text",
    max_pixels: int = decoding.MAX_PIXELS,
) -> FolderSource:
    """A folder of images, in sub-folders or not; `find_images` says which of its files count.

    Captions stand in captions.jsonl or captions.csv at the top, or in name.txt beside name.png (one
    a line). With conditioning "label" each sub-folder is a class, numbered as people count. Held
    out are 5 % of the images, by a hash of their names.
    """
    check_reading(split, conditioning)
    found = find_images(path)
    kept = in_split(found.images, split)
    own = tuple(itertools.compress(found.images, kept))
    if not own:
        raise ValueError(f"{found.folder} has no image in its split {split!r}")
    captions, labels, class_names = {}, None, ()
    if conditioning == "text":
        captions = _folder_captions(found)
    if conditioning == "label":
        class_names, numbers = _folder_classes(found)
        labels = np.asarray([numbers[name.split("/")[0]] for name in own], np.int64)
    read = FolderSource(found.folder, own, captions, labels, class_names, max_pixels)
    return dataclasses.replace(read, total=len(found.images))


def _folder_classes(found: ImageFiles) -> tuple[tuple[str, ...], dict[str, int]]:
    """(names of the classes by number, the number of each sub-folder), of all splits.

    Sub-folders that differ only in how Unicode splits accents off are one class.
    """
    if outside := [name for name in found.images if "/" not in name]:
        raise ValueError(
            f"{found.folder}: {name_some(outside)} must lie in a sub-folder named after its class"
        )
    folders = {name.split("/")[0] for name in found.images}
    for folder in sorted(folders):
        try:
            folder.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"{found.folder}: the class folder {folder!r} has a name that is not UTF-8; "
                "rename it"
            ) from None
    _check_depth(found, folders)
    names = sorted_classes({normalized(folder) for folder in folders})
    return names, {folder: names.index(normalized(folder)) for folder in folders}


def _check_depth(found: ImageFiles, folders: Set[str]) -> None:
    """ValueError where the sub-folders are splits, each with the classes in it; a warning where one
    sub-folder holds all the others.
    """
    below = {tuple(name.split("/")[:2]) for name in found.images if name.count("/") > 1}
    inner = sorted({name for _, name in below}, key=natural_key)
    deeper = f"give {found.folder / min(folders)}, which holds {name_some(inner)}"
    if len(inner) > 1 and {folder.lower() for folder in folders} <= SPLIT_FOLDERS:
        raise ValueError(
            f"{found.folder}: {name_some(sorted(folders))} are named like splits, not like classes:"
            f" {deeper}"
        )
    if len(inner) > 1 and len(folders) == 1:
        logging.warning(
            "%s: all images are of the one class %s; if its sub-folders are the classes, %s",
            found.folder,
            min(folders),
            deeper,
        )


def _folder_captions(found: ImageFiles) -> dict[str, Captions | str]:
    """The captions of the caption file, else the name of the text file, of each image.

    ValueError where an image has neither. Its text file is cat.txt, or cat.TXT, for cat.png.
    """
    folder, images, others = found.folder, found.images, sorted(found.others)
    texts = {name[:-4]: name for name in others if name.lower().endswith(".txt")}
    alike = {normalized(stem): name for stem, name in texts.items()}
    captions: dict[str, Captions | str] = {}
    for name in images:
        stem = name.rpartition(".")[0]
        if text := texts.get(stem, alike.get(normalized(stem))):
            captions[name] = text
    files = [name for name in others if name.lower() in CAPTION_FILES]
    if len(files) > 1:
        raise ValueError(f"{folder} holds {' and '.join(files)}; keep one of them")
    for file in files:
        listed = read_captions(folder / file)
        spelled = {normalized(name): name for name in images}
        if len(spelled) < len(images):
            twice = next(name for name in images if spelled[normalized(name)] != name)
            raise ValueError(
                f"{folder} has two images named {twice}, whose accents are stored in two ways: "
                f"{folder / file} cannot tell them apart; rename one"
            )
        if unknown := sorted(listed.keys() - spelled.keys()):
            raise ValueError(
                f"{folder / file} names {len(unknown)} images, of {len(listed)}, that are not "
                f"there: {name_some(unknown)}{_nearest_file(unknown[0], found)}"
            )
        captions |= {spelled[name]: rows for name, rows in listed.items()}
    if missing := [name for name in images if name not in captions]:
        raise ValueError(
            f"{len(missing)} of {len(images)} images in {folder} have no caption: "
            f"{name_some(missing)}. Write {Path(missing[0]).with_suffix('.txt')} beside it, or a "
            f"row of {' or '.join(CAPTION_FILES)}, or train without text (conditioning label or "
            f"None).{_unread_captions(missing[0], others)}"
        )
    return captions


def _unread_captions(image: str, others: Iterable[str]) -> str:
    """For an error message: a file that is meant as this image's captions, as other programs name
    or place it.
    """
    beside = {f"{stem}{ending}" for stem in (image, image.rpartition(".")[0]) for ending in BESIDE}
    for name in others:
        base = name.rpartition("/")[2].lower()
        if name in beside:
            return f" {name} is there: rename those of other programs."
        if name.lower() in CAPTION_FILES:
            continue  # it was read, and lacks the image
        if base in CAPTION_FILES:
            return f" {name} counts only at the top of the folder: give the folder that it is in."
        if TABLES.fullmatch(base):
            return f" {name} is not read; {' or '.join(CAPTION_FILES)} would be."
    return ""


def _nearest_file(name: str, found: ImageFiles) -> str:
    """For an error message: the file of this name in another folder, in other letters, or with
    another ending or none.
    """
    base = _base(unquote(name))
    files = [file for file in sorted({*found.images, *found.others}) if _base(file) == base]
    stems = {base, os.path.splitext(base)[0]}
    files += [file for file in found.images if os.path.splitext(_base(file))[0] in stems]
    for file in files[:1]:
        same = normalized(file) == name
        return f"; {file} is there, but no image" if same else f"; did you mean {file}?"
    return ""


def _base(file: str) -> str:
    return normalized(file).rpartition("/")[2].casefold()
