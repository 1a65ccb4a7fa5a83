"""How fast images reach a train step: from tar shards beside bare decoding, and from memory."""

import io
import itertools
import json
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax.benchmark.child import Work
from imagen_jax.cascade.stage import Stage
from imagen_jax.data import Loader, read_tar
from imagen_jax.data.sources import ArraySource
from imagen_jax.devices.sharding import make_mesh
from imagen_jax.images.decoding import decode
from imagen_jax.models import TransformerConfig
from imagen_jax.models.t5 import T5Config
from imagen_jax.training import batches, build
from imagen_jax.training.feed import Feed
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig

SIDE, SHARDS, THREADS = 512, 4, 2
STARTS = (10, 1000)  # steps whose first batch is waited for
BATCHES = 16  # in a call, more than are made ahead
FORMS = ("face {}, {} style", "红心{}，{}风格")
STYLES = ("flat", "3d", "outline", "classic")


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
class Input(Work):
    """A call takes `BATCHES` batches of a stream that is made ahead."""

    def timed(self, calls: int = 1) -> dict[str, float]:
        self.call()  # what was made while nothing was timed
        spent = super().timed(calls)
        time.sleep(1)  # what is made ahead is finished before another side is timed
        return spent


def tar(spec: dict[str, Any]) -> Work:
    """Images from tar shards, of `spec["path"]` or synthetic ones; or only decoded ("bare")."""
    folder = tempfile.TemporaryDirectory()
    if "path" not in spec:
        write_shards(Path(folder.name), spec["images"])
    began = time.perf_counter()
    source = read_tar(spec.get("path", folder.name), conditioning=None)
    facts = {"batch": spec["batch"], "index_seconds": time.perf_counter() - began}
    loader = Loader(
        source, spec["batch"], spec["resolution"], conditioning=None, num_threads=THREADS
    )
    if not spec.get("bare"):
        stream = loader.batches()
        call = lambda: list(itertools.islice(stream, BATCHES))  # noqa: E731
        figures = partial(_waits, loader, folder)
        return Input(call, BATCHES * spec["batch"], facts, figures=figures)
    kept = loader.source
    files = [
        kept.shards[kept.shard_of(row)].read(offset, offset + length)
        for row, (offset, length) in enumerate(kept.index.spans[: spec["images"], 0].tolist())
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


def captioned_noise(count: int, side: int) -> ArraySource:
    """uint8 noise [count, side, side, 3]; each image has a weight, and a caption for each style and
    language, as icons have.
    """
    rng = np.random.default_rng(0)
    forms = [form.format("{}", style) for form in FORMS for style in STYLES]
    return ArraySource(
        rng.integers(0, 256, (count, side, side, 3), np.uint8),
        [[(form.format(number), 1.0) for form in forms] for number in range(count)],
        extra={"weight": rng.uniform(0.2, 1.0, count)},
    )


def memory(spec: dict[str, Any]) -> Work:
    """Small images in memory by the trainer's own iterator, captions, weights and flips included:
    sent to the devices, or taken out of a set that lies on them ("on_device").
    """
    network = TransformerConfig(width=64, depth=1, heads=1, patch_size=8)
    data = DataConfig("memory", flip=True, weights=True, on_device=spec["on_device"])
    text = TextConfig(T5Config(d_model=64, vocab_size=512), max_length=32)
    stage = Stage("base", spec["resolution"], network, text_width=64)
    config = RunConfig(stage, data, spec["batch"], num_steps=1, text=text)
    source, mesh = captioned_noise(spec["images"], spec["resolution"]), make_mesh(config.mesh)
    made = batches.make_batches(config, build.make_text_encoder(config), source, mesh=mesh)
    feed = Feed(made, 0, None, (), mesh)

    def call() -> None:
        for _ in range(BATCHES):
            jax.block_until_ready(feed.next())

    return Input(call, BATCHES * spec["batch"], {"batch": spec["batch"]})
