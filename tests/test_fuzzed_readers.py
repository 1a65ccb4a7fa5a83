"""Readers of files from outside, given damaged ones: each is read, or refused in words, at once.

A damaged file is made from a sound one: by bytes, or, so that the damage lies deeper than a
checksum, by one value of what the file holds. The seeds are fixed.
"""

import contextlib
import faulthandler
import io
import json
import re
import resource
import shutil
import struct
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np
import pytest
from PIL import Image

from imagen_jax.convert import t5 as convert_t5
from imagen_jax.convert.lora import LoraFile, read_lora, save_lora
from imagen_jax.convert.t5x import load_t5x
from imagen_jax.data.captions import read_captions
from imagen_jax.data.shard_sources import read_tar
from imagen_jax.data.sources import BrokenExample, read_npz
from imagen_jax.data.tar_index import read_members
from imagen_jax.evaluation.prompts import read_prompts
from imagen_jax.images import decoding
from imagen_jax.models import t5
from imagen_jax.models.lora import LoraConfig
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.model_directory import write_model
from imagen_jax.pipeline.shipped import MODEL_FILE
from imagen_jax.storage.layout_files import read_params, write_layout
from imagen_jax.storage.safetensors import save_params
from tests.convert.t5x_writer import t5x_arrays, write_checkpoint
from tests.data.shard_files import write_tar
from tests.tiny_cascade import CASCADE, random_params
from tests.tiny_lora import UNET_STAGE, random_lora, unet_shapes

# That one file may take: a loop over a number in a file, or an array of its size, takes far more.
SECONDS, MEGABYTES = 5.0, 1000
LONGEST = 700  # characters of a refusal, paths and all
SOUND_BEGINNINGS = 0.3  # of a reader's damaged files, at least, must get past its header
T5X_SHAPE = t5.T5Config(vocab_size=12, d_model=8, num_heads=2, head_dim=4, num_layers=2, d_ff=6)


@dataclass(frozen=True)
class Reader:
    """make: writes sound files into an empty folder. read: all of them. vary: one of them, damaged
    in a value that it holds. begins: whether bytes still pass for a file of the kind.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    begins: Callable[[Path], bool]
    vary: Callable[[np.random.Generator, Path], bytes] | None = None


# ------------------------------------------------------------------------------------- damage

NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**400)
ODD_VALUES = (None, True, "", "x", "\0", "a\u2028b", "\ud800", [], {}, [[]], {"a": {}}, [0] * 300)
ODD_VALUES += (1.5, -0.0, 1e308, float("nan"), float("inf"), "../../x", "9" * 5000)
ODD_TEXT = ("[" * 3000, '{"a":' * 3000, "\0", '"', '"""', "\r", ",,,", "\t", "\u2028", "NaN", "-")
ODD_TEXT += ("1e999", "9" * 5000, "\\ud800", "null", "\ufeff", "#", ";", "é", "e\u0301")


def damaged_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three of: bits turned, numbers overwritten, a piece lost, repeated, moved or new."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data) + 1))
        size = int(2 ** rng.uniform(0, 10))
        kind = int(rng.integers(7))
        if kind == 0 and place < len(data):
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            width = int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(NUMBERS[:-1])) % 256**width
            order = str(rng.choice(["little", "big"]))
            data[place : place + width] = number.to_bytes(width, order)
        elif kind == 2:
            del data[place : place + size]
        elif kind == 3:
            data[place:place] = data[place : place + size]
        elif kind == 4:
            data[place : place + size] = rng.bytes(size)
        elif kind == 5:
            data[place:place] = str(rng.choice(ODD_TEXT)).encode("utf-8", "surrogatepass")
        elif kind == 6 and rng.random() < 0.5:
            del data[place:]
    return bytes(data)


def damaged_value(rng: np.random.Generator, value: Any) -> Any:
    """A nested value in which one part, at any depth, is another, missing or there twice."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        names = list(value) if isinstance(value, dict) else list(range(len(value)))
        name = names[int(rng.integers(len(names)))]
        copy = value.copy()
        if rng.random() < 0.1:
            del copy[name]
        elif isinstance(copy, dict) and rng.random() < 0.1:
            copy[str(rng.choice(["", "x", "kind", "../x", "a" * 9000]))] = copy.pop(name)
        else:
            copy[name] = damaged_value(rng, value[name])
        return copy
    if isinstance(value, int | float) and rng.random() < 0.7:
        return NUMBERS[int(rng.integers(len(NUMBERS)))] * int(rng.choice([1, -1]))
    if isinstance(value, bytes):
        return damaged_bytes(rng, value)
    return ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]


def vary_json(rng: np.random.Generator, path: Path) -> bytes:
    value = damaged_value(rng, json.loads(path.read_bytes()))
    return json.dumps(value).encode()


def vary_tensors(rng: np.random.Generator, path: Path) -> bytes:
    """A safetensors file with another header, or an index of shards."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return vary_json(rng, path)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(damaged_value(rng, json.loads(data[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def vary_zip(rng: np.random.Generator, path: Path) -> bytes:
    """A zip file with one member damaged, and its checksums right."""
    new, old = io.BytesIO(), zipfile.ZipFile(path)
    names = old.namelist()
    chosen = names[int(rng.integers(len(names)))]
    with zipfile.ZipFile(new, "w") as archive:
        for name in names:
            data = old.read(name)
            if name == chosen:  # the array's header most of the time
                head = data[:128] if rng.random() < 0.7 else data
                data = damaged_bytes(rng, head) + data[len(head) :]
            archive.writestr(name, data)
    return new.getvalue()


