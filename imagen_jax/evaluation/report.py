"""What an evaluation writes down: everything that decides its numbers, and images to look at."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from PIL import Image

from imagen_jax import __version__
from imagen_jax.images.grid import enlarge, image_grid
from imagen_jax.images.pixels import resize, to_pil
from imagen_jax.storage.atomic import written_whole
from imagen_jax.typing import Params

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow")
SHEET_IMAGES, SHEET_SIDE = 64, 256  # on a sheet: how many images, and their pixels at most
EVERY = 15.0  # seconds between progress lines where the output is no terminal


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that numbers may depend on."""
    installed = {name: metadata.version(name) for name in LIBRARIES}
    return {"imagen_jax": __version__, "python": platform.python_version(), **installed}


def device() -> dict[str, Any]:
    """Where JAX computes."""
    devices = jax.devices()
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def fingerprint(params: Mapping[str, Params]) -> str:
    """Some digits that change when any parameter does, for a model that was not saved as one."""
    digest = hashlib.sha256()
    for part in sorted(params):
        for path, leaf in jax.tree.leaves_with_path(params[part]):
            digest.update(f"{part}{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()[:16]


def write_report(path: Path, report: dict[str, Any]) -> None:
    """JSON, written whole or not at all."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(path) as file:
        file.write_text(text, encoding="utf-8")


def side_by_side(images: Sequence[np.ndarray], gap: int = 2) -> Image.Image:
    """Images of one thing in a row, the small ones enlarged pixel for pixel."""
    width = max(image.shape[1] for image in images)
    enlarged = [enlarge(to_pil(image), width) for image in images]
    row = Image.new("RGB", (len(images) * (width + gap) - gap, enlarged[0].height), "white")
    for place, image in enumerate(enlarged):
        row.paste(image, (place * (width + gap), 0))
    return row


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str], columns: int = 8
) -> Image.Image:
    """The first images of an evaluation, each beside the true one; large ones shrunk."""
    shown = [side_by_side([_shrink(image) for image in row]) for row in rows[:SHEET_IMAGES]]
    return image_grid(shown, list(captions[:SHEET_IMAGES]), columns=columns, min_cell=128)


def _shrink(image: np.ndarray) -> np.ndarray:
    return resize(image, SHEET_SIDE) if min(image.shape[:2]) > SHEET_SIDE else image


class ProgressLine:
    """How much is done and when it will be: one line, rewritten in a terminal, else now and then.

    The first part is left out of the rate: it compiles.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None):
        self.what, self.total = what, total
        self.stream = sys.stderr if stream is None else stream
        self.begin = self.shown = time.monotonic()
        self.done = self.first = 0
        self.first_seconds = 0.0

    def advance(self, count: int) -> None:
        """`count` more are done."""
        now = time.monotonic()
        self.done += count
        if not self.first:
            self.first, self.first_seconds = self.done, now - self.begin
        finished = self.done >= self.total
        terminal = self.stream.isatty()
        if terminal or finished or now - self.shown >= EVERY:
            self.shown = now
            end = "\r" if terminal and not finished else "\n"
            print(f"{self.text(now):<79}", end=end, file=self.stream, flush=True)

    def text(self, now: float) -> str:
        line = f"{self.what}: {self.done}/{self.total}"
        seconds = now - self.begin
        if self.done >= self.total:
            return f"{line} in {clock(seconds)}"
        if self.done > self.first:
            rate = (self.done - self.first) / max(seconds - self.first_seconds, 1e-9)
        else:
            rate = self.done / max(seconds, 1e-9)
        return f"{line}, {rate:.2f}/s, ETA {clock((self.total - self.done) / rate)}"


def clock(seconds: float | int) -> str:
    """75 s as 1:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
