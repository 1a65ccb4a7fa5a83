"""Autoguidance: a second, weaker model beside a stage, from loading to an image made again."""

from argparse import Namespace
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import BASE, BASE_SETTINGS, CASCADE, network, random_params, tiny_pipeline

from imagen_jax.cascade import stage as stage_file
from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.cascade.stage import Conditions, GuidedParams, check_guide, make_stage_denoiser
from imagen_jax.commands.generate import check_guides, main
from imagen_jax.diffusion.process import convert
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Cosine, DiscreteBeta, Flow
from imagen_jax.evaluation.inputs import read_model
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.images.image_file import read_settings
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.pipeline import Pipeline

# Smaller, on another path, of another prediction, under another name.
WEAK = replace(
    BASE, name="weak", network=replace(network(), stem_channels=4), schedule=Flow(), prediction="v"
)
QUIET = {"seed": 5, "progress": False, "size": 4, "steps": 3, "num_images": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[str, str]:
    """A model of two stages, and one that can guide the first."""
    place = tmp_path_factory.mktemp("models")
    strong = tiny_pipeline()
    strong.save_pretrained(place / "strong", dtype="float32")
    cascade = Cascade((WEAK,), (BASE_SETTINGS,), CASCADE.encoder)
    params = random_params(cascade, 3) | {TEXT_ENCODER: strong.params[TEXT_ENCODER]}
    weak = Pipeline(cascade, params, name="weak")
    weak.save_pretrained(place / "weak", dtype="float32")
    return str(place / "strong"), str(place / "weak")


@pytest.fixture(scope="module")
def guided(places) -> Pipeline:
    return load_model(places[0], guide=places[1])


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image, np.int32) for image in images])


def test_a_guided_image_is_made_again_from_its_settings(places, guided):
    images = guided.generate_images("a cat", guidance=2.5, **QUIET)
    settings = images[1].info["imagen_jax"]
    # What is as ever is not written.
    assert [entry.get("guidance_kind") for entry in settings["sampling"]] == ["auto", None]
    weak = load_model(places[1])
    assert settings["guide"] == {
        "base": {"model": "weak", "stage": "weak", "fingerprint": weak.fingerprint}
    }
    again = load_model(places[0], guide=weak).generate_again(settings, progress=False)
    np.testing.assert_array_equal(pixels(again)[0], pixels(images)[1])
    # Without guidance the second model changes nothing, nor where another kind is asked for.
    plain = load_model(places[0])
    expected = plain.generate_images("a cat", guidance=1.0, **QUIET)
    np.testing.assert_array_equal(
        pixels(guided.generate_images("a cat", guidance=1.0, **QUIET)), pixels(expected)
    )
    assert np.abs(pixels(images) - pixels(expected)).max() > 5
    ordinary = guided.generate_images("a cat", guidance_kind="cfg", **QUIET)
    assert "guide" not in ordinary[0].info["imagen_jax"]
    np.testing.assert_array_equal(pixels(ordinary), pixels(plain.generate_images("a cat", **QUIET)))
    with pytest.raises(ValueError, match="stage 'base' leads away from a second, weaker model, an"):
        plain.generate_again(settings, progress=False)


@pytest.mark.slow
def test_guided_by_itself_is_no_guidance(places):
    own = load_model(places[0], guide=[places[0], places[0]])
    assert [entry.guidance_kind for entry in own.cascade.sampling] == ["auto", "auto"]
    freed = []
    free = own.guides["base"].params.free
    own.guides["base"].params.free = lambda name: (freed.append(name), free(name))
    images = own.generate_images("a cat", guidance=4.0, low_memory=True, **QUIET)
    expected = load_model(places[0]).generate_images("a cat", guidance=1.0, **QUIET)
    np.testing.assert_allclose(pixels(images), pixels(expected), atol=1)
    assert freed == ["base"]


@pytest.mark.slow
def test_the_command_says_where_the_guide_is(places, tmp_path, capsys):
    model, guide = ["--model", places[0]], ["--guide", places[1]]
    common = ["--seed", "5", "--size", "4", "--steps", "3", "--guidance_eta", "0.5,1"]
    main(["a cat", *model, *guide, *common, "--num_images", "1", "--out", str(tmp_path / "one")])
    assert "base (4 pixels, guided by weak)" in capsys.readouterr().out
    (file,) = (tmp_path / "one").glob("*.png")
    again = ["--from_png", str(file), *model, "--out", str(tmp_path / "two"), "--quiet"]
    with pytest.raises(SystemExit) as stopped:
        main(again)
    assert "was guided by a second model" in stopped.value.code
    assert "tell with --guide" in stopped.value.code
    main([*again, *guide])
    (copy,) = (tmp_path / "two").glob("*.png")
    assert copy.read_bytes() == file.read_bytes()
    settings = read_settings(file)
    assert [entry["guidance_eta"] for entry in settings["sampling"]] == [0.5, 1.0]
    other = load_model(places[0], guide=places[0])
    check_guides(Namespace(from_png=file), settings, other)
    assert f"Warning: {file} was guided by {{'model': 'weak'" in capsys.readouterr().err


