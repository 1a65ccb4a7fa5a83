"""What a pipeline makes of a caller's image: editing, inpainting, enlarging; and other shapes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import CASCADE, random_params, tiny_pipeline

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.pipeline import request as arguments
from imagen_jax.pipeline.lazy_params import LazyParams
from imagen_jax.pipeline.pipeline import Pipeline

QUIET = {"seed": 3, "progress": False}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def image(rng):
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))


def pixels(images):
    return np.stack([np.asarray(p, np.int32) for p in images])


def distance(images, image):
    return np.abs(pixels(images) - np.asarray(image, np.int32)).mean()


def test_an_image_has_the_shape_asked_for(pipeline):
    made = pipeline.generate_images("no 1", 2, aspect_ratio="2:1", **QUIET)
    assert [p.size for p in made] == [(12, 4)] * 2  # 6x2 enlarged: 16 pixels are asked for
    assert made[0].info["imagen_jax"]["aspect_ratio"] == "2:1"
    again = pipeline.generate_again(made[1].info["imagen_jax"], progress=False)
    np.testing.assert_array_equal(pixels(again)[0], pixels(made)[1])
    square = pipeline.generate_images("no 1", 1, aspect_ratio=(1, 1), **QUIET)
    plain = pipeline.generate_images("no 1", 1, **QUIET)
    np.testing.assert_array_equal(pixels(square), pixels(plain))
    for same in ("2:1", 2.0, "2.0"):
        assert arguments.base_size(CASCADE, same) == (2, 6)
    for bad in ("wide", "0:1", (1, 2, 3), "100:1", 9.0):
        with pytest.raises(ValueError, match="must be width to height"):
            pipeline.generate_images("no 1", 1, aspect_ratio=bad, **QUIET)


def test_an_edit_is_nearer_to_the_image_the_weaker_it_is(pipeline, image):
    small = image.resize((4, 4), Image.Resampling.LANCZOS)
    distances = [
        distance(pipeline.edit(image, "no 1", strength=s, size=4, num_images=6, **QUIET), small)
        for s in (0.25, 1.0)
    ]
    assert distances[0] < distances[1]
    with pytest.raises(ValueError, match=r"strength 0.1 leaves none of 4 steps"):
        pipeline.edit(image, "no 1", strength=0.1, **QUIET)
    by_stage = pipeline.edit(image, "no 1", strength=(0.5, 0.5), **QUIET)
    base_alone = pipeline.edit(image, "no 1", strength=0.5, **QUIET)
    assert (pixels(by_stage) != pixels(base_alone)).any()
    noised = pipeline.edit(image, "no 1", strength=0.5, aug_level=0.9, **QUIET)
    assert (pixels(noised) != pixels(base_alone)).any()
    with pytest.raises(ValueError, match="strength has 3 entries; the model has 2 stages"):
        pipeline.edit(image, "no 1", strength=(1.0, 1.0, 1.0), **QUIET)


@pytest.mark.parametrize("options", [{}, {"known": "clean"}, {"resamplings": 2, "jump_length": 2}])
def test_inpainting_keeps_what_is_black_in_the_mask(pipeline, image, options):
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    made = pixels(pipeline.inpaint(image, mask, "no 1", **options, **QUIET))[0]
    difference = np.abs(made - np.asarray(image, np.int32))
    assert difference[:, :4].max() <= 1
    assert difference[:, 4:].max() > 8
    with pytest.raises(ValueError, match="mask is 3x3, the image 8x8"):
        pipeline.inpaint(image, np.ones((3, 3)), "no 1", **QUIET)
    again = pipeline.inpaint(image, mask.astype(np.uint8), "no 1", **options, **QUIET)
    np.testing.assert_array_equal(pixels(again)[0], made)


def test_upscaling_begins_where_the_image_fits(pipeline, image, rng):
    made = pipeline.upscale(image, "no 1", num_images=2, **QUIET)
    assert [p.size for p in made] == [(8, 8)] * 2
    assert made[0].info["imagen_jax"]["upscale"] == {"from": [4, 4], "stage": "sr"}
    wide = Image.fromarray(rng.integers(0, 256, (9, 17, 3), np.uint8))
    assert pipeline.upscale(wide, "no 1", **QUIET)[0].size == (16, 8)
    noised = pipeline.upscale(image, "no 1", aug_level=1.0, num_images=2, **QUIET)
    other = pipeline.upscale(Image.new("RGB", (4, 4)), "no 1", aug_level=1.0, num_images=2, **QUIET)
    assert np.abs(pixels(noised) - pixels(other)).max() <= 1  # nothing of the image is left
    with pytest.raises(ValueError, match="no super-resolution stage up to size 4"):
        pipeline.upscale(image, "no 1", size=4, **QUIET)
    with pytest.raises(ValueError, match="image is 40x4; what is upsampled must be between 1:8"):
        pipeline.upscale(Image.new("RGB", (40, 4)), "no 1", **QUIET)
    with pytest.raises(ValueError, match=r"made by upscale\(...\) of another image"):
        pipeline.generate_again(made[0].info["imagen_jax"])


def test_a_cascade_without_a_base_enlarges(image):
    alone = Cascade(CASCADE.stages[1:], CASCADE.sampling[1:], CASCADE.encoder)
    params = random_params(CASCADE)
    made = Pipeline(alone, params, name="sr").upscale(image, "no 1", **QUIET)
    assert made[0].size == (8, 8)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "edit",
            {"guidance_scale": 2.0},
            r"edit\(\) has no option 'guidance_scale'; it is called guidance here",
        ),
        (
            "inpaint",
            {"aspect_ratio": "2:1"},
            r"inpaint\(\) has no option 'aspect_ratio'; known: image, mask",
        ),
        ("upscale", {"stepz": 2}, r"upscale\(\) has no option 'stepz'; did you mean 'steps'"),
        ("edit", {"guidance_eta": 0.5}, r"'guidance_eta'; it is a field of Sampling: give"),
    ],
)
def test_an_unknown_option_is_named_before_anything_is_read(pipeline, method, options, message):
    mask = {"mask": "none.png"} if method == "inpaint" else {}
    with pytest.raises(TypeError, match=message):
        getattr(pipeline, method)("none.png", prompt="no 1", **mask, **options)


def test_what_a_single_stage_cannot_do_is_refused_before_anything_is_read():
    (base, sr), settings = CASCADE.stages, CASCADE.sampling
    alone = Pipeline(Cascade((sr,), settings[1:], CASCADE.encoder), {}, name="II")
    for refused in (alone.edit, alone.generate_images):
        with pytest.raises(ValueError, match=r"upsamples images of 4 pixels: call upscale\("):
            refused("none.png", "no 1" if refused == alone.edit else 1)
    first = Pipeline(Cascade((base,), settings[:1], CASCADE.encoder), {}, name="I")
    with pytest.raises(ValueError, match="'I' has no super-resolution stage"):
        first.upscale("none.png")
    with pytest.raises(ValueError, match="Stage 'base' starts from noise; put it first"):
        Cascade((sr, base), settings[::-1])


def test_no_text_is_an_empty_prompt_where_the_model_knows_it(image):
    encoder = replace(CASCADE.encoder, null="empty")
    knows = Pipeline(replace(CASCADE, encoder=encoder), random_params(CASCADE), name="knows")
    wishes = {**QUIET, "steps": 1}
    made, empty = (knows.upscale(image, prompt, **wishes) for prompt in (None, ""))
    np.testing.assert_array_equal(pixels(made), pixels(empty))
    assert np.abs(pixels(knows.upscale(image, "no 1", **wishes)) - pixels(made)).max() > 0
    with pytest.raises(ValueError, match="give a prompt"):
        tiny_pipeline().upscale(image, **wishes)


def test_low_memory_lets_each_part_go_before_the_next_is_read():
    params, held, most = random_params(CASCADE), set(), 0

    class Counted(LazyParams):
        def free(self, name):
            held.discard(name)
            super().free(name)

    def reader(name):
        def read():
            nonlocal most
            held.add(name)
            most = max(most, len(held))
            return params[name]

        return read

    lean = Pipeline(CASCADE, Counted({name: reader(name) for name in params}), name="lean")
    made = lean.generate_images("no 1", 1, low_memory=True, **QUIET)
    assert most == 1
    assert not held
    plain = tiny_pipeline().generate_images("no 1", 1, **QUIET)
    np.testing.assert_array_equal(pixels(made), pixels(plain))


def test_the_bar_ends_at_its_total(pipeline, image, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, **_):
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, count):
            self.done += count

        def set_description(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("imagen_jax.pipeline.progress.tqdm", Bar)
    pipeline.edit(image, "no 1", strength=0.5, num_images=3, batch_size=2, seed=0)
    pipeline.inpaint(image, image, "no 1", resamplings=2, jump_length=2, seed=0)
    pipeline.upscale(image, "no 1", seed=0)
    assert [bar.done for bar in bars] == [bar.total for bar in bars]
    assert bars[0].total == 2 * (2 + 3)
    assert bars[2].total == 3


def test_images_from_outside(tmp_path, rng):
    flat = rng.integers(0, 256, (6, 5, 3), np.uint8)
    half = Image.fromarray(np.dstack([flat, np.zeros((6, 5, 1), np.uint8)]))
    assert np.asarray(arguments.read_image(half)).min() == 255  # transparent is white
    path = tmp_path / "p.png"
    Image.fromarray(flat).save(path)
    np.testing.assert_array_equal(np.asarray(arguments.read_image(path)), flat)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(flat).save(tmp_path / "p.jpg", exif=turned)
    assert arguments.read_image(tmp_path / "p.jpg").size == (6, 5)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(
        ValueError, match=r"^The image \S+p.png cannot be used: image file is trunc"
    ):
        arguments.read_image(path)
    with pytest.raises(FileNotFoundError, match="There is no image"):
        arguments.read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\], not float64 \[2, 2, 3\]"):
        arguments.read_image(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"^The mask \S+p.png cannot be used: image file is trunc"):
        arguments.read_mask(path, (5, 6))


def test_a_draft_fixes_the_shape():
    base, sr = CASCADE.stages
    drafted = replace(base, network=replace(base.network, draft=True))
    cascade = replace(CASCADE, stages=(drafted, sr))
    with pytest.raises(ValueError, match=r"'base' makes only squares of 4x4 pixels.*not 2x6"):
        Pipeline(cascade, {}, name="d").generate_images("no 1", aspect_ratio="2:1", **QUIET)


def test_a_mask_that_keeps_everything_is_refused(pipeline, image):
    with pytest.raises(ValueError, match="The mask cannot be used: nothing in it is white"):
        pipeline.inpaint(image, np.zeros((8, 8), np.uint8), "no 1", **QUIET)
    wide, mask = image.resize((24, 8)), np.zeros((8, 24), bool)
    mask[:, 0] = True
    with pytest.raises(ValueError, match="The mask keeps everything of the centred square"):
        pipeline.inpaint(wide, mask, "no 1", **QUIET)


def test_what_the_transparency_of_a_mask_means_is_said(pipeline, image):
    """As in DALL-E's masks, where a hole is regenerated, or the other way round."""
    mask = np.full((8, 8, 4), 200, np.uint8)
    mask[..., 3] = 255
    mask[:, 4:, 3] = 0
    with pytest.raises(ValueError, match=r"The mask cannot be used: .*mask_alpha='transparent'"):
        pipeline.inpaint(image, mask, "no 1", **QUIET)
    for alpha, kept in (("transparent", np.s_[:, :4]), ("opaque", np.s_[:, 4:])):
        made = pixels(pipeline.inpaint(image, mask, "no 1", mask_alpha=alpha, **QUIET))[0]
        difference = np.abs(made - np.asarray(image, np.int32))
        assert difference[kept].max() <= 1 < difference.max()


@pytest.mark.parametrize("every", [0, -1])
def test_every_counts_steps(pipeline, every):
    with pytest.raises(ValueError, match="every must be a whole number, at least 1"):
        pipeline.generate_images("a cat", every=every, progress=False)


def test_few_images_are_a_small_batch():
    assert [arguments.default_batch_size(count) for count in (1, 2, 3, 4, 9)] == [1, 2, 4, 4, 4]
