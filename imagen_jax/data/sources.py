"""Image sets with random access and without TensorFlow: npz files, folders, arrays in memory.

A source gives by index `{"image": uint8 [H, W, 3], "key": str}`, and, by what the model is
conditioned on, `"captions": [(text, weight), ...]` or `"label": int`. It raises BrokenExample where
an image cannot be read.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imagen_jax.data.captions import CAPTION_FILES, Captions, normalized, read_captions, read_text
from imagen_jax.images import decoding, pixels

SPLITS = ("train", "heldout", "all")
CONDITIONINGS = ("text", "label", None)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HELDOUT_PERCENT = 5


class BrokenExample(Exception):
    """An image or record that cannot be read. The loader skips it, counts it and goes on."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key = key


@runtime_checkable
class Source(Protocol):
    """Examples by index, in an order that never changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def is_heldout(key: str, percent: int = HELDOUT_PERCENT) -> bool:
    """Whether a hash of the key falls into the held-out share: the same on every machine."""
    # surrogateescape: names of files are bytes, and not UTF-8 on every disk
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def check_choice(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; they must be uint8 [N, H, W, 3]"
        )


# ---------------------------------------------------------------------------------- in memory


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory: uint8 [N, H, W, 3], with captions or labels or neither.

    `extra` holds arrays with a row for each image that a model does not see (names, groups).
    """

    images: np.ndarray
    captions: Sequence[Captions] | None = None
    labels: np.ndarray | None = None
    keys: Sequence[str] | None = None
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_images(self.images)
        for name in ("captions", "labels", "keys"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.images):
                raise ValueError(f"there are {len(rows)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = str(index) if self.keys is None else str(self.keys[index])
        example = {"image": self.images[index], "key": key}
        if self.captions is not None:
            example["captions"] = self.captions[index]
        if self.labels is not None:
            example["label"] = int(self.labels[index])
        return example

    def select(self, rows: np.ndarray) -> "ArraySource":
        """The rows of a boolean mask or of indices, in their order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return ArraySource(
            self.images[rows],
            None if self.captions is None else [self.captions[row] for row in rows],
            None if self.labels is None else self.labels[rows],
            None if self.keys is None else [self.keys[row] for row in rows],
            {name: values[rows] for name, values in self.extra.items()},
        )

    def resized(self, resolution: int) -> "ArraySource":
        """All images at a stage's resolution, so that no batch has to resize them again."""
        if self.images.shape[1:3] == (resolution, resolution):
            return self
        images = np.stack([pixels.resize(image, resolution) for image in self.images])
        return dataclasses.replace(self, images=images)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file; ValueError where it is none, or is damaged."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; it must be an npz file")
    if not path.is_file():
        make = f"; python scripts/prepare_emoji.py --out {path.parent} makes it"
        raise ValueError(f"there is no file {path}{make if path.name == 'emoji.npz' else ''}")
    try:
        archive = np.load(path)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array; np.savez writes several by name")
        with archive:
            return dict(archive)
    except Exception as error:
        # A damaged file can make zipfile, zlib, the parser of headers and numpy raise anything.
        raise ValueError(f"{path} is not a whole npz file: {error or repr(error)}") from error


def _npz_captions(values: np.ndarray, path: Path) -> list[Captions]:
    """Captions as plain strings, one an image, or as UTF-8 JSON: [[[text, weight], ...], ...]."""
    if values.dtype.kind == "U" and values.ndim == 1:
        return [[(str(text), 1.0)] for text in values]
    if values.dtype == np.uint8:
        try:
            rows = [
                [(text, float(weight)) for text, weight in row]
                for row in json.loads(values.tobytes())
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"captions in {path} cannot be read: {error}") from error
        if all(row and all(isinstance(text, str) for text, _ in row) for row in rows):
            return rows
    raise ValueError(
        f"captions in {path} are {values.dtype} {list(values.shape)}; they must be strings [N], or "
        "the bytes (uint8) of a JSON list with a list of [text, weight] for each image"
    )


def _row_array(arrays: dict[str, np.ndarray], name: str, kinds: str, path: Path) -> Any:
    """Takes an optional array with a row an image out of `arrays`; `kinds` are numpy's letters."""
    values, count = arrays.pop(name, None), len(arrays["image"])
    if values is not None and (values.shape != (count,) or values.dtype.kind not in kinds):
        found = f"{values.dtype} {list(values.shape)}"
        wanted = "strings" if "U" in kinds else "whole numbers"
        raise ValueError(f"{name} in {path} is {found}; it must be {wanted} [{count}]")
    return values