def test_an_evaluation_is_of_a_model_with_its_guide(places):
    strong, weak = places
    model = read_model(EvaluationRequest(strong, guide=weak, metrics=("images",)))
    assert [entry.guidance_kind for entry in model.sampling] == ["auto", "cfg"]
    assert model.about["guide"]["base"]["model"] == "weak"
    given = {"guidance_kind": "apg", "guidance_norm": [8.0]}
    base, upsampling = read_model(EvaluationRequest(strong, metrics=("images",), **given)).sampling
    assert (base.guidance_kind, base.guidance_norm) == ("apg", 8.0)
    assert (upsampling.guidance_kind, upsampling.guidance_norm) == ("cfg", None)
    with pytest.raises(ValueError, match="--guide_step is for --guide"):
        EvaluationRequest(strong, guide_step=3)
    with pytest.raises(ValueError, match="step and ema choose a checkpoint of a training workdir"):
        read_model(EvaluationRequest(strong, guide=weak, guide_step=3))


@pytest.mark.parametrize(
    ("schedule", "other", "prediction"),
    [
        (Flow(), Cosine(), "eps"),
        (Cosine(), Flow(shift=1.0), "v"),
        (Flow(), DiscreteBeta(), "x0"),
        (Flow(), Flow(), "eps"),
    ],
)
def test_two_paths_mix_at_one_noise_level(monkeypatch, schedule, other, prediction):
    """Each network, exact for its own Gaussian, sees its own x_t and t: the mix is that in x0."""
    stage = replace(BASE, schedule=schedule, prediction="v")
    guide = replace(WEAK, schedule=other, prediction=prediction)
    spreads = {stage: 0.5, guide: 0.8}

    def gaussian(spread, x_t, logsnr, path):
        alpha, sigma = (scale.reshape(-1, 1, 1, 1) for scale in path.alpha_sigma(logsnr))
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * x_t

    def exact(of, params, x_t, t, **conditions):
        logsnr = of.schedule.logsnr(t)
        x0 = gaussian(spreads[of], x_t, logsnr, of.schedule)
        return convert(x0, x_t, logsnr, "x0", of.prediction, of.schedule)

    monkeypatch.setattr(stage_file, "apply_network", exact)
    x_t, t = jax.random.normal(jax.random.key(0), (3, 4, 4, 3)), jnp.array([0.1, 0.5, 0.9])
    sampling = Sampling(guidance=2.0, guidance_kind="auto", threshold="none")
    denoise = make_stage_denoiser(stage, GuidedParams({}, {}, guide), Conditions(), sampling)
    logsnr = schedule.logsnr(t)
    # On one path x0 is linear in x_t, so that the guide's part can be had there, too.
    strong, weak = (gaussian(spread, x_t, logsnr, schedule) for spread in (0.5, 0.8))
    np.testing.assert_allclose(denoise(x_t, t).x0, weak + 2.0 * (strong - weak), atol=2e-4)


def test_what_does_not_fit_is_refused(places, guided, tmp_path):
    for changes, named in [
        ({"text_width": 16}, "cannot guide stage 'base': text_width is 16, not 8"),
        ({"resolution": 8}, "resolution is 8, not 4"),
        ({"conditioning": None}, "conditioning is None, not 'text'"),
    ]:
        with pytest.raises(ValueError, match=named):
            check_guide(BASE, replace(WEAK, **changes))
    strong, weak = places
    with pytest.raises(ValueError, match="cannot guide stage 'sr', of 8 pixels from 4"):
        load_model(strong, guide=[None, weak])
    with pytest.raises(ValueError, match="guide has 3 entries; the model has 2 stages"):
        load_model(strong, guide=[None, None, weak])
    other = Pipeline(guided.cascade, random_params(CASCADE, 9), name="other")
    with pytest.raises(ValueError, match="have different text encoders"):
        load_model(strong, guide=other)
    with pytest.raises(ValueError, match="negative_prompt 'dog' changes nothing"):
        guided.generate_images("a cat", negative_prompt="dog", **QUIET)
    with pytest.raises(ValueError, match="'auto' of stage 'sr' leads away from a second"):
        guided.generate_images("a cat", guidance_kind=["cfg", "auto"], seed=0, progress=False)
    with pytest.raises(TypeError, match="'guidance_type'; it is called guidance_kind here"):
        guided.generate_images("a cat", guidance_type="apg")
