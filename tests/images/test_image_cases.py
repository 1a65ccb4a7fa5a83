"""What users bring, wherever images are read: folders, tars, edits and evaluation."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import Loader, read_folder, read_tar
from imagen_jax.data.sources import BrokenExample, read_npz
from imagen_jax.evaluation.image_folder import Preprocessing, common_size, read_chunks, read_image
from imagen_jax.images import decoding
from imagen_jax.pipeline import request
from tests.data.shard_files import add
from tests.images import odd_files
from tests.images.odd_files import encode

CASES = Path(__file__).parents[1] / "fixtures" / "cases" / "images"
TURNED = sorted(path for path in CASES.iterdir() if "broken" not in path.name)
BROKEN = CASES / "broken_avif_as.jpg"

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about such metadata


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(files):
            add(tar, f"{number:04d}.jpg", file.read_bytes())
            add(tar, f"{number:04d}.txt", b"a caption")


@pytest.fixture(scope="module")
def upright():
    """The photograph turned by hand: all cases but the broken one show the same."""
    with Image.open(CASES / "phone_portrait.jpg") as image:
        return np.rot90(np.asarray(image), -1)


def test_sound_photographs_are_turned_wherever_they_are_read(tmp_path, upright):
    write_tar(tmp_path / "a.tar", TURNED)
    tar = read_tar(tmp_path / "a.tar", measure=True, index_dir=tmp_path / "index")
    assert tar.sizes.tolist() == [list(upright.shape[1::-1])] * len(TURNED)
    assert read_folder(CASES, conditioning=None).files == tuple(
        sorted(path.name for path in CASES.iterdir())
    )
    folder = read_folder(CASES, conditioning=None)
    (chunk,) = read_chunks(TURNED, Preprocessing(common_size(TURNED)))
    for number, path in enumerate(TURNED):
        for found in (
            decoding.decode(path),
            decoding.decode(path.read_bytes()),
            folder[folder.files.index(path.name)]["image"],
            np.asarray(tar[number]["image"]),
            np.asarray(request.read_image(path)),
            np.asarray(request.read_image(Image.open(path))),
        ):
            assert np.abs(found.astype(int) - upright).max() <= 4, path
        side = upright.shape[1]
        start = (upright.shape[0] - side) // 2
        centre = upright[start : start + side]
        assert np.abs(chunk.images[number].astype(int) - centre).max() <= 4


def test_a_broken_image_is_one_named_example_or_one_line(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(BROKEN.read_bytes())
    folder = read_folder(tmp_path, conditioning=None)
    write_tar(tmp_path / "a.tar", [BROKEN])
    tar = read_tar(tmp_path / "a.tar", measure=True, index_dir=tmp_path / "index")
    for source, index, name in ((folder, 2, "broken.jpg"), (tar, 0, "a.tar/0000")):
        with pytest.raises(BrokenExample, match=name) as error:
            source[index]
        assert str(error.value).count(name) == 1
        assert "Failed to decode" in str(error.value)
    loader = Loader(folder, 3, 8, conditioning=None, num_threads=1, max_broken_share=0.5)
    for step in range(3):
        loader.batch(step)
    assert list(loader.damage.broken) == [str(tmp_path / "broken.jpg")]
    for call in (
        lambda: request.read_image(tmp_path / "broken.jpg"),
        lambda: list(read_chunks([tmp_path / "broken.jpg"], Preprocessing(8))),
        lambda: read_image(tmp_path / "broken.jpg", Preprocessing(8)),
    ):
        with pytest.raises(ValueError, match=r"broken\.jpg") as error:
            call()
        assert str(error.value).count("broken.jpg") == 1
        assert "\n" not in str(error.value)


def test_arrays_that_are_no_images_are_named_with_their_file(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"^\S+a\.npz: images are uint8 \[2\]; they must be"):
        read_npz(tmp_path / "a.npz", conditioning=None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer; git lfs",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC; pillow-heif can"),
        (b"<!DOCTYPE html><html>", "page of HTML"),
        (b"a text", "its beginning is damaged"),
    ],
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(ValueError, match=f"no image of a known format .*{message}"):
        decoding.decode(data)
    assert decoding.size(data) == (0, 0)


def test_a_file_that_cannot_be_opened_is_an_error_of_the_file_system(tmp_path):
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            decoding.decode(path)
        assert decoding.size(path) == (0, 0)
    with pytest.raises(ValueError, match=f"The image {tmp_path} cannot be read: Is a dir"):
        request.read_image(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, SystemError, TypeError, MemoryError, KeyError])
def test_whatever_a_decoder_raises_is_a_value_error(error, monkeypatch):
    def fail(self):
        raise error("odd")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    data = encode(Image.new("RGB", (2, 2)), "PNG")
    for read in (decoding.decode, lambda data: decoding.to_rgb(Image.open(io.BytesIO(data)))):
        with pytest.raises(ValueError, match="odd"):
            read(data)
    assert decoding.size(data) == (0, 0)


def images_of_every_format():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).resize((48, 32))
    grey, many = image.convert("L"), {"save_all": True, "append_images": [image]}
    return {
        "bmp": encode(image, "BMP"),
        "avif": encode(image, "AVIF"),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "gif": encode(image, "GIF"),
        "j2k": encode(image, "JPEG2000", no_jp2=True),
        "jp2": encode(image, "JPEG2000"),
        "jpg": encode(image, "JPEG"),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "mpo": encode(image, "MPO", **many),
        "pfm": encode(grey.convert("F").point(lambda level: level / 255), "PPM"),
        "pgm": encode(grey, "PPM"),
        "png": encode(image, "PNG"),
        "tiff": encode(image, "TIFF"),
        "lzw.tiff": encode(image, "TIFF", compression="tiff_lzw"),
        "webp": encode(image, "WEBP"),
        "lossless.webp": encode(image, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("kind", images_of_every_format())
def test_a_cut_image_is_refused_and_never_half_grey(kind, capfd):
    """Only what comes after the pixels may be missing."""
    data = images_of_every_format()[kind]
    whole = decoding.decode(data)
    refused = 0
    for end in {*range(0, len(data), max(len(data) // 40, 1)), *range(len(data) - 8, len(data))}:
        try:
            found = decoding.decode(data[:end])
        except ValueError:
            refused += 1
            continue
        np.testing.assert_array_equal(found, whole)
    assert refused > 15
    capfd.readouterr()  # libtiff writes to the terminal


def test_the_suffixes_are_those_of_the_formats():
    Image.init()
    known = {name for name, kind in Image.registered_extensions().items()}
    formats = {
        name for name, kind in Image.registered_extensions().items() if kind in decoding.FORMATS
    }
    assert len(set(decoding.SUFFIXES)) == len(decoding.SUFFIXES)
    assert set(decoding.SUFFIXES) == formats | {".mpo"} <= known


def test_only_one_file_opens_images_and_one_reads_settings():
    root = Path(__file__).parents[2]
    found = {
        str(path.relative_to(root))
        for folder in ("imagen_jax", "scripts", "configs")
        for path in (root / folder).rglob("*.py")
        if "Image.open(" in path.read_text(encoding="utf-8")
    }
    assert found == {"imagen_jax/images/decoding.py", "imagen_jax/images/png.py"}


def test_a_reduced_photograph_is_turned_and_its_colors_converted():
    smooth = np.random.default_rng(0).integers(60, 200, (4, 6, 3), np.uint8)
    image = Image.fromarray(smooth).resize((192, 128), Image.Resampling.BICUBIC)
    profile = odd_files.rgb_profile(odd_files.DISPLAY_P3, 2.2)
    tags = Image.Exif()
    tags[odd_files.ORIENTATION] = 6
    data = encode(image, "JPEG", quality=95, subsampling=0, exif=tags, icc_profile=profile)
    reduced, whole = decoding.read(data, cover=32), decoding.read(data)
    assert (reduced.size, whole.size) == ((32, 48), (128, 192))
    assert np.abs(np.asarray(whole.reduce(4), int) - np.asarray(reduced, int)).mean() <= 1
