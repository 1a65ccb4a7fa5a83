"""A tar with every kind of broken member: good pairs arrive, bad ones are counted and named."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from struct import pack

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import Loader, read_tar
from imagen_jax.data.sources import BrokenExample
from tests.data.shard_files import add, grey, image

GOOD = image(100)


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def bomb() -> bytes:
    """100 megapixels in some hundred kilobytes, whole and right but for its size."""
    data = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(data, "JPEG", quality=5)
    return data.getvalue()


def pair(stem: str, image: bytes = GOOD, text: bytes = b"a caption", suffix: str = "jpg"):
    return lambda tar: (add(tar, f"{stem}.{suffix}", image), add(tar, f"{stem}.txt", text))


def special(name: str, kind: bytes, target: str = ""):
    """A member that is no file under an image's name, with its caption."""

    def write(tar: tarfile.TarFile) -> None:
        header = tarfile.TarInfo(f"{name}.jpg")
        header.type, header.linkname = kind, target
        tar.addfile(header)
        add(tar, f"{name}.txt", b"a caption")

    return write


def with_json(stem: str, note: bytes):
    return lambda tar: (pair(stem)(tar), add(tar, f"{stem}.json", note))


def with_header(name: str, change):
    """A pair whose image's header block is changed; `change` gets and gives its bytes."""

    def write(tar: tarfile.TarFile) -> None:
        header = tarfile.TarInfo(f"{name}.jpg")
        header.size = len(GOOD)
        block = change(bytearray(header.tobuf(tarfile.GNU_FORMAT)))
        tar.fileobj.write(bytes(block) + GOOD + bytes(-len(GOOD) % 512))
        tar.offset = tar.fileobj.tell()
        add(tar, f"{name}.txt", b"a caption")

    return write