def vary_t5x(rng: np.random.Generator, path: Path) -> bytes:
    if path.name == ".zarray":
        return vary_json(rng, path)
    if path.name != "checkpoint":
        return damaged_bytes(rng, path.read_bytes())
    tree = msgpack.unpackb(path.read_bytes(), ext_hook=msgpack.ExtType)
    with contextlib.suppress(OverflowError, UnicodeEncodeError):  # what msgpack cannot say
        return msgpack.packb(damaged_value(rng, tree))
    return damaged_bytes(rng, path.read_bytes())


def vary_lines(rng: np.random.Generator, path: Path) -> bytes:
    """A list with one row damaged: its columns, its quotes, or its JSON values."""
    lines = path.read_text("utf-8").split("\n")
    row = int(rng.integers(len(lines) - 1))
    if path.suffix == ".jsonl" and rng.random() < 0.5:
        lines[row] = json.dumps(damaged_value(rng, json.loads(lines[row])))
    else:
        place = int(rng.integers(len(lines[row]) + 1))
        lines[row] = lines[row][:place] + str(rng.choice(ODD_TEXT)) + lines[row][place:]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------ readers


def succeeds(function: Callable[[Path], Any]) -> Callable[[Path], bool]:
    def check(path: Path) -> bool:
        try:
            return bool(function(path))
        except Exception:
            return False

    return check


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    exif = photo.getexif()
    exif[274] = 6
    for kind in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "avif", "jp2"):
        with contextlib.suppress(KeyError, OSError):  # of a Pillow without the library
            photo.save(folder / f"photo.{kind}", exif=exif)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png", transparency=3)
    shades = np.arange(768, dtype=np.uint16).reshape(24, 32) * 80
    Image.fromarray(shades).save(folder / "deep.png")


def read_images(folder: Path) -> None:
    for path in folder.iterdir():
        decoding.size(path.read_bytes())
        decoding.decode(path)


def make_tar(folder: Path) -> None:
    write_tar(folder / "shard.tar", range(6), "PNG")


def read_shard(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder.parent / "index")
    source = read_tar(folder / "shard.tar", measure=True, index_dir=folder.parent / "index")
    for index in range(len(source)):
        with contextlib.suppress(BrokenExample):
            source[index]


def tar_begins(path: Path) -> bool:
    with path.open("rb") as file:
        return any(not member.fault for member in read_members(file, path.stat().st_size))


CSV = 'file,caption,weight\na.png,"a cat, asleep",1\nb.png,"said ""no""",2.5\nç.png,ein Hund,\n'
JSONL = '{"file": "a.png", "caption": ["a cat", "asleep"]}\n{"file_name": "b", "text": "犬"}\n'
PROMPTS = 'Prompts,Category,id\na red cube,Colors,1\n"a cup, blue",Count,2\n'


def make_lists(folder: Path) -> None:
    (folder / "captions.csv").write_text(CSV, "utf-8")
    (folder / "captions.jsonl").write_text(JSONL, "utf-8")
    (folder / "prompts.csv").write_text(PROMPTS, "utf-8")
    (folder / "prompts.tsv").write_text("Prompt\tCategory\na dog\tAnimals\nan owl\tBirds\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "a dog"}\n{"prompt": "an owl", "id": "7"}\n')
    (folder / "prompts.txt").write_text("a dog\nan owl\n")


def read_lists(folder: Path) -> None:
    for path in sorted(folder.glob("captions.*")):
        read_captions(path)
    for path in sorted(folder.glob("prompts.*")):
        read_prompts(str(path))


def make_tensors(folder: Path) -> None:
    save_params(folder, "whole", random_params(CASCADE)["base"], dtype=None)
    save_params(folder, "parts", random_params(CASCADE)["base"], max_shard_bytes=9_000)


def read_tensors(folder: Path) -> None:
    for name in ("whole", "parts"):
        read_params(folder, name, BASE_SHAPES)


def tensors_begin(path: Path) -> bool:
    data = path.read_bytes()
    if path.suffix == ".json":
        return bool(json.loads(data))
    (length,) = struct.unpack("<Q", data[:8])
    return isinstance(json.loads(data[8 : 8 + length]), dict)


def make_model(folder: Path) -> None:
    write_model(folder, CASCADE, random_params(CASCADE))


def make_t5x(folder: Path) -> None:
    params = jax.tree.map(np.asarray, t5.init(T5X_SHAPE, jax.random.key(0)))
    arrays = t5x_arrays(write_layout(convert_t5.encoder_layout(T5X_SHAPE), params), scanned=False)
    write_checkpoint(folder / "checkpoint_1", arrays, partitioned=True)


def t5x_begins(path: Path) -> bool:
    data = path.read_bytes()
    if path.name == ".zarray":
        return bool(json.loads(data))
    if path.name != "checkpoint":
        return data[:2] == b"\x1f\x8b"  # gzip
    return isinstance(msgpack.unpackb(data, ext_hook=msgpack.ExtType), dict)


LORA = LoraConfig(rank=2)
SHAPES = unet_shapes()
BASE_SHAPES = jax.eval_shape(lambda: random_params(CASCADE)["base"])


def make_lora(folder: Path) -> None:
    save_lora(folder / "lora.safetensors", UNET_STAGE, random_lora(SHAPES, LORA), LORA)


def make_npz(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 4, 4, 3), np.uint8)
    captions = np.frombuffer(json.dumps([[["a", 1.0]]] * 5).encode(), np.uint8)
    np.savez(folder / "set.npz", image=images, captions=captions, split=np.array(["train"] * 5))
    np.savez_compressed(folder / "plain.npz", image=images, captions=np.array(list("abcde")))


