"""IPTC's mark in every image of a model's: written, read, what it survives, what is no XMP."""

import ast
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax.commands import verify
from imagen_jax.images.grid import image_grid
from imagen_jax.images.heat import overlay
from imagen_jax.images.image_file import GeneratedImage, has_settings, is_sheet, save_image
from imagen_jax.images.provenance import (
    COMPOSITE,
    IPTC,
    MOST_BYTES,
    TRAINED,
    common_source,
    marked,
    packet,
    read_xmp,
    source_of,
)
from imagen_jax.images.verification import inspect
from imagen_jax.pipeline.explanation import Explanation, make_page
from tests.commands.in_process import call
from tests.tiny_cascade import tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = ("png", "jpg", "webp", "avif", "tif")


@pytest.fixture
def image(rng) -> GeneratedImage:
    made = Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8))
    made.info["imagen_jax"] = {
        "model": 'my <"model"> & \x01 红',
        "prompt": "a\x1b[2Jb 红苹果",
        "index": 3,
        "seed": 5,
        "sampling": [{"steps": 3}],
    }
    return GeneratedImage.of(made)


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_format_says_that_a_model_made_it(image, tmp_path, ending):
    image.save(tmp_path / f"x.{ending}")
    found = inspect(tmp_path / f"x.{ending}")
    assert found.xmp["source"] == TRAINED
    assert found.xmp["system"] == 'my <"model"> & \ufffd 红'
    assert found.xmp["tool"].startswith("imagen_jax ")
    assert found.settings == image.info["imagen_jax"]
    assert (found.faults, found.manifest, found.sheet) == ((), None, False)


def test_the_packet_is_where_others_look_for_it(image, tmp_path):
    image.save(tmp_path / "x.png")
    image.save(tmp_path / "x.jpg")
    image.save(tmp_path / "x.webp")
    png, jpeg, webp = ((tmp_path / f"x.{ending}").read_bytes() for ending in ENDINGS[:3])
    assert b"iTXtXML:com.adobe.xmp\0\0\0\0\0<?xpacket" in png
    assert b"\xff\xe1" in jpeg
    assert b"http://ns.adobe.com/xap/1.0/\0<?xpacket" in jpeg
    assert b"XMP " + struct.pack("<I", len(packet(image).encode())) + b"<?xpacket" in webp
    uri = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert all(uri in content for content in (png, jpeg, webp))


def test_an_open_file_gets_it_by_its_name_or_format(image, tmp_path):
    for number, options in enumerate(({}, {"format": "jpeg"})):
        with open(tmp_path / f"{number}.jpg", "wb") as file:
            image.save(file, **options)
        assert inspect(tmp_path / f"{number}.jpg").xmp["source"] == TRAINED


@pytest.mark.parametrize("kind", ["edit", "inpaint", "upscale"])
def test_what_is_made_of_another_image_says_so(image, tmp_path, kind):
    image.info["imagen_jax"] = {**image.info["imagen_jax"], kind: {"strength": [0.5]}}
    image.save(tmp_path / "x.png")
    assert inspect(tmp_path / "x.png").xmp["source"] == COMPOSITE
    with Image.open(tmp_path / "x.png") as again:  # whose settings are text
        save_image(again, tmp_path / "y.jpg")
    assert inspect(tmp_path / "y.jpg").xmp["source"] == COMPOSITE


def test_a_pipelines_images_say_it():
    pipeline = tiny_pipeline()
    (made,) = pipeline.generate_images("a", 1, 4, progress=False)
    (edited,) = pipeline.edit(made, "a", size=4, progress=False)
    assert f"/{TRAINED}" in packet(made)
    assert f"/{COMPOSITE}" in packet(edited)


def test_real_images_say_nothing(rng, tmp_path):
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    save_image(Image.fromarray(pixels), tmp_path / "x.png")
    image_grid([pixels, pixels]).save(tmp_path / "y.png")
    for name in ("x.png", "y.png"):
        assert "source" not in inspect(tmp_path / name).xmp
    assert is_sheet(tmp_path / "y.png")


def test_a_sheet_says_what_its_images_are(image, tmp_path):
    real = Image.new("RGB", (8, 8))
    sheets = {
        TRAINED: image_grid([image, image]),
        COMPOSITE: image_grid([image, real]),
        "of arrays": image_grid([np.zeros((8, 8, 3), np.uint8)], source=TRAINED),
    }
    for source, sheet in sheets.items():
        sheet.save(tmp_path / "x.png")
        found = inspect(tmp_path / "x.png")
        assert found.sheet
        assert found.xmp["source"] == (COMPOSITE if source == COMPOSITE else TRAINED)
    assert source_of(overlay(image, np.eye(4, dtype=np.float32))) == TRAINED
    assert source_of(overlay(real, np.eye(4, dtype=np.float32))) is None
    assert common_source([TRAINED, None]) == common_source([COMPOSITE]) == COMPOSITE
    assert common_source([]) is None


