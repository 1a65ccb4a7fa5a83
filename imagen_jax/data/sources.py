"""Picture sets with random access and without TensorFlow: npz files, folders, arrays in memory.

A source gives by index `{"image": uint8 [H, W, 3], "key": str}`, and, by what the model is
conditioned on, `"captions": [(text, weight), ...]` or `"label": int`. It raises BrokenExample where
a picture cannot be read.
"""

import csv
import dataclasses
import hashlib
import json
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imagen_jax.data import preprocess

Captions = list[tuple[str, float]]

SPLITS = ("train", "heldout", "all")
CONDITIONINGS = ("text", "label", None)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_FILES = ("captions.jsonl", "captions.csv")
HELDOUT_PERCENT = 5


class BrokenExample(Exception):
    """A picture or record that cannot be read. The loader skips it, counts it and goes on."""

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
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100 < percent


def check_choice(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


# ---------------------------------------------------------------------------------- in memory


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Pictures in memory: uint8 [N, H, W, 3], with captions or labels or neither.

    `extra` holds arrays with a row for each picture that a model does not see (names, groups).
    """

    images: np.ndarray
    captions: Sequence[Captions] | None = None
    labels: np.ndarray | None = None
    keys: Sequence[str] | None = None
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        images = self.images
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; they must be uint8 [N, H, W, 3]"
            )
        for name in ("captions", "labels", "keys"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(images):
                raise ValueError(f"there are {len(rows)} {name} for {len(images)} images")

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
        """All pictures at a stage's resolution, so that no batch has to resize them again."""
        if self.images.shape[1:3] == (resolution, resolution):
            return self
        images = np.stack([preprocess.resize(image, resolution) for image in self.images])
        return dataclasses.replace(self, images=images)


def _npz_captions(values: np.ndarray, path: Path) -> list[Captions]:
    """Captions as plain strings, one a picture, or as UTF-8 JSON: [[[text, weight], ...], ...]."""
    if values.dtype == np.uint8:
        return [
            [(text, float(weight)) for text, weight in row] for row in json.loads(values.tobytes())
        ]
    if values.dtype.kind == "U" and values.ndim == 1:
        return [[(str(text), 1.0)] for text in values]
    raise ValueError(
        f"captions in {path} are {values.dtype} {list(values.shape)}; they must be strings [N], or "
        "the bytes (uint8) of a JSON list with a list of [text, weight] for each picture"
    )


def read_npz(
    path: str | Path, split: str = "all", conditioning: str | None = "text"
) -> ArraySource:
    """An npz file with `image` uint8 [N, H, W, 3] and `captions` or `label`.

    Optional: `split` (strings; without it a hash of the keys holds out 5 %) and `key`. Arrays with
    N rows under other names are kept as `extra`.
    """
    path = Path(path)
    check_choice("split", split, SPLITS)
    check_choice("conditioning", conditioning, CONDITIONINGS)
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole npz file: {error}") from error
    needed = {"text": "captions", "label": "label", None: "image"}[conditioning]
    if missing := {"image", needed} - arrays.keys():
        raise ValueError(f"{path} has no {' and no '.join(sorted(missing))}; it has {list(arrays)}")
    images = arrays.pop("image")
    captions, labels = arrays.pop("captions", None), arrays.pop("label", None)
    keys = [str(key) for key in arrays.pop("key", range(len(images)))]
    splits = arrays.pop("split", None)
    if splits is None:
        splits = np.asarray(["heldout" if is_heldout(key) else "train" for key in keys])
    extra = {name: values for name, values in arrays.items() if len(values) == len(images)}
    if labels is not None and conditioning != "label":
        extra, labels = extra | {"label": labels}, None
    source = ArraySource(
        images,
        _npz_captions(captions, path) if conditioning == "text" else None,
        labels,
        keys,
        extra,
    )
    if split == "all":
        return source
    if not (splits == split).any():
        raise ValueError(f"{path} has no picture in its split {split!r}")
    return source.select(splits == split)


# --------------------------------------------------------------------------- folder of pictures


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Pictures in a folder and the folders below it, read when they are asked for."""

    folder: Path
    files: tuple[str, ...]  # relative to the folder, sorted
    captions: dict[str, Captions] | None = None  # None: name.txt beside each picture, if any
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    text_beside: bool = False
    max_pixels: int = preprocess.MAX_PIXELS

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.files[index]
        path = self.folder / name
        try:
            example = {"image": preprocess.decode(path, self.max_pixels), "key": name}
            if self.captions is not None and name in self.captions:
                example["captions"] = self.captions[name]
            elif self.text_beside:
                example["captions"] = _read_text(path.with_suffix(".txt"))
        except (OSError, ValueError) as error:
            raise BrokenExample(str(path), str(error)) from error
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example


def _read_text(path: Path) -> Captions:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    captions = [(line.strip(), 1.0) for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"{path.name} holds no caption")
    return captions


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any, Any, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                row = row if isinstance(row, dict) else {}
                file, text = (
                    row.get("file", row.get("file_name")),
                    row.get("caption", row.get("text")),
                )
                yield number, file, text, row.get("weight", 1.0)


def _csv_rows(path: Path) -> Iterator[tuple[int, Any, Any, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            file, text = row.get("file", row.get("file_name")), row.get("caption", row.get("text"))
            yield reader.line_num, file, text, row.get("weight") or 1.0


def read_captions(path: Path) -> dict[str, Captions]:
    """Captions by file name out of captions.jsonl or captions.csv, in UTF-8.

    Rows hold `file` (or file_name), `caption` (or text; in JSON also a list of them) and, if
    wanted, `weight`. A file with several rows has several captions.
    """
    captions: dict[str, Captions] = {}
    rows = _jsonl_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
    for number, file, texts, weight in rows:
        texts = [texts] if isinstance(texts, str) else texts
        good = isinstance(file, str) and file and isinstance(texts, list) and texts
        if not good or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f'{path}, line {number}: needs "file" and "caption", neither of them empty'
            )
        try:
            weight = float(weight)
        except (TypeError, ValueError):
            weight = -1.0
        if not 0 < weight < float("inf"):
            raise ValueError(f"{path}, line {number}: the weight must be a number above 0")
        found = captions.setdefault(_normalized(file), [])
        found += [(text.strip(), weight / len(texts)) for text in texts]
    return captions


def _normalized(name: str) -> str:
    """One spelling of a file's name: macOS writes accents apart, Windows backslashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _named(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" * (len(names) > limit))


def read_folder(
    path: str | Path,
    split: str = "all",
    conditioning: str | None = "text",
    max_pixels: int = preprocess.MAX_PIXELS,
) -> FolderSource:
    """A folder of pictures, in sub-folders or not.

    Captions stand in captions.jsonl or captions.csv at the top, or in name.txt beside name.png (one
    a line). With conditioning "label" each sub-folder is a class. Held out are 5 % of the pictures,
    by a hash of their names.
    """
    folder = Path(path)
    check_choice("split", split, SPLITS)
    check_choice("conditioning", conditioning, CONDITIONINGS)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")}
    pictures = sorted(name for name in found if name.lower().endswith(PICTURE_SUFFIXES))
    if not pictures:
        raise ValueError(f"{folder} holds no picture ({', '.join(PICTURE_SUFFIXES)})")

    captions, labels, class_names = None, None, ()
    if conditioning == "label":
        class_names = tuple(sorted({name.split("/")[0] for name in pictures if "/" in name}))
        if outside := [name for name in pictures if "/" not in name]:
            raise ValueError(
                f"{folder}: {_named(outside)} must lie in a sub-folder named after its class"
            )
    if conditioning == "text":
        captions = _folder_captions(folder, found, pictures)

    if split != "all":
        pictures = [name for name in pictures if is_heldout(name) == (split == "heldout")]
        if not pictures:
            raise ValueError(f"{folder} has no picture in its split {split!r}")
    if conditioning == "label":
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = tuple(numbers[name.split("/")[0]] for name in pictures)
    return FolderSource(
        folder,
        tuple(pictures),
        captions,
        labels,
        class_names,
        conditioning == "text",
        max_pixels,
    )


def _folder_captions(folder: Path, found: set[str], pictures: list[str]) -> dict[str, Captions]:
    """The captions of the caption file, by the pictures' names; none may be without a caption."""
    files = [name for name in CAPTION_FILES if name in found]
    listed = read_captions(folder / files[0]) if files else {}
    spelled = {_normalized(name): name for name in pictures}
    if unknown := sorted(listed.keys() - spelled.keys()):
        raise ValueError(
            f"{folder / files[0]} names pictures that are not there: {_named(unknown)}"
        )
    captions = {spelled[name]: texts for name, texts in listed.items()}
    missing = [
        name
        for name in pictures
        if name not in captions and Path(name).with_suffix(".txt").as_posix() not in found
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(pictures)} pictures in {folder} have no caption: "
            f"{_named(missing)}. Write {Path(missing[0]).with_suffix('.txt')} beside it, or a row "
            f"of {' or '.join(CAPTION_FILES)}, or train without text (conditioning label or None)."
        )
    return captions
