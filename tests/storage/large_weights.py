"""Random bf16 weights of any size as sharded safetensors, and the memory that reading them takes.

`tensor_shapes(layout, shapes)` gives the files' tensors for any model that has a layout;
`write_shards` writes them without holding more than a few MiB; `run_reader` runs a program that
reads them in a process of its own, and returns what it printed.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagen_jax.storage import layout
from imagen_jax.storage.trees import flatten

BLOCK = 2**22  # random numbers that are written over and over
SHARD_BYTES = 2 * 10**9

# Comes after the lines that leave `params`, `files` and `layout` behind.
REPORT = """
import json, time
import jax, numpy as np
from imagen_jax.storage.trees import flatten
took = time.monotonic() - start
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
flat = flatten(params)
size = sum(value.nbytes for value in flat.values())


def theirs(value, tensors):
    part = np.asarray(value[-1] if tensors.join == "stack" else value)
    if tensors.axes is None:
        return part
    lacking = len(tensors.axes) - part.ndim  # a 1x1 convolution's height and width
    return part.reshape((1,) * lacking + part.shape).transpose(np.argsort(tensors.axes))


looked_at = [(flat[path], tensors) for path, tensors in list(layout.items())[::3]]
equal = all(
    np.array_equal(theirs(value, tensors), files[tensors.names[-1]][()])
    for value, tensors in looked_at
)
kinds = sorted({str(value.dtype) for value in flat.values()})
print(json.dumps({"peak": int(peak[0]) * 1024, "params": size, "seconds": took,
                  "equal": bool(equal), "dtypes": kinds}))
"""


def tensor_shapes(table: layout.Layout, shapes: Any) -> dict[str, tuple[int, ...]]:
    """The files' tensors, by name, of a model whose parameters have these shapes."""
    return layout.tensor_shapes(table, {p: leaf.shape for p, leaf in flatten(shapes).items()})


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], block: np.ndarray) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for number, shape in enumerate(shapes.values()):
            left = math.prod(shape)
            rolled = np.roll(block, 7919 * number)  # no two tensors alike
            while left > 0:
                file.write(rolled[:left].data)
                left -= len(rolled)


def write_shards(
    directory: Path, name: str, shapes: dict[str, tuple[int, ...]], shard_bytes: int = SHARD_BYTES
) -> int:
    """Writes random bf16 tensors of these shapes, with an index; the bytes written.

    Skips the test where the disk has no room for them.
    """
    needed = 2 * sum(math.prod(shape) for shape in shapes.values())
    free = shutil.disk_usage(directory).free
    if free < needed + 2 * 10**9:
        pytest.skip(f"the weights take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free")
    # Finite numbers of either sign, around 1e-2: exponents of bf16 from 112 to 127.
    bits = np.random.default_rng(0).integers(0, 2**16, BLOCK, np.uint16)
    block = (bits & 0x87FF) | (0x7 << 11)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard_bytes
    for tensor, shape in shapes.items():
        if room < 2 * math.prod(shape) and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][tensor] = shape
        room -= 2 * math.prod(shape)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"{name}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, shard, block)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    (directory / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return needed


def run_reader(program: str, *arguments: str) -> dict[str, Any]:
    """Runs a program that leaves `start`, `params`, `files` and `layout`; what REPORT prints.

    Its own process has one CPU device, as a user's does.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program + REPORT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
