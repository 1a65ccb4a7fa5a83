"""Image sets with random access and without TensorFlow: npz files, arrays in memory, mixtures.

A source gives by index `{"image": uint8 [H, W, 3], "key": str}`, and, by what the model is
conditioned on, `"captions": [(text, weight), ...]` or `"label": int`. It raises BrokenExample where
an image cannot be read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from imagen_jax.data.captions import Captions
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import parse
from imagen_jax.storage.wrong_files import refusal

SPLITS = ("train", "pair", "heldout", "all")
HASHED = ("train", "heldout", "all")  # of a set that does not say its splits itself
CONDITIONINGS = {"text": "captions", "label": "label", None: "image"}  # what of an example it reads
HELDOUT_PERCENT = 5
Item = TypeVar("Item")


class BrokenExample(Exception):
    """An image or record that cannot be read. The loader skips and counts it."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key = key


@contextlib.contextmanager
def broken_as(key: str) -> Iterator[None]:
    """What fails within is a BrokenExample of this key, unless it is a library that is missing."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # decoders and file systems raise as many kinds as there are
        raise BrokenExample(key, str(error) or type(error).__name__) from error


@runtime_checkable
class Source(Protocol):
    """Examples by index, in an order that never changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def make_example(key: str, **fields: Any) -> dict[str, Any]:
    """An example with those fields that are not None."""
    return {"key": key} | {name: value for name, value in fields.items() if value is not None}


def is_heldout(key: str) -> bool:
    """Whether a hash of the key falls into the held-out 5 %: the same on every machine."""
    # surrogateescape: names of files are bytes, and not UTF-8 on every disk
    name = unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(name).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELDOUT_PERCENT


def in_split(keys: Iterable[str], split: str) -> np.ndarray:
    """bool [N]: which examples are in a split, of a set that does not say it itself."""
    check_choice("split", split, HASHED)
    heldout = split == "heldout"
    return np.fromiter((split == "all" or is_heldout(key) == heldout for key in keys), bool)


def drawn(items: Iterable[Item], key: Callable[[Item], str]) -> list[Item]:
    """The items in an order that is drawn by a hash of their keys: the first ones are a sample, the
    same whatever else there is.
    """
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())


def check_choice(name: str, value: str | None, choices: Collection[str | None]) -> None:
    """ValueError names what may be chosen."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def check_reading(split: str, conditioning: str | None) -> None:
    """ValueError where these are not arguments that every reader takes."""
    check_choice("split", split, SPLITS)
    check_choice("conditioning", conditioning, CONDITIONINGS)


# ---------------------------------------------------------------------------------- in memory


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory: uint8 [N, H, W, 3], with captions or labels or neither.

    `extra` holds arrays with a row for each image that a model does not see (names, groups).
    `total` counts the images of all splits.
    """

    images: np.ndarray
    captions: Sequence[Captions] | None = None
    labels: np.ndarray | None = None
    keys: Sequence[str] | None = None
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    total: int | None = None

    def __post_init__(self):
        shape, dtype = self.images.shape, self.images.dtype
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8:
            raise ValueError(f"images are {dtype} {list(shape)}; they must be uint8 [N, H, W, 3]")
        for name in ("captions", "labels", "keys"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.images):
                raise ValueError(f"there are {len(rows)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return make_example(
            key=str(index if self.keys is None else self.keys[index]),
            image=self.images[index],
            captions=None if self.captions is None else self.captions[index],
            label=None if self.labels is None else int(self.labels[index]),
        )

    @property
    def weights(self) -> np.ndarray | None:
        """How often each image is drawn beside the others: numbers [N], where the file says it."""
        weights = self.extra.get("weight")
        numbers = weights is not None and weights.ndim == 1 and weights.dtype.kind in "fiu"
        return weights if numbers else None

    def select(self, rows: np.ndarray) -> "ArraySource":
        """The rows of these indices, in their order."""
        return ArraySource(
            self.images[rows],
            None if self.captions is None else [self.captions[row] for row in rows],
            None if self.labels is None else self.labels[rows],
            None if self.keys is None else [self.keys[row] for row in rows],
            {name: values[rows] for name, values in self.extra.items()},
            self.total,
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file; ValueError where it is another kind of file, or damaged."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; it must be an npz file")
    if not path.is_file():
        own = re.fullmatch(r"icons(\d+)\.npz", path.name)
        make = f"; imagen-jax prepare_icons --out {path.parent} makes it"
        raise ValueError(f"there is no file {path}{make if own else ''}")
    try:
        archive = np.load(path)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array; np.savez writes several by name")
        with archive:
            arrays = dict(archive)
        if bytes in map(type, arrays.values()):  # what numpy gives for files of other kinds
            raise ValueError("it holds files that are no arrays")
        for array in arrays.values():
            if array.dtype.kind == "U":
                array.tolist()  # raises where a string has what no character is
        return arrays
    except Exception as error:
        # A damaged file can make zipfile, zlib, the parser of headers and numpy raise anything.
        reason = str(error) or repr(error)
        raise ValueError(refusal(path, "a whole npz file", reason, ("zip",))) from error