def resummed(block: bytearray) -> bytearray:
    """The header with a checksum that is right."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def put(start: int, value: bytes, sum_it: bool = True):
    def change(block: bytearray) -> bytearray:
        block[start : start + len(value)] = value
        return resummed(block) if sum_it else block

    return change


def pax(name: str, records: bytes):
    """A pair whose image has this extended header before it."""

    def write(tar: tarfile.TarFile) -> None:
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(records)
        tar.fileobj.write(header.tobuf() + records + bytes(-len(records) % 512))
        tar.offset = tar.fileobj.tell()
        pair(name)(tar)

    return write


def grey_bits(value: float) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.float32)).save(data, "TIFF")
    return data.getvalue()


def twice(tar: tarfile.TarFile) -> None:
    pair("b37", image(7))(tar)
    add(tar, "b37.jpg", GOOD)


# What is broken -> how it is written, and what is said of it.
BROKEN = {
    "truncated jpeg": (pair("b01", image(9, (99, 99))[:700]), "truncated"),
    "jpeg header alone": (pair("b02", GOOD[:20]), ""),
    "no bytes": (pair("b03", b""), "no image of a known format"),
    "zeros": (pair("b04", bytes(1000)), "no image of a known format"),
    "noise": (pair("b05", bytes(range(256)) * 4), "no image of a known format"),
    "text as jpg": (pair("b06", b"<html>404 not found</html>"), "no image of a known format"),
    "100 megapixels": (pair("b07", bomb()), "are more than the"),
    "a png of 10^10 pixels": (pair("b08", png_of(100_000, 100_000), suffix="png"), "pixels"),
    "a png that ends early": (pair("b09", png_of(3000, 3000), suffix="png"), "truncated"),
    "a png with a bad checksum": (
        pair("b10", image(1, kind="PNG")[:-30] + bytes(30), suffix="png"),
        "",
    ),
    "truncated webp": (pair("b11", image(1, (200, 99), "WEBP")[:-90], suffix="webp"), ""),
    "grey of no known range": (pair("b12", grey_bits(9.0), suffix="tif"), "floating-point grey"),
    "postscript": (pair("b13", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "format"),
    "svg": (pair("b14", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "known format"),
    "no caption": (lambda tar: add(tar, "b15.jpg", GOOD), "has no text"),
    "empty caption": (pair("b16", text=b""), "caption is empty"),
    "blank caption": (pair("b17", text=b" \n\t"), "caption is empty"),
    "caption not in UTF-8": (pair("b18", text=b"caf\xe9"), "not in UTF-8"),
    "caption in UTF-16": (pair("b19", text="caption".encode("utf-16")), "not in UTF-8"),
    "a caption of megabytes": (pair("b20", text=b"word " * 500_000), "more than 1,048,576"),
    "no image": (lambda tar: add(tar, "b21.txt", b"a caption"), "no image, only txt"),
    "another extension": (pair("b22", suffix="exe"), "no image, only exe, txt"),
    "a backup's extension": (pair("b23", suffix="jpg~"), "no image"),
    "a name that climbs": (pair("../../b24"), "leads out of the archive"),
    "an absolute name": (pair("/tmp/b25"), "leads out of the archive"),
    "a name that climbs by backslashes": (pair("..\\b26"), "leads out of the archive"),
    "a link": (special("b27", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "a hard link": (special("b28", tarfile.LNKTYPE, "g00.jpg"), "is a hard link"),
    "a device": (special("b29", tarfile.CHRTYPE), "is a device"),
    "a pipe": (special("b30", tarfile.FIFOTYPE), "is a pipe"),
    "an unknown type": (with_header("b31", put(156, b"Z")), "unknown type"),
    "a sparse file": (with_header("b32", put(156, b"S")), "sparse file"),
    "a sparse file by pax": (pax("b33", b"22 GNU.sparse.major=1\n"), "sparse file"),
    "json that is none": (with_json("b34", b'{"width": 12'), "is not JSON"),
    "json that is a list": (with_json("b35", b"[1, 2]"), "not a JSON object"),
    "json of many levels": (with_json("b36", b"[" * 100_000), ""),
    "the same name twice": (twice, "comes twice"),
}
# Whose header cannot be read: the pair's caption stays behind alone, and so two are counted.
LOST = {
    "a bad checksum": with_header("l01", put(10, b"x", sum_it=False)),
    "a header of noise": with_header("l02", lambda block: bytes(range(256)) * 2),
    "a negative size": with_header("l03", put(124, b"\xff" * 12)),
    "a size that is no number": with_header("l04", put(124, b"12banana345\0")),
    "a size past the end": with_header("l05", put(124, b"77777777777\0")),
    "a pax header of gigabytes": with_header("l06", put(124, b"17777777777\0" + b" " * 20 + b"x")),
    "a long name of gigabytes": with_header("l07", put(124, b"17777777777\0" + b" " * 20 + b"L")),
}
FINE = {
    "a long GNU name": "x" * 300,
    "a folder in its name": "some/folder/name",
    "a name in Chinese": "图片",
    "a name after ./": "./dotted",
}


def write_good(tar: tarfile.TarFile, number: int) -> None:
    kind = ("JPEG", "PNG", "WEBP")[number % 3]
    suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    pair(f"g{number:02d}", image(number * 2, kind=kind), b"grey %d" % number, suffix)(tar)


@pytest.fixture(scope="module")
def broken_tar(tmp_path_factory):
    """A good pair, a broken one, a good pair, ...; at the end a member that is cut off."""
    path = tmp_path_factory.mktemp("broken") / "00000.tar"
    kinds = [write for write, _ in BROKEN.values()] + list(LOST.values())
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, write in enumerate(kinds):
            write_good(tar, number)
            write(tar)
        for name in FINE.values():
            pair(name, image(200))(tar)
        write_good(tar, len(kinds))
        add(tar, "._g00.jpg", b"AppleDouble")
        add(tar, "z99.jpg", GOOD * 9)
        end = tar.offset
    os.truncate(path, end - 2000)
    return path


def test_good_pairs_arrive_and_bad_ones_are_counted(broken_tar):
    source = read_tar(broken_tar)
    good, broken = {}, {}
    for row in range(len(source)):
        try:
            example = source[row]
            good[example["key"]] = example["captions"][0][0], grey(example["image"])
        except BrokenExample as error:
            broken[error.key] = str(error)
    kinds = len(BROKEN) + len(LOST)
    assert kinds >= 40
    for number in range(kinds + 1):
        caption, shade = good.pop(f"00000.tar/g{number:02d}")
        assert caption == f"grey {number}"
        assert abs(shade - number * 2) <= 1
    assert good.pop("00000.tar/b37")[1] == 7  # the first of two members of one name
    assert sorted(good) == sorted(f"00000.tar/{n.removeprefix('./')}" for n in FINE.values())
    for number, (name, (_, message)) in enumerate(BROKEN.items(), 1):
        found = [text for text in broken.values() if f"/b{number:02d}" in text]
        assert any(message in text for text in found), (name, found)
    assert "cut off" in broken["00000.tar/z99"]
    lost = [text for text in broken.values() if "no header can be read" in text]
    orphans = [text for text in broken.values() if "/l0" in text]
    assert (len(lost), len(orphans)) == (4, 7), "three of them have names that can be read"
    assert len(broken) == len(BROKEN) + len(lost) + len(orphans) + len(["z99"])


def test_memory_stays_bounded(broken_tar, tmp_path, repository):
    """In a process of its own, whose peak is that of reading alone."""
    code = (
        "import contextlib, resource\n"
        "from imagen_jax.data import BrokenExample, read_tar\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        f"source = read_tar(r'{broken_tar}', index_dir=r'{tmp_path}', measure=True)\n"
        "for row in range(len(source)):\n"
        "    with contextlib.suppress(BrokenExample):\n"
        "        source[row]\n"
        "assert len(source) > 90, len(source)\n"
        "assert peak() - before < 80_000, f'{peak() - before} KiB'\n"  # the bomb has 98,000
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_a_loader_skips_them_all_and_names_each(broken_tar, caplog):
    source = read_tar(broken_tar)
    tokens = np.zeros((8, 1), np.int32)
    loader = Loader(
        source, 8, 16, tokenize=lambda texts: (tokens, tokens > 0), max_broken_share=1.0
    )
    for step in range(len(source) // 8 + 1):
        assert loader.batch(step)["image"].shape == (8, 16, 16, 3)
    assert len(loader.damage.broken) == sum(_is_broken(source, row) for row in range(len(source)))
    assert sum("skipped a broken example" in text for text in caplog.messages) > 40


def _is_broken(source, row: int) -> bool:
    try:
        source[row]
    except BrokenExample:
        return True
    return False


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(range(256)) * 8, b"x" * 5000])
def test_a_file_that_is_no_tar_is_one_broken_example(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        write_good(tar, 1)
    source = read_tar(tmp_path)
    assert [_is_broken(source, row) for row in range(len(source))] == [True, False]


def test_random_damage_raises_nothing_else(tmp_path, rng):
    """Whatever bytes are changed, every example is read or is a BrokenExample."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            write_good(tar, number)
            add(tar, f"g{number:02d}.json", json.dumps({"width": 20, "height": 12}).encode())
    whole = np.fromfile(path, np.uint8)
    for trial in range(60):
        damaged = whole.copy()
        where = rng.integers(0, len(whole), 40)
        damaged[where] = rng.integers(0, 256, len(where))
        damaged[: len(whole) if trial % 3 else rng.integers(1024, len(whole))].tofile(path)
        source = read_tar(path, index_dir=tmp_path / str(trial))
        [_is_broken(source, row) for row in range(len(source))]
