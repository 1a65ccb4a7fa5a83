"""Images of any kind: what is done to each is counted, and what cannot be read is named."""

import contextlib
import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.sources import ArraySource
from imagen_jax.evaluation.image_folder import (
    Preprocessing,
    SourceImages,
    common_size,
    list_images,
    matching_images,
    order_by_ids,
    read_chunks,
    read_image,
)

SIDE = 12


def kinds(rng):
    """One image of each kind, by file name."""
    rgb = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image = Image.fromarray(rgb)
    alpha = np.dstack([rgb, np.full((SIDE, SIDE), 255, np.uint8)])
    alpha[:6, :, 3] = 0
    deep = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 400
    return {
        "alpha.png": Image.fromarray(alpha),
        "cmyk.jpg": image.convert("CMYK"),
        "deep.png": Image.fromarray(deep),
        "grey.png": image.convert("L"),
        "large.png": image.resize((24, 18)),
        "palette.png": image.convert("P"),
        "plain.png": image,
        "small.png": image.resize((5, 5)),
    }


@pytest.fixture
def folder(tmp_path, rng):
    for name, image in kinds(rng).items():
        image.save(tmp_path / name)
    return tmp_path


def test_every_kind_is_read_and_counted(folder):
    preprocessing = Preprocessing(SIDE)
    (chunk,) = read_chunks(list_images(folder), preprocessing)
    assert chunk.images.shape == (8, SIDE, SIDE, 3)
    assert preprocessing.to_dict() == {
        "size": SIDE,
        "pictures": 8,
        "broken": [],
        "cropped": 1,
        "enlarged": 1,
        "grey": 1,
        "grey_of_16_bits_or_more": 1,
        "mode_CMYK": 1,
        "palette": 1,
        "resized": 1,
        "transparent_on_white": 1,
    }
    by_name = dict(zip([file.name for file in list_images(folder)], chunk.images, strict=True))
    assert (by_name["alpha.png"][:6] == 255).all()
    deep = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 400 / 65535 * 255
    np.testing.assert_allclose(by_name["deep.png"][..., 0], deep, atol=0.51)


def test_a_broken_image_is_named_or_counted(folder):
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cut\.png.*--skip_broken"):
        list(read_chunks(list_images(folder), Preprocessing(SIDE)))
    preprocessing = Preprocessing(SIDE)
    ranges = [range(4), range(4, 8), range(8, 10)]
    chunks = list(read_chunks(list_images(folder), preprocessing, ranges, skip_broken=True))
    assert [chunk.rows for chunk in chunks] == [[0, 1, 3], [5, 6, 7], [8, 9]]
    assert [name.split("/")[-1] for name in preprocessing.broken] == ["cut.png", "empty.png"]
    assert preprocessing.counts["pictures"] == 8


def test_mixed_sizes_need_a_size(folder):
    with pytest.raises(ValueError, match=r"3 sizes \(6 of 12x12.*give --size"):
        common_size(list_images(folder))
    assert common_size([folder / "large.png"]) == 18


def test_images_named_after_prompts_are_in_their_order():
    files = [Path(f"{name}.png") for name in ("000010", "000002", "000300", "000000")]
    ordered, by_ids = order_by_ids(files, ["2", "0", "300", "10"])
    assert by_ids
    assert [file.stem for file in ordered] == ["000002", "000000", "000300", "000010"]


def test_names_meet_in_either_unicode_form(tmp_path):
    paths = {}
    for form in ("NFC", "NFD"):
        paths[form] = tmp_path / form / f"{unicodedata.normalize(form, 'é')}.png"
        paths[form].parent.mkdir()
        Image.new("RGB", (4, 4)).save(paths[form])
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        ids = [paths[other].stem]
        assert order_by_ids([paths[form]], ids) == ([paths[form]], True)
        found = matching_images(tmp_path / form, [paths[other]], tmp_path / other)
        assert found == [paths[form]]


def test_other_images_are_in_the_order_of_their_numbers():
    """As evaluation scripts number them: from 1, without zeros; prompts of a text file from 0."""
    files = [Path(f"out/a{number // 8}/{number}.png") for number in range(1, 13)]
    ordered, by_ids = order_by_ids(sorted(files), [str(i) for i in range(12)])
    assert (ordered, by_ids) == (files, False)


def test_turned_and_moving_images_are_counted(tmp_path, rng):
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    image.save(tmp_path / "turned.png", exif=exif)
    moving = {"save_all": True, "append_images": [other], "lossless": True}
    image.save(tmp_path / "moving.webp", **moving)
    preprocessing = Preprocessing(SIDE)
    (chunk,) = read_chunks(list_images(tmp_path), preprocessing)
    np.testing.assert_array_equal(chunk.images, [pixels, pixels[::-1, ::-1]])
    assert (
        preprocessing.counts["first_of_several_frames"]
        == preprocessing.counts["turned_upright"]
        == 1
    )


def test_a_damaged_second_frame_is_no_matter(rng):
    """A GIF cut anywhere is read, its first frame alone, or is refused as any broken image."""
    frames = [Image.fromarray(x) for x in rng.integers(0, 256, (2, 24, 24, 3), np.uint8)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    whole, counts = buffer.getvalue(), Preprocessing(24).counts
    for end in range(len(whole) // 2, len(whole)):
        preprocessing = Preprocessing(24)
        with contextlib.suppress(OSError, ValueError):
            read_image(whole[:end], preprocessing)
        counts += preprocessing.counts
    assert counts["first_of_several_frames"] > 10


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        list_images(tmp_path / "none")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        common_size(list_images(tmp_path))


def test_the_digest_tells_images_apart(rng):
    images = rng.integers(0, 256, (3, 4, 4, 3), np.uint8)
    changed = images.copy()
    changed[1, 0, 0, 0] ^= 1

    def digest(images, size=4):
        (chunk,) = read_chunks(SourceImages(ArraySource(images)), Preprocessing(size))
        return chunk.digest

    assert digest(images) == digest(images.copy())
    assert len({digest(images), digest(changed), digest(images[::-1]), digest(images, 2)}) == 4


def test_a_bomb_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"bomb\.png"):
        list(read_chunks([tmp_path / "bomb.png"], Preprocessing(8)))
