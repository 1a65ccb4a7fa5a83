"""How fast images are read from tar shards, beside Pillow decoding the same files and no more.

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --path 'gs://bucket/{00000..00009}.tar' --resolution 64

Without --path it writes 2,000 synthetic JPEGs of 512x512 pixels as webdataset shards first. Both
sides use the same threads and take turns, so that what else the machine does falls on both. Prints
one JSON object: the best of the rounds in images a second for each side and their ratio, the same
ratio by processor seconds, which other programs disturb less, and how long a run waits for its
first batch that begins at step 10 and at step 1,000. The time for the index, which is made once, is
counted apart.
"""

import argparse
import io
import json
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from imagen_jax.commands.command_line import one_line_errors
from imagen_jax.data import Loader, read_tar

SIDE, IMAGES, SHARDS = 512, 2000, 4
STEPS = (10, 1000)


def synthetic_jpeg(rng: np.random.Generator) -> bytes:
    """Smooth colours with some noise: about 60 KB, as a photo of this size has."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + rng.integers(-8, 9, (SIDE, SIDE, 1), np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_shards(folder: pathlib.Path) -> None:
    """The synthetic set as img2dataset would write it. 64 images, each many times over."""
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


def decode(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    began, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - worked


def measure(arguments: argparse.Namespace, path: str) -> dict[str, float]:
    began = time.perf_counter()
    source = read_tar(path, conditioning=None, index_dir=arguments.index_dir)
    index_seconds = time.perf_counter() - began
    loader = Loader(
        source,
        arguments.batch_size,
        arguments.resolution,
        conditioning=None,
        num_threads=arguments.threads,
    )
    steps = min(arguments.images, len(source)) // arguments.batch_size
    count = steps * arguments.batch_size
    kept = loader.source
    files = [
        kept.shards[kept.shard_of(row)].read(offset, offset + size)
        for row, (offset, size) in enumerate(kept.index.spans[:count, 0].tolist())
    ]

    def bare() -> None:
        with ThreadPoolExecutor(arguments.threads) as pool:
            list(pool.map(decode, files, chunksize=8))

    def load(start: int = 0, number: int = steps) -> tuple[float, float]:
        batches, worked, read = loader.batches(start), time.process_time(), loader.damage.read
        seconds, _ = timed(lambda: [next(batches) for _ in range(number)])
        batches.close()
        time.sleep(1)  # what has been begun ahead comes to its end
        made = (loader.damage.read - read) / (number * loader.batch_size)
        return seconds, (time.process_time() - worked) / made

    timed(bare), load()
    rounds = [(timed(bare), load()) for _ in range(arguments.rounds)]
    decoding, loading = (np.min(times, axis=0) for times in zip(*rounds, strict=True))
    waits = np.min([[load(step, 1)[0] for step in STEPS] for _ in range(arguments.rounds)], axis=0)
    return {
        "images": count,
        "index_seconds": round(index_seconds, 2),
        "decode_images_per_second": round(count / decoding[0], 1),
        "loader_images_per_second": round(count / loading[0], 1),
        "ratio": round(decoding[0] / loading[0], 3),
        "ratio_of_processor_seconds": round(decoding[1] / loading[1], 3),
        **{f"seconds_to_batch_{s}": round(t, 4) for s, t in zip(STEPS, waits, strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", help="tar shards of your own")
    parser.add_argument("--index_dir", help="where their index is kept")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--images", type=int, default=IMAGES, help="read in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with one_line_errors(ValueError), tempfile.TemporaryDirectory() as folder:
        if arguments.path is None:
            write_shards(pathlib.Path(folder))
        print(json.dumps(measure(arguments, arguments.path or folder), indent=1))
