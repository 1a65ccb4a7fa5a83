"""Sound images with odd metadata are decoded and turned, in every format that holds metadata."""

import itertools
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images import decoding
from tests.images import odd_files
from tests.images.odd_files import encode, orientation

WIDTH, HEIGHT = 24, 16
UPRIGHT = {  # from the pixels as they lie (EXIF 2.32, 4.6.4 A)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
KINDS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # to bytes
# Names, descriptions, resolutions, dates, XMP, IPTC, tables of EXIF and GPS, a color profile.
TAGS = (270, 271, 282, 283, 296, 306, 700, 33723, 34665, 34675, 34853)

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about such metadata


@pytest.fixture(scope="module")
def pixels():
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def check(data, pixels, way=6, exact=True):
    image = decoding.decode(data)
    assert decoding.size(data) == image.shape[1::-1]
    expected = UPRIGHT[way](pixels)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= (0 if exact else 30)


@pytest.mark.parametrize("kind", decoding.FORMATS)
def test_the_size_is_that_of_the_decoded_image_whatever_the_orientation(kind, pixels):
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    stored = decoding.decode(encode(Image.fromarray(pixels), kind, **lossless.get(kind, {})))
    holds = kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    for value in range(11):
        tags = Image.Exif()
        tags[odd_files.ORIENTATION] = value
        data = encode(Image.fromarray(pixels), kind, exif=tags, **lossless.get(kind, {}))
        check(data, stored, value if holds and value in UPRIGHT else 1)


@pytest.mark.parametrize("order", "<>")
def test_an_orientation_of_any_kind_of_whole_number_counts_and_no_other(pixels, order):
    def value(kind, fill):
        return odd_files.ORIENTATION, kind, 1, fill

    six = {1: b"\6", 3: struct.pack(order + "H", 6), 4: struct.pack(order + "I", 6)}
    for kind in (1, 3, 4):
        exif = odd_files.tags([value(kind, six[kind])], order)
        check(odd_files.jpeg(Image.fromarray(pixels), exif), pixels, exact=False)
        if kind != 1:
            check(odd_files.tiff(pixels, [value(kind, six[kind])], order), pixels)
    for entry in (value(2, b"6\0"), value(7, b"\6"), value(3, b"\0\0"), value(3, b"\x09\x09")):
        exif = odd_files.tags([entry], order)
        check(odd_files.jpeg(Image.fromarray(pixels), exif), pixels, 1, exact=False)
    two = odd_files.tags([(odd_files.ORIENTATION, 3, 2, struct.pack(order + "HH", 6, 6))], order)
    check(odd_files.jpeg(Image.fromarray(pixels), two), pixels, exact=False)  # the first one


@pytest.mark.parametrize(
    ("container", "tag"),
    [*itertools.product(["jpeg", "tiff"], TAGS), ("png", 282), ("png", 34665), ("webp", 282)],
)
def test_other_tags_of_wrong_types_are_no_matter(tag, container, pixels):
    """Of every type and of some lengths, each with the unit by which Pillow multiplies."""
    for (kind, size), count in itertools.product(KINDS.items(), (1, 3)):
        for fill in (b"7", b"\xff"):
            value = (fill * 80)[: size * count]
            entries = [orientation(6, "<"), (296, 3, 1, b"\3\0"), (tag, kind, count, value)]
            entries = entries[:1] + entries[2:] if tag == 296 else entries
            if container == "tiff":
                check(odd_files.tiff(pixels, entries), pixels)
                continue
            exif = odd_files.tags(entries, "<")
            image = Image.fromarray(pixels)
            if container == "jpeg":
                check(odd_files.jpeg(image, exif), pixels, exact=False)
            elif container == "png":
                check(odd_files.png(image, (b"eXIf", exif)), pixels)
            else:
                check(encode(image, "WEBP", lossless=True, method=0, exif=exif), pixels)


@pytest.mark.parametrize("container", ["jpeg", "png", "webp", "avif"])
def test_damaged_tags_never_spoil_the_pixels(container, pixels):
    """Cut or changed anywhere: turned, or as they lie."""
    entries = [(271, 2, 20, b"a maker of cameras.\0"), orientation(6), (282, 5, 1, bytes(8))]
    exif, image = odd_files.tags(entries), Image.fromarray(pixels)
    write = {
        "jpeg": lambda exif: odd_files.jpeg(image, exif),
        "png": lambda exif: odd_files.png(image, (b"eXIf", exif), last=True),
        "webp": lambda exif: encode(image, "WEBP", lossless=True, method=0, exif=exif),
    }
    whole = encode(image, "AVIF", quality=100, subsampling="4:4:4", exif=b"Exif\0\0" + exif)
    stored = np.asarray(decoding.decode(whole))
    chance = random.Random(0)
    mutants = [exif[:end] for end in range(0, len(exif), 3)] if container != "avif" else []
    for _ in range(60):
        changed = bytearray(exif)
        for _ in range(chance.choice((1, 2, 4))):
            changed[chance.randrange(len(exif))] = chance.randrange(256)
        mutants.append(bytes(changed))
    turned = 0
    for mutant in mutants:
        if container == "avif":  # its own boxes say how it is turned, and only these count
            start = whole.index(b"a maker") - exif.index(b"a maker") + 10
            data = whole[:start] + mutant[10:100] + whole[start + len(mutant[10:100]) :]
            np.testing.assert_array_equal(decoding.decode(data), stored)
            continue
        image_now = decoding.decode(write[container](mutant))
        assert decoding.size(write[container](mutant)) == image_now.shape[1::-1]
        turned += image_now.shape[0] == WIDTH
        assert image_now.shape in ((WIDTH, HEIGHT, 3), (HEIGHT, WIDTH, 3))
    assert container == "avif" or turned > len(mutants) / 3


def test_a_tag_before_the_orientation_that_points_nowhere_does_not_hide_it(pixels):
    exif = odd_files.tags([(271, 2, 4_000_000, b"\xff\xff\xff\xff"), orientation(6)])
    check(odd_files.jpeg(Image.fromarray(pixels), exif), pixels, exact=False)
    check(odd_files.png(Image.fromarray(pixels), (b"eXIf", exif)), pixels)


def test_other_metadata_of_a_png_are_left_out_where_they_are_in_the_way(pixels):
    image, exif = Image.fromarray(pixels), (b"eXIf", odd_files.tags([orientation(6)]))
    long_text = b"workflow\0\0" + zlib.compress(bytes(3 << 20))
    for odd in (
        (b"zTXt", long_text),
        (b"iCCP", b"name\0\7not compressed"),
        (b"pHYs", b"\0"),
        (b"gAMA", b"\0"),
        (b"acTL", bytes(8)),
    ):
        for last in (False, True):
            check(odd_files.png(image, odd, exif, last=last), pixels)
    damaged = odd_files.png(image, (b"tEXt", b"Author\0me"), exif)
    check(damaged.replace(b"Author\0me", b"Author\0we"), pixels)  # its checksum is now wrong


def test_a_broken_table_of_further_frames_is_no_matter(pixels):
    image = Image.fromarray(pixels)
    several = encode(image, "MPO", save_all=True, append_images=[image], quality=95)
    whole, start = decoding.decode(several), several.index(b"MPF\0") + 4
    for at, value in itertools.product(range(start, start + 60), (0, 7, 255)):
        changed = several[:at] + bytes([value]) + several[at + 1 :]
        np.testing.assert_array_equal(decoding.decode(changed), whole)


def test_xmp_turns_where_exif_does_not(pixels):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(pixels)
    check(encode(image, "WEBP", lossless=True, xmp=xmp), pixels)
    check(encode(image, "JPEG", quality=95, subsampling=0, xmp=xmp), pixels, exact=False)