def read_npz(
    path: str | Path, split: str = "all", conditioning: str | None = "text"
) -> ArraySource:
    """An npz file with `image` uint8 [N, H, W, 3] and `captions` or `label`.

    Optional: `split` (strings; without it a hash of the keys holds out 5 %) and `key`. Arrays with
    N rows under other names are kept as `extra`. ValueError where there is no such file, or where
    it is damaged or lacks something.
    """
    path = Path(path).expanduser()
    check_choice("split", split, SPLITS)
    check_choice("conditioning", conditioning, CONDITIONINGS)
    arrays = _read_arrays(path)
    needed = {"text": "captions", "label": "label", None: "image"}[conditioning]
    if missing := {"image", needed} - arrays.keys():
        raise ValueError(f"{path} has no {' and no '.join(sorted(missing))}; it has {list(arrays)}")
    check_images(arrays["image"])
    labels = _row_array(arrays, "label", "iu", path) if conditioning == "label" else None
    keys = _row_array(arrays, "key", "USiu", path)
    splits = _row_array(arrays, "split", "U", path)
    images, captions = arrays.pop("image"), arrays.pop("captions", None)
    keys = [str(key) for key in (range(len(images)) if keys is None else keys)]
    if splits is None:
        splits = np.asarray(["heldout" if is_heldout(key) else "train" for key in keys])
    extra = {n: array for n, array in arrays.items() if array.shape[:1] == images.shape[:1]}
    texts = _npz_captions(captions, path) if conditioning == "text" else None
    source = ArraySource(images, texts, labels, keys, extra)
    if split == "all":
        return source
    if not (splits == split).any():
        raise ValueError(f"{path} has no image in its split {split!r}")
    return source.select(splits == split)


# --------------------------------------------------------------------------- folder of images


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Images in a folder and the folders below it, read when they are asked for.

    with_images: False leaves them out, for who wants captions alone.
    """

    folder: Path
    files: tuple[str, ...]  # relative to the folder, sorted
    captions: dict[str, Captions] = dataclasses.field(default_factory=dict)  # of a caption file
    texts: dict[str, str] = dataclasses.field(default_factory=dict)  # an image's own text file
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    max_pixels: int = decoding.MAX_PIXELS
    with_images: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.files[index]
        path = self.folder / name
        try:
            example = {"key": name}
            if self.with_images:
                example["image"] = decoding.decode(path, self.max_pixels)
            if name in self.captions:
                example["captions"] = self.captions[name]
            elif name in self.texts:
                example["captions"] = read_text(self.folder / self.texts[name])
        except (OSError, ValueError) as error:
            raise BrokenExample(str(path), str(error)) from error
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example


def _named(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" * (len(names) > limit))


def read_folder(
    path: str | Path,
    split: str = "all",
    conditioning: str | None = "text",
    max_pixels: int = decoding.MAX_PIXELS,
) -> FolderSource:
    """A folder of images, in sub-folders or not.

    Captions stand in captions.jsonl or captions.csv at the top, or in name.txt beside name.png (one
    a line). With conditioning "label" each sub-folder is a class. Held out are 5 % of the images,
    by a hash of their names.
    """
    folder = Path(path).expanduser()
    check_choice("split", split, SPLITS)
    check_choice("conditioning", conditioning, CONDITIONINGS)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = _files_below(folder)
    images = sorted(name for name in found if name.lower().endswith(IMAGE_SUFFIXES))
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")

    captions, texts, labels, class_names = {}, {}, None, ()
    if conditioning == "label":
        class_names = tuple(sorted({name.split("/")[0] for name in images if "/" in name}))
        if outside := [name for name in images if "/" not in name]:
            raise ValueError(
                f"{folder}: {_named(outside)} must lie in a sub-folder named after its class"
            )
    if conditioning == "text":
        texts = _texts_beside(found, images)
        captions = _folder_captions(folder, found, images, texts)

    if split != "all":
        images = [name for name in images if is_heldout(name) == (split == "heldout")]
        if not images:
            raise ValueError(f"{folder} has no image in its split {split!r}")
    if conditioning == "label":
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = tuple(numbers[name.split("/")[0]] for name in images)
    return FolderSource(folder, tuple(images), captions, texts, labels, class_names, max_pixels)


def _files_below(folder: Path) -> set[str]:
    """Names of all files, relative to the folder; hidden ones (.git, ._cat.png) are left out.

    Links to folders are followed, after the real ones, and no folder is read twice.
    """
    found, read, waiting = set(), set(), collections.deque([""])
    while waiting:
        name = waiting.popleft()
        real = os.path.realpath(folder / name)
        if real in read:
            continue
        read.add(real)
        for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name):
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                found.add(path)
            elif entry.is_dir():
                add = waiting.append if entry.is_symlink() else waiting.appendleft
                add(path)
    return found


def _texts_beside(found: set[str], images: list[str]) -> dict[str, str]:
    """The text file of each image that has one: cat.txt, or cat.TXT, for cat.png."""
    texts = {name[:-4]: name for name in sorted(found) if name.lower().endswith(".txt")}
    stems = {name: name.rpartition(".")[0] for name in images}
    return {name: texts[stem] for name, stem in stems.items() if stem in texts}


def _folder_captions(
    folder: Path, found: set[str], images: list[str], texts: dict[str, str]
) -> dict[str, Captions]:
    """The captions of the caption file, by the images' names; none may be without a caption."""
    files = sorted(name for name in found if name.lower() in CAPTION_FILES)
    if len(files) > 1:
        raise ValueError(f"{folder} holds {' and '.join(files)}; keep one of them")
    listed = read_captions(folder / files[0]) if files else {}
    spelled = {normalized(name): name for name in images}
    if unknown := sorted(listed.keys() - spelled.keys()):
        raise ValueError(f"{folder / files[0]} names images that are not there: {_named(unknown)}")
    captions = {spelled[name]: rows for name, rows in listed.items()}
    missing = [name for name in images if name not in captions and name not in texts]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(images)} images in {folder} have no caption: "
            f"{_named(missing)}. Write {Path(missing[0]).with_suffix('.txt')} beside it, or a row "
            f"of {' or '.join(CAPTION_FILES)}, or train without text (conditioning label or None)."
        )
    return captions
