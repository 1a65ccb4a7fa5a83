"""How fast images are read from tar shards, compared with only decoding the same files.

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --path 'gs://bucket/{00000..00009}.tar' --resolution 64

Without --path it first writes 2,000 synthetic JPEGs of 512x512 pixels as webdataset shards. Both
sides use the same number of threads and take turns, so that other work on the machine slows both.
Prints one JSON object: for each side the best of the rounds in images a second, and their ratio;
the same ratio by processor seconds, which other programs disturb less; and how long a run that
starts at step 10, or at step 1,000, waits for its first batch. The time for the index, which is
made once, is given separately.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.commands.command_line import count, make_parser, run_parsed
from imagen_jax.images.decoding import decode

SIDE, IMAGES, SHARDS = 512, 2000, 4
STEPS = (10, 1000)


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--path", help="tar shards of your own")
    add("--index_dir", help="where their index is kept")
    add("--resolution", type=count, default=256, help="that the loader makes of the images")
    add("--batch_size", type=count, default=50, help="images in a batch")
    add("--images", type=count, default=IMAGES, help="read in each round")
    add("--threads", type=count, default=2, help="of each side")
    add("--rounds", type=count, default=5, help="of which the best counts")
    return parse


def synthetic_jpeg(rng: np.random.Generator) -> bytes:
    """Smooth colours with some noise: about 60 KB, as a photo of this size has."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + rng.integers(-8, 9, (SIDE, SIDE, 1), np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_shards(folder: Path) -> None:
    """The synthetic set as img2dataset would write it: 64 images, each many times over."""
    rng = np.random.default_rng(0)
    files = [synthetic_jpeg(rng) for _ in range(64)]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for n in range(shard, IMAGES, SHARDS):
                note = json.dumps({"width": SIDE, "height": SIDE, "caption": f"image {n}"})
                contents = {"jpg": files[n % 64], "txt": b"image %d" % n, "json": note.encode()}
                for extension, data in contents.items():
                    header = tarfile.TarInfo(f"{n:09d}.{extension}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    began, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - worked


def measure(options: argparse.Namespace, path: str) -> dict[str, float]:
    from imagen_jax.data import Loader, read_tar

    began = time.perf_counter()
    source = read_tar(path, conditioning=None, index_dir=options.index_dir)
    index_seconds = time.perf_counter() - began
    size, threads = options.batch_size, options.threads
    loader = Loader(source, size, options.resolution, conditioning=None, num_threads=threads)
    steps = min(options.images, len(source)) // size
    count, kept = steps * size, loader.source
    files = [
        kept.shards[kept.shard_of(row)].read(offset, offset + length)
        for row, (offset, length) in enumerate(kept.index.spans[:count, 0].tolist())
    ]

    def bare() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, files, chunksize=8))

    def load(start: int = 0, number: int = steps) -> tuple[float, float]:
        batches, worked, read = loader.batches(start), time.process_time(), loader.damage.read
        seconds, _ = timed(lambda: [next(batches) for _ in range(number)])
        batches.close()
        time.sleep(1)  # batches begun ahead are finished
        made = (loader.damage.read - read) / (number * loader.batch_size)
        return seconds, (time.process_time() - worked) / made

    timed(bare), load()
    rounds = [(timed(bare), load()) for _ in range(options.rounds)]
    decoding, loading = (np.min(times, axis=0) for times in zip(*rounds, strict=True))
    waits = np.min([[load(step, 1)[0] for step in STEPS] for _ in range(options.rounds)], axis=0)
    return {
        "images": count,
        "index_seconds": round(index_seconds, 2),
        "decode_images_per_second": round(count / decoding[0], 1),
        "loader_images_per_second": round(count / loading[0], 1),
        "ratio": round(decoding[0] / loading[0], 3),
        "ratio_of_processor_seconds": round(decoding[1] / loading[1], 3),
        **{f"seconds_to_batch_{s}": round(t, 4) for s, t in zip(STEPS, waits, strict=True)},
    }


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if options.path is None:
            write_shards(Path(folder))
        print(json.dumps(measure(options, options.path or folder), indent=1))


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)
