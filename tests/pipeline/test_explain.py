"""Pipeline.explain: the same images, maps of what the network does there, one line for errors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import BASE, CASCADE, ENCODER, SR, network, random_params, tiny_pipeline

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.cascade.stage import apply_network
from imagen_jax.diffusion.flow_map import JUMPING
from imagen_jax.images.heat import overlay, resize_map
from imagen_jax.images.image_file import is_sheet
from imagen_jax.models import EfficientLevel, EfficientUNetConfig, WatchedParams
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.text.encoder import encode

QUIET = {"seed": 3, "progress": False}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def image(rng):
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(
    "options",
    [
        {"num_images": 3, "batch_size": 2, "negative_prompt": "blue", "stage": "sr"},
        pytest.param({"sampler": "heun", "guidance": 7.0, "stage": "sr"}, marks=pytest.mark.slow),
        pytest.param(
            {"sampler": "unipc", "guidance_kind": "apg", "size": 4, "steps": 5},
            marks=pytest.mark.slow,
        ),
        pytest.param({"aspect_ratio": "2:1", "guidance": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_images_are_those_of_generate_images(pipeline, options):
    found = pipeline.explain("red ox", **options, **QUIET)
    stage = options.pop("stage", "base")
    expected = pipeline.generate_images("red ox", **{"num_images": 1, **options}, **QUIET)
    np.testing.assert_array_equal(pixels(each.image for each in found), pixels(expected))
    assert [each.image.info for each in found] == [image.info for image in expected]
    for each in found:
        steps = each.image.info["imagen_jax"]["sampling"][stage == "sr"]["steps"]
        assert (each.words, each.stage, len(each.steps)) == (("red", "ox"), stage, steps)
        assert each.maps.shape == (2, *each.image.size[::-1])
        assert (each.maps > 0).all()
        assert (each.maps.sum(0) < 1).all()


@pytest.mark.slow
def test_edited_images_are_explained(pipeline, image):
    given = {"strength": 0.5, "size": 4, **QUIET}
    (found,) = pipeline.explain("red ox", image=image, **given)
    np.testing.assert_array_equal(found.image, pipeline.edit(image, "red ox", **given)[0])
    assert len(found.steps) == 2


def test_inpainted_images_are_explained(pipeline, image):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    given = {"resamplings": 2, "jump_length": 2, "size": 4, **QUIET}
    (found,) = pipeline.explain("red ox", image=image, mask=mask, **given)
    np.testing.assert_array_equal(found.image, pipeline.inpaint(image, mask, "red ox", **given)[0])
    # 4 steps, and 2 of them again: no network runs in the jump back.
    assert len(found.steps) == 6
    assert np.sum(np.diff(found.times) > 0) == 1


def test_a_steps_map_is_the_conditional_networks_at_its_image(pipeline):
    """At x_t before the step, which a callback sees after the step before it."""
    states, given = [], {"size": 4, "num_images": 2, **QUIET}
    pipeline.generate_images("red ox", callback=states.append, every=1, **given)
    found = pipeline.explain("red ox", layers="all", **given)
    text = encode(ENCODER, pipeline.params[TEXT_ENCODER], ["red ox"] * 2)
    weights = WatchedParams(pipeline.params["base"])
    network = jax.jit(lambda x_t, t: apply_network(BASE, weights, x_t, t, text=text))
    for i, progress in enumerate(states[:-1], start=1):
        maps = network(progress.state.x, jnp.full(2, found[0].times[i]))
        tokens = np.mean([np.asarray(layer) for layer in maps.values()], axis=0)
        for row, each in enumerate(found):
            expected = [tokens[row, ..., :3].sum(-1), tokens[row, ..., 4:6].sum(-1)]
            np.testing.assert_allclose(each.steps[i], expected, rtol=1e-5)


def test_only_the_conditional_half_counts(pipeline):
    """At the first step all start from the same noise, whatever guidance leads away from."""
    plain, *others = (
        pipeline.explain("red ox", size=4, **QUIET, **options)[0]
        for options in ({"guidance": 1.0}, {"guidance": 9.0, "negative_prompt": "a blue tree"})
    )
    for other in others:
        np.testing.assert_allclose(other.steps[0], plain.steps[0], rtol=1e-5)
        assert np.abs(other.steps[-1] - plain.steps[-1]).max() > 1e-4


def test_each_image_is_explained_by_its_own_prompt_whatever_the_batch(pipeline):
    prompts = ["red ox", "a b c d e"]
    together = pipeline.explain(prompts, num_images=3, batch_size=2, size=4, **QUIET)
    assert [each.words for each in together] == [("red", "ox")] * 3 + [tuple("abcde")] * 3
    for index, each in enumerate(together):
        (alone,) = pipeline.explain(
            prompts[index // 3], size=4, first_index=index, batch_size=1, **QUIET
        )
        np.testing.assert_allclose(alone.steps, each.steps, rtol=1e-4)
        for name, layer in each.layers.items():
            np.testing.assert_allclose(alone.layers[name], layer, rtol=1e-4)


def test_layers_and_words_are_chosen(pipeline):
    (every,) = pipeline.explain("red ox", layers="all", size=4, **QUIET)
    (upper,) = pipeline.explain("red ox", ["OX", "red ox"], size=4, **QUIET)
    assert list(every.layers) == ["down0_attention", "up0_attention"]
    assert list(upper.layers) == ["up0_attention"]
    np.testing.assert_allclose(upper.steps.mean(0)[0], every.layers["up0_attention"][1], rtol=1e-5)
    middle = (every.layers["down0_attention"] + every.layers["up0_attention"]) / 2
    np.testing.assert_allclose(every.steps.mean(0), middle, rtol=1e-5)
    assert (upper.map("red OX") > upper.map("ox")).all()


@pytest.mark.slow
def test_a_distilled_model_is_explained():
    stage = replace(BASE, network=replace(network(), target_time=True), prediction="v")
    settings = replace(CASCADE.sampling[0], sampler=next(iter(JUMPING)), guidance=1.0, steps=2)
    cascade = Cascade((stage,), (settings,), ENCODER)
    fast = Pipeline(cascade, random_params(cascade), name="fast")
    (found,) = fast.explain("red ox", **QUIET)
    np.testing.assert_array_equal(found.image, fast.generate_images("red ox", 1, **QUIET)[0])
    assert found.steps.shape == (2, 2, 2, 2)


def test_files_hold_the_maps(pipeline, tmp_path):
    (found,) = pipeline.explain("red ox", size=4, **QUIET)
    files = found.save(tmp_path / "new")
    assert [file.name for file in files] == ["page.png", "0000_red.png", "0001_ox.png", "maps.npz"]
    assert all(map(is_sheet, files[:-1]))  # no images of a set
    with np.load(files[-1]) as arrays:
        assert arrays["words"].tolist() == ["red", "ox"]
        np.testing.assert_array_equal(arrays["maps"], found.maps)
        np.testing.assert_array_equal(arrays["layers/up0_attention"], found.layers["up0_attention"])
    with pytest.raises(ValueError, match="There is no map of 'rde'; did you mean 'red'"):
        found.overlay("rde")
    one = np.asarray(found.overlay("red", step=1))
    np.testing.assert_array_equal(one, overlay(found.image, found.steps[1, 0]))


def test_an_overlay_is_red_where_the_map_is_highest(rng):
    values, gray = rng.random((4, 6), np.float32), Image.new("RGB", (24, 16), "gray")
    shown = np.asarray(overlay(gray, values, opacity=1.0)).astype(int)
    full = resize_map(values, gray.size)
    high, low = (np.unravel_index(place, full.shape) for place in (full.argmax(), full.argmin()))
    assert shown[high][0] > max(shown[high][1:])
    assert shown[low][2] > max(shown[low][:2])
    np.testing.assert_array_equal(overlay(gray, values, opacity=0.0), gray)
    flat = np.asarray(overlay(gray, np.ones((2, 2), np.float32)))
    assert (flat == flat[0, 0]).all()  # nothing is higher than the rest
    expected = jax.image.resize(values, (16, 24), "linear")
    np.testing.assert_allclose(full, expected, atol=1e-6)


def test_what_cannot_be_explained_is_told_before_the_work(pipeline, monkeypatch):
    deaf = EfficientUNetConfig(
        (EfficientLevel(8, 1),), stem_channels=8, num_heads=1, embedding_width=8
    )
    labels = replace(BASE, conditioning="label", text_width=None, network=network(num_classes=3))
    first = replace(BASE, network=deaf)

    def of(*stages, encoder=ENCODER):
        cascade = Cascade(stages, CASCADE.sampling[: len(stages)], encoder)
        return Pipeline(cascade, {}, name="tiny")

    empty = of(BASE, encoder=replace(ENCODER, null="empty"))
    cases = [
        (pipeline, {"words": ["blue"]}, "The prompt 'red ox' has no word 'blue'; known: red, ox"),
        (pipeline, {"words": "rde"}, "has no word 'rde'; did you mean 'red'"),
        (pipeline, {"words": []}, "There is no word to explain in the prompt 'red ox'"),
        (pipeline, {"prompt": "!"}, "There is no word to explain in the prompt '!'"),
        (pipeline, {"prompt": " "}, "The prompt is empty"),
        (empty, {"prompt": ""}, "The prompt is empty: there is no word to explain"),
        (pipeline, {"stage": "sf"}, "No stage 'sf' makes these images; there is base, sr"),
        (pipeline, {"stage": "sr", "size": 4}, "No stage 'sr' makes these images; there is base"),
        (pipeline, {"size": 5}, "No stage of 'tiny' makes size 5"),
        (pipeline, {"layers": "mid"}, "No layer of stage 'base' has a name that begins with 'mid'"),
        (pipeline, {"num_images": 0}, "num_images must be a whole number, at least 1: 0"),
        (pipeline, {"num_images": 1.5}, "num_images must be a whole number, at least 1: 1.5"),
        (pipeline, {"mask": "mask.png"}, "mask is for an image, which is not given"),
        (of(labels, encoder=None), {}, "'tiny' reads no text: there is no word to explain"),
        (of(first), {}, "No layer of stage 'base' attends to words of the text"),
        (of(first, SR), {}, "attends to words of the text; stage='sr' does"),
    ]
    monkeypatch.setattr("imagen_jax.pipeline.pipeline.encode_request", None)  # the first work
    for model, options, message in cases:
        with pytest.raises(ValueError, match=message):
            model.explain(**{"prompt": "red ox", **options}, **QUIET)
    with pytest.raises(TypeError, match=r"has no option 'num_image'; did you mean 'num_images'\?"):
        pipeline.explain("red ox", num_image=3)
