"""How fast images reach a train step: from tar shards beside bare decoding, and from memory."""

import io
import itertools
import json
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.benchmark.child import Work
from imagen_jax.cascade.stage import Stage
from imagen_jax.data import Loader, read_tar
from imagen_jax.data.sources import ArraySource
from imagen_jax.images.decoding import decode
from imagen_jax.models import TransformerConfig
from imagen_jax.models.t5 import T5Config
from imagen_jax.training import batches, build
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig

SIDE, SHARDS, THREADS = 512, 4, 2
STARTS = (10, 1000)  # steps whose first batch is waited for
BATCHES = 16  # in a call, of images in memory


def synthetic_jpeg(rng: np.random.Generator) -> bytes:
    """Smooth colours with some noise: about 60 KB, as a photo of this size has."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + rng.integers(-8, 9, (SIDE, SIDE, 1), np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_shards(folder: Path, images: int) -> None:
    """The synthetic set as img2dataset would write it: 64 images, each many times over."""
    rng = np.random.default_rng(0)
    files = [synthetic_jpeg(rng) for _ in range(min(64, images))]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for n in range(shard, images, SHARDS):
                note = json.dumps({"width": SIDE, "height": SIDE, "caption": f"image {n}"})
                contents = {"jpg": files[n % len(files)], "txt": b"image", "json": note.encode()}
                for extension, data in contents.items():
                    header = tarfile.TarInfo(f"{n:09d}.{extension}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))


@dataclass
class Loading(Work):
    """A call reads `steps` batches from a fresh iterator. Processor seconds are a share of those
    that also made batches ahead, by the images that were read.
    """

    loader: Loader | None = None
    steps: int = 0

    def timed(self, calls: int = 1) -> dict[str, float]:
        stream, worked = self.loader.batches(0), time.process_time()
        began, read = time.perf_counter(), self.loader.damage.read
        for _ in range(self.steps * calls):
            next(stream)
        seconds = time.perf_counter() - began
        stream.close()
        time.sleep(1)  # batches begun ahead are finished
        share = calls * self.images / (self.loader.damage.read - read)
        return {"seconds": seconds, "processor_seconds": share * (time.process_time() - worked)}


def tar(spec: dict[str, Any]) -> Work:
    """Images from tar shards, of `spec["path"]` or synthetic ones; or only decoded ("bare")."""
    folder = tempfile.TemporaryDirectory()
    if "path" not in spec:
        write_shards(Path(folder.name), spec["images"])
    began = time.perf_counter()
    source = read_tar(spec.get("path", folder.name), conditioning=None)
    facts = {"batch": spec["batch"], "index_seconds": time.perf_counter() - began}
    size = spec["batch"]
    loader = Loader(source, size, spec["resolution"], conditioning=None, num_threads=THREADS)
    steps = min(spec["images"], len(source)) // size
    if not spec.get("bare"):
        work = Loading(list, steps * size, facts, loader=loader, steps=steps)
        work.figures = partial(_waits, loader, folder)
        return work
    kept = loader.source
    files = [
        kept.shards[kept.shard_of(row)].read(offset, offset + length)
        for row, (offset, length) in enumerate(kept.index.spans[: steps * size, 0].tolist())
    ]

    def bare() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(decode, files, chunksize=8):
                pass

    return Work(bare, len(files), facts, figures=lambda: folder.cleanup() or {})


def _waits(loader: Loader, folder: tempfile.TemporaryDirectory) -> dict[str, float]:
    """How long a run that starts at a step waits for its first batch."""
    waits = {}
    for step in STARTS:
        began, stream = time.perf_counter(), loader.batches(step)
        next(stream)
        waits[f"seconds_to_batch_{step}"] = time.perf_counter() - began
        stream.close()
    folder.cleanup()
    return waits


def from_memory(spec: dict[str, Any]) -> Work:
    """Small images in memory through the trainer's own iterator, captions and flips included."""
    network = TransformerConfig(width=64, depth=1, heads=1, patch_size=8)
    stage = Stage("base", spec["resolution"], network, text_width=64)
    config = RunConfig(
        stage,
        DataConfig("memory", flip=True),
        spec["batch"],
        num_steps=1,
        text=TextConfig(T5Config(d_model=64, vocab_size=512), max_length=32),
    )
    shape = (spec["images"], spec["resolution"], spec["resolution"], 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    captions = [[(f"image {n}, of random pixels", 1.0)] for n in range(spec["images"])]
    make = batches.make_batches(
        config, build.make_text_encoder(config), ArraySource(images, captions)
    )
    stream: Iterator[dict[str, np.ndarray]] = make(0, None)
    call = lambda: list(itertools.islice(stream, BATCHES))  # noqa: E731
    facts = {"batch": spec["batch"]}
    return Work(call, BATCHES * spec["batch"], facts, figures=lambda: stream.close() or {})