def test_explanations_say_what_their_images_are(image, rng):
    edited = image.copy()
    edited.info["imagen_jax"] = {**image.info["imagen_jax"], "edit": {"strength": [0.5]}}

    def explained(image: GeneratedImage, *words: str) -> Explanation:
        maps = rng.random((2, len(words), 4, 4), np.float32)
        return Explanation(image, words, maps, np.ones(2), {}, "base")

    one, two = explained(image, "red"), explained(image, "red", "ox")  # a page has a white filler
    assert f"/{TRAINED}" in packet(one.overlay("red"))
    assert f"/{TRAINED}" in packet(make_page([one, two]))
    other = explained(edited, "red")
    assert f"/{COMPOSITE}" in packet(other.overlay("red"))
    assert f"/{COMPOSITE}" in packet(make_page([one, other]))
    assert packet(overlay(Image.new("RGB", (8, 8)), one.steps[0, 0])) is None


def test_what_pillow_makes_of_an_image_keeps_it(image, tmp_path):
    changed = {
        "copy": image.copy(),
        "resize": image.resize((8, 8)),
        "crop": image.crop((2, 2, 9, 9)),
        "gray": image.convert("L"),
        "turned": image.rotate(90),
        "flipped": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    for name, made in changed.items():
        assert isinstance(made, GeneratedImage), name
        made.save(tmp_path / f"{name}.png")
        assert inspect(tmp_path / f"{name}.png").xmp["source"] == TRAINED, name


@pytest.mark.parametrize("source", ENDINGS)
@pytest.mark.parametrize("target", ["png", "jpg", "webp"])
def test_re_encoding_by_other_programs_loses_it_unless_they_hand_it_on(
    image, tmp_path, source, target
):
    """The table in docs/provenance.md."""
    image.save(tmp_path / f"a.{source}")
    with Image.open(tmp_path / f"a.{source}") as opened:
        opened.load()
        opened.save(tmp_path / f"b.{target}")
        lost = inspect(tmp_path / f"b.{target}")
        assert (lost.xmp, lost.settings, lost.faults) == ({}, None, ())
        xmp = opened.info.get("XML:com.adobe.xmp") or opened.info["xmp"]
        xmp = xmp if isinstance(xmp, str) else xmp.decode()
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        options = {"pnginfo": text} if target == "png" else {"xmp": xmp.encode()}
        opened.resize((7, 5)).save(tmp_path / f"c.{target}", **options)
        assert inspect(tmp_path / f"c.{target}").xmp["source"] == TRAINED
        save_image(opened, tmp_path / f"d.{target}")  # by our writer, of a PNG with its settings
        kept = inspect(tmp_path / f"d.{target}").xmp.get("source")
        assert kept == (TRAINED if source == "png" else None)


def test_options_replace_it(image, tmp_path):
    image.save(tmp_path / "x.png", pnginfo=PngInfo())
    image.save(tmp_path / "x.jpg", xmp=b"")
    assert all("source" not in inspect(tmp_path / name).xmp for name in ("x.png", "x.jpg"))


def test_the_forms_of_xmp():
    """As an attribute, an element, a resource and a list; and of another vocabulary's name."""
    uri = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    for inner in (
        f'<r:Description e:DigitalSourceType="{uri}"/>',
        f"<r:Description><e:DigitalSourceType> {uri}\n</e:DigitalSourceType></r:Description>",
        f'<r:Description><e:DigitalSourceType r:resource="{uri}"/></r:Description>',
        f"<r:Description><e:DigitalSourceType><r:Bag><r:li>{uri}</r:li></r:Bag>"
        "</e:DigitalSourceType></r:Description>",
    ):
        text = (
            f'<x xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:e="{IPTC}">{inner}</x>'
        )
        assert read_xmp(text.encode()) == {"source": "digitalCapture"}
        assert read_xmp(text.encode("utf-16")) == {"source": "digitalCapture"}
        assert read_xmp(text.encode() + b"\0\0") == {"source": "digitalCapture"}
    assert read_xmp(b'<a DigitalSourceType="x"/>') == {}  # of no namespace


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB + b"]><x>&j;</x>", "document type"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "document type"),
        (b"<x", "no XML"),
        (b"\xff\xfe\xfa", "no XML"),
        (b"<x>" * 100_000, "too deeply"),
        (b" " * (MOST_BYTES + 1), "more than"),
        (b"<x>&undeclared;</x>", "no XML"),
    ],
)
def test_hostile_xmp_is_told(image, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_xmp(content)
    if len(content) < 60_000:
        image.save(tmp_path / "x.jpg", xmp=content)
        (fault,) = inspect(tmp_path / "x.jpg").faults
        assert "its XMP cannot be read" in fault


def test_any_changed_byte_of_a_png_is_found(image, tmp_path, rng):
    """By the checksums of its chunks, signed or not; and where it ends."""
    image.save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    for place in rng.integers(0, len(content), 60):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        (tmp_path / "y.png").write_bytes(changed)
        ended, said = call(verify, str(tmp_path / "y.png"))
        assert ended == 1, place
        assert "WRONG" in said or "damaged: " in said or "not an image" in said
    (tmp_path / "y.png").write_bytes(content[:-20])
    assert "ends within" in call(verify, str(tmp_path / "y.png"))[1]
    (tmp_path / "y.png").write_bytes(content[:-12])
    assert "it has no end" in call(verify, str(tmp_path / "y.png"))[1]
    (tmp_path / "y.png").write_bytes(content + b"more")
    assert inspect(tmp_path / "y.png").faults == ("4 bytes follow its end",)


def test_verify_tells_of_files_and_folders(image, tmp_path):
    image.save(tmp_path / "images" / "a.png")
    image_grid([image, image]).save(tmp_path / "images" / "grid.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "b.jpg")
    (tmp_path / "images" / "notes.txt").write_text("not looked at in a folder")
    (tmp_path / "images" / "more.png").mkdir()
    ended, said = call(verify, str(tmp_path / "images"))
    assert ended is None
    lines = said.splitlines()
    assert lines[0] == f"{tmp_path}/images/a.png: PNG, 24x16"
    assert "trainedAlgorithmicMedia" in lines[1]
    assert 'prompt "a\\u001b[2Jb 红苹果", seed 5, index 3' in lines[2]
    assert "none; whether it was changed cannot be told" in lines[3]
    assert lines[5] == "  source:    not told"
    assert "grid.png: PNG, " in said
    assert "a sheet of images" in said
    ended, said = call(verify, str(tmp_path / "images"), "--json")
    found = json.loads(said)
    assert [Path(entry["file"]).name for entry in found] == ["a.png", "b.jpg", "grid.png"]
    assert found[0]["settings"] == image.info["imagen_jax"]


def test_verify_tells_of_bad_files_in_a_line_each(image, tmp_path):
    text, missing, bomb = (tmp_path / name for name in ("x.txt", "none.png", "bomb.png"))
    text.write_text("text")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IEND", b""))
    )
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    damaged = tmp_path / "damaged.png"
    image.save(damaged, pnginfo=_with("imagen_jax", "{broken"))
    huge = tmp_path / "huge.png"
    with open(huge, "wb") as file:
        os.truncate(file.fileno(), 2**30)
    files = (text, missing, bomb, damaged, huge)
    ended, said = call(verify, *map(str, files))
    assert ended == 1
    assert f"{text}: not an image\n" in said
    assert f"{missing}: No such file or directory\n" in said
    assert "damaged.png: PNG" in said
    assert "WRONG:     its settings cannot be read: it is not JSON" in said
    assert "huge.png: it has 1,073,741,824 bytes" in said
    (line,) = (line for line in said.splitlines() if line.startswith(f"{bomb}: "))
    assert "pixels" in line
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: it is no plain file\n" in call(verify, str(tmp_path / "pipe.png"))[1]
    assert call(verify, str(tmp_path / "empty"))[0] == f"error: {tmp_path}/empty holds no images"


def test_what_a_file_says_moves_no_cursor(image, tmp_path):
    xmp = packet(image).replace("imagen_jax 0", "\x85\x9b2J\u202e evil ").encode()
    image.save(tmp_path / "x.jpg", xmp=xmp)
    _, said = call(verify, str(tmp_path / "x.jpg"))
    assert "evil" in said
    assert not set(said) & {"\x1b", "\x85", "\x9b", "\u202e"}


def test_another_programs_comment_is_no_fault(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[37510] = b"ASCII\0\0\0taken in May"
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert (inspect(tmp_path / "x.jpg").settings, inspect(tmp_path / "x.jpg").faults) == (None, ())


def _with(key: str, value: str) -> PngInfo:
    text = PngInfo()
    text.add_itxt(key, value)
    return text


def test_settings_are_still_found_at_the_start(image, tmp_path):
    image.save(tmp_path / "x.png")
    assert has_settings(tmp_path / "x.png")
    save_image(marked(Image.new("RGB", (4, 4))), tmp_path / "y.png")
    assert not has_settings(tmp_path / "y.png")


# Files that call `.save(` or `savefig(`, and what they write so; others call `save_image`.
WRITERS = {
    "images/image_file.py": "it is the one writer",
    "app/making.py": "ImageList.save",
    "commands/generate.py": "ImageList.save",
    "pipeline/pipeline.py": "ImageList.save, in a docstring",
    "benchmark/input.py": "noise to be decoded",
    "data/icon_drawing.py": "icons that people drew",
    "benchmark/peers.py": "torch.save",
    "export/onnx_file.py": "onnx.save",
    "data/seqio_tasks.py": "an iterator's state",
    "storage/checkpoint.py": "checkpoints",
    "training/loop.py": "checkpoints",
    "images/signing.py": "a black image, to be signed in memory",
    "export/stablehlo_file.py": "a program",
    "evaluation/guidance_curve.py": "a plot",
    "sweeps/report.py": "a plot",
    "training/comparison_report.py": "a plot",
    "commands/save_model.py": "a plot",
}


def test_images_are_written_by_one_writer():
    found = set()
    for path in sorted((ROOT / "imagen_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", None))
            if name in ("save", "savefig", "imsave", "imwrite", "encode_png", "encode_jpeg"):
                found.add(str(path.relative_to(ROOT / "imagen_jax")))
    assert found <= set(WRITERS), "write images by imagen_jax.images.image_file.save_image"