def read_sets(folder: Path) -> None:
    for path in folder.iterdir():
        read_npz(path)


READERS = {
    "image": Reader(
        make_images, read_images, succeeds(lambda path: decoding.size(path.read_bytes())[0])
    ),
    "tar": Reader(make_tar, read_shard, succeeds(tar_begins)),
    "lists": Reader(make_lists, read_lists, succeeds(lambda path: path.read_text()), vary_lines),
    "safetensors": Reader(make_tensors, read_tensors, succeeds(tensors_begin), vary_tensors),
    "model.json": Reader(
        make_model,
        lambda folder: next(iter(load_model(folder).params.values())),
        succeeds(lambda path: json.loads(path.read_bytes())),
        vary_json,
    ),
    "T5X": Reader(
        make_t5x, lambda folder: load_t5x(folder / "checkpoint_1"), succeeds(t5x_begins), vary_t5x
    ),
    "LoRA": Reader(
        make_lora,
        lambda folder: read_lora(LoraFile(folder / "lora.safetensors"), UNET_STAGE, SHAPES),
        succeeds(tensors_begin),
        vary_tensors,
    ),
    "npz": Reader(
        make_npz, read_sets, succeeds(lambda path: zipfile.ZipFile(path).namelist()), vary_zip
    ),
}
# Of a model directory only the description: its tensors are safetensors.
DAMAGED = {"model.json": MODEL_FILE}


# --------------------------------------------------------------------------------------- tests


def reset_peak() -> None:
    """Makes the kernel forget how much memory this process has held at most."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    with contextlib.suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(name: str, count: int, folder: Path) -> Counter:
    """What became of `count` damaged files: {"read", "refused", "past the header"}."""
    reader, rng, outcomes = READERS[name], np.random.default_rng(7), Counter()
    sound = folder / "sound"
    sound.mkdir()
    reader.make(sound)
    reader.read(sound)  # also compiles and imports
    files = sorted(path for path in sound.rglob(DAMAGED.get(name, "*")) if path.is_file())
    sizes = np.array([path.stat().st_size for path in files], float)
    for number in range(count):
        path = files[int(rng.choice(len(files), p=sizes**0.5 / np.sum(sizes**0.5)))]
        content = path.read_bytes()
        deep = reader.vary is not None and rng.random() < 0.6
        damaged = reader.vary(rng, path) if deep else damaged_bytes(rng, content)
        path.write_bytes(damaged)
        case = f"{name} {number}, {path.name}"
        try:
            outcomes["past the header"] += reader.begins(path)
            reset_peak()
            said = "read"
            # Of this thread: earlier tests may have left one that compiles.
            before, began = peak_megabytes(), time.thread_time()
            faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
            try:
                reader.read(sound)
            except (ValueError, BrokenExample) as error:
                outcomes["refused"] += 1
                said = str(error)
            except Exception as error:
                pytest.fail(f"{case}: {type(error).__name__}: {error}")
            else:
                outcomes["read"] += 1
            seconds, held = time.thread_time() - began, peak_megabytes() - before
            assert 0 < len(said.strip()) < LONGEST, f"{case}: {said[: 3 * LONGEST]}"
            assert seconds < SECONDS, f"{case}: {seconds:.1f} s"
            assert held < MEGABYTES, f"{case}: {held:.0f} MB"
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.write_bytes(content)
    return outcomes


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("count", [25, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(
    name: str, count: int, tmp_path: Path, record_property: Callable[[str, object], None]
):
    outcomes = fuzz(name, count, tmp_path)
    record_property(f"{name}, {count} damaged files", dict(outcomes))
    assert outcomes["past the header"] >= SOUND_BEGINNINGS * count
    assert outcomes["read"] + outcomes["refused"] == count