def _npz_captions(values: np.ndarray, path: Path) -> list[Captions]:
    """Captions as plain strings, one an image, or as UTF-8 JSON: [[[text, weight], ...], ...]."""
    if values.dtype.kind == "U" and values.ndim == 1:
        return [[(str(text), 1.0)] for text in values]
    try:
        captions = [
            [(text, float(weight)) for text, weight in row] for row in parse(values.tobytes())
        ]
        if not all(row and all(isinstance(text, str) for text, _ in row) for row in captions):
            raise ValueError("an image has no caption, or one that is not a string")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"captions in {path} are {values.dtype} {list(values.shape)}; they must be strings [N],"
            " or the bytes (uint8) of a JSON list with a list of [text, weight] for each image: "
            f"{error}"
        ) from error
    return captions


def _row_array(
    arrays: dict[str, np.ndarray], name: str, kinds: str, path: Path, count: int
) -> np.ndarray | None:
    """Takes an optional array of `count` rows out of `arrays`; `kinds` are numpy's letters."""
    values = arrays.pop(name, None)
    if values is not None and (values.shape != (count,) or values.dtype.kind not in kinds):
        wanted = "strings" if "U" in kinds else "whole numbers"
        raise ValueError(
            f"{name} in {path} is {values.dtype} {list(values.shape)}; it must be {wanted} "
            f"[{count}]"
        )
    return values


def read_npz(
    path: str | Path, split: str = "all", conditioning: str | None = "text"
) -> ArraySource:
    """An npz file with `image` uint8 [N, H, W, 3] and `captions` or `label`.

    Optional: `split` (strings; without it a hash of the keys holds out 5 %), `key`, and `weight`
    (numbers: how often an image is drawn, if the loader is to go by it). Arrays with N rows under
    other names are kept as `extra`. ValueError where there is no such file, or where it is damaged
    or lacks something.
    """
    path = user_path(path)
    check_reading(split, conditioning)
    arrays = read_arrays(path)
    if missing := {"image", CONDITIONINGS[conditioning]} - arrays.keys():
        raise ValueError(f"{path} has no {' and no '.join(sorted(missing))}; it has {list(arrays)}")
    try:
        source = ArraySource(arrays.pop("image"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    count, captions = len(source), arrays.pop("captions", None)
    labels = _row_array(arrays, "label", "iu", path, count) if conditioning == "label" else None
    keys = _row_array(arrays, "key", "USiu", path, count)
    splits = _row_array(arrays, "split", "U", path, count)
    arrays |= {} if splits is None else {"split": splits}  # of `extra`, too
    keys = [str(key) for key in (range(count) if keys is None else keys)]
    source = dataclasses.replace(
        source,
        captions=_npz_captions(captions, path) if conditioning == "text" else None,
        labels=labels,
        keys=keys,
        extra={name: array for name, array in arrays.items() if array.shape[:1] == (count,)},
        total=count,
    )
    if split == "all":
        return source
    own = in_split(keys, split) if splits is None else splits == split
    if not np.any(own):
        raise ValueError(f"{path} has no image in its split {split!r}")
    return source.select(np.flatnonzero(own))


# ------------------------------------------------------------------------------------- mixtures


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureSource:
    """Sets one after the other; `Loader` samples each at its rate, whatever its size.

    rates: positive, in any unit: 3 and 1 are the same as 0.75 and 0.25.
    """

    sources: Sequence[Source]
    rates: Sequence[float]

    def __post_init__(self):
        sets, rates = len(self.sources), self.rates
        above = all(0 < rate < float("inf") for rate in rates)
        require(
            (0 < sets == len(rates), f"there are {len(rates)} rates for {sets} sets"),
            (above, f"the rates of a mixture must be above 0, not {list(rates)}"),
        )

    @functools.cached_property
    def ends(self) -> list[int]:
        """The number of examples up to the end of each source."""
        return np.cumsum([len(source) for source in self.sources]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number][index - (self.ends[number - 1] if number else 0)]
