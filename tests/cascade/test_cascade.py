"""The cascade: keys, batches, traced numbers, chunks, injected noise, and what it refuses."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import BASE, BASE_SETTINGS, CASCADE, ENCODER, SR, SR_SETTINGS, random_params

from imagen_jax.cascade import cascade as cascade_room
from imagen_jax.cascade import description
from imagen_jax.cascade.cascade import (
    Cascade,
    Conditions,
    sample_cascade,
    sample_keys,
    sample_stage,
)
from imagen_jax.cascade.sample import AUGMENTATION_INDEX, InjectedNoise, advance_stage, begin_stage
from imagen_jax.diffusion.augmentation import upsample
from imagen_jax.diffusion.samplers import noise_from_keys
from imagen_jax.diffusion.sampling import SamplingSettings, with_overrides
from imagen_jax.storage.codec import from_dict
from imagen_jax.text import encoder as text_room
from imagen_jax.typing import TextEmbeddings

BATCH = 2


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(CASCADE)


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    """Text of three samples, and one null for all."""
    rng = np.random.default_rng(1)
    width, length = ENCODER.config.d_model, ENCODER.max_length
    values = rng.normal(size=(3, length, width)).astype(np.float32)
    mask = np.arange(length) < np.array([[3], [5], [12]])
    null = jax.tree.map(np.asarray, text_room.null_text(1, length, width))
    return Conditions(TextEmbeddings(values, mask), null)


def rows(conditions: Conditions, chosen: list[int]) -> Conditions:
    return cascade_room.take_rows(conditions, np.array(chosen))


def test_images_have_the_shape_and_range_of_the_last_stage(params, conditions):
    images = sample_cascade(CASCADE, params, sample_keys(0, range(3)), conditions, batch_size=BATCH)
    assert images.shape == (3, 8, 8, 3)
    assert images.dtype == np.float32
    assert np.abs(images).max() <= 1
    assert images.std() > 0.05
    base = sample_cascade(
        CASCADE, params, sample_keys(0, range(3)), conditions, batch_size=BATCH, last=0
    )
    assert base.shape == (3, 4, 4, 3)


def test_a_image_does_not_depend_on_its_batch(params, conditions):
    together = sample_cascade(
        CASCADE, params, sample_keys(7, range(3)), conditions, batch_size=BATCH
    )
    for index in range(3):
        alone = sample_cascade(
            CASCADE, params, sample_keys(7, [index]), rows(conditions, [index]), batch_size=BATCH
        )
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_stage_i_draws_from_the_key_folded_with_i(params, conditions):
    keys = sample_keys(3, [0, 1])
    wanted = rows(conditions, [0, 1])
    fold = jax.vmap(jax.random.fold_in, (0, None))
    low_res = sample_stage(BASE, params["base"], fold(keys, 0), wanted, BASE_SETTINGS)
    images = sample_stage(
        SR, params["sr"], fold(keys, 1), wanted._replace(low_res=low_res), SR_SETTINGS
    )
    np.testing.assert_allclose(sample_cascade(CASCADE, params, keys, wanted), images, atol=1e-6)
    entered = sample_cascade(
        CASCADE, params, keys, wanted._replace(low_res=np.asarray(low_res)), first=1
    )
    np.testing.assert_allclose(entered, images, atol=1e-6)


def test_numbers_are_traced(params, conditions):
    keys, wanted = sample_keys(0, [0, 1]), rows(conditions, [0, 1])
    low_res = jnp.zeros((2, 4, 4, 3))
    sample_stage(BASE, params["base"], keys, wanted, BASE_SETTINGS)
    sample_stage(SR, params["sr"], keys, wanted._replace(low_res=low_res), SR_SETTINGS)
    compiled = advance_stage._cache_size(), begin_stage._cache_size()
    other = replace(
        BASE_SETTINGS,
        steps=7,
        guidance=1.5,
        guidance_interval=(0.2, 0.9),
        guidance_rescale=0.7,
        percentile=95.0,
        cap=1.5,
        gamma=0.9,
    )
    sample_stage(BASE, params["base"], keys, wanted, other)
    other = replace(SR_SETTINGS, aug_level=0.6, steps=2)
    sample_stage(SR, params["sr"], keys, wanted._replace(low_res=low_res), other)
    assert (advance_stage._cache_size(), begin_stage._cache_size()) == compiled


def test_guidance_and_text_matter(params, conditions):
    keys, wanted = sample_keys(0, [0, 1]), rows(conditions, [0, 1])

    def draw(conditions: Conditions, **changes) -> np.ndarray:
        settings = replace(BASE_SETTINGS, **changes)
        return np.asarray(sample_stage(BASE, params["base"], keys, conditions, settings))

    plain = draw(wanted, guidance=1.0)
    assert np.abs(draw(wanted) - plain).max() > 1e-3
    # Weight 1 outside its interval is no guidance, and guided away from the text itself neither.
    np.testing.assert_allclose(
        draw(wanted, guidance_interval=(0.0, 0.0), guidance=9.0), plain, atol=1e-5
    )
    other = wanted._replace(text=wanted.text._replace(values=-wanted.text.values))
    assert np.abs(draw(other, guidance=1.0) - plain).max() > 1e-3
    np.testing.assert_allclose(draw(wanted._replace(null=wanted.text)), plain, atol=1e-4)


def test_chunks_give_what_one_run_gives(params, conditions):
    keys, wanted = sample_keys(0, [0, 1]), rows(conditions, [0, 1])
    settings = replace(BASE_SETTINGS, steps=5)
    seen = []

    def callback(step, state):
        seen.append((step, np.asarray(state.x0)))

    whole = sample_stage(BASE, params["base"], keys, wanted, settings)
    chunked = sample_stage(BASE, params["base"], keys, wanted, settings, callback=callback, every=2)
    np.testing.assert_allclose(whole, chunked, atol=1e-6)
    assert [step for step, _ in seen] == [2, 4, 5]
    np.testing.assert_allclose(np.clip(seen[-1][1], -1, 1), whole, atol=1e-5)


def test_progress_tells_stage_batch_and_step(params, conditions):
    seen = []
    sample_cascade(
        CASCADE,
        params,
        sample_keys(0, range(3)),
        conditions,
        batch_size=BATCH,
        callback=lambda p: seen.append((p.stage.name, p.first, p.count, p.step, p.x0.shape)),
        every=3,
    )
    assert seen == [
        ("base", 0, 2, 3, (2, 4, 4, 3)),
        ("base", 0, 2, 4, (2, 4, 4, 3)),
        ("base", 2, 1, 3, (1, 4, 4, 3)),
        ("base", 2, 1, 4, (1, 4, 4, 3)),
        ("sr", 0, 2, 3, (2, 8, 8, 3)),
        ("sr", 2, 1, 3, (1, 8, 8, 3)),
    ]


def test_injected_noise_takes_the_place_of_the_keys(params, conditions):
    keys, other = sample_keys(0, [0, 1]), sample_keys(99, [0, 1])
    wanted = rows(conditions, [0, 1])._replace(low_res=jnp.full((2, 4, 4, 3), 0.3))
    noise = noise_from_keys(keys, (8, 8, 3))
    injected = InjectedNoise(
        jnp.stack([noise(index) for index in range(SR_SETTINGS.steps + 1)]),
        noise(AUGMENTATION_INDEX),
    )
    from_keys = sample_stage(SR, params["sr"], keys, wanted, SR_SETTINGS)
    given = sample_stage(SR, params["sr"], other, wanted, SR_SETTINGS, injected=injected)
    np.testing.assert_allclose(from_keys, given, atol=1e-5)


def test_low_resolution_images_are_enlarged_and_noised(key):
    low_res = jax.random.uniform(key, (2, 4, 4, 3), minval=-1)
    keys = sample_keys(0, [0, 1])
    _, clean = begin_stage(SR, (8, 8, 3), keys, low_res, np.float32(0))
    np.testing.assert_allclose(clean, upsample(low_res, 8), atol=0.01)
    _, noised = begin_stage(SR, (8, 8, 3), keys, low_res, np.float32(1))
    assert np.abs(noised - upsample(low_res, 8)).mean() > 0.3
    with pytest.raises(ValueError, match="4 pixels to enlarge"):
        sample_stage(SR, {}, keys)
    with pytest.raises(ValueError, match="takes no low-resolution"):
        sample_stage(BASE, {}, keys, Conditions(low_res=low_res))


def test_a_cascade_goes_through_json(tmp_path):
    values = json.loads(json.dumps(description.to_dict(CASCADE)))
    assert description.from_dict(values, str(tmp_path)) == CASCADE


def test_a_cascade_must_fit_together():
    with pytest.raises(ValueError, match="takes images of 4 pixels"):
        Cascade((SR, replace(SR, name="other")), (SR_SETTINGS,) * 2, ENCODER)
    with pytest.raises(ValueError, match="names must differ"):
        Cascade((BASE, replace(SR, name="base")), (SR_SETTINGS,) * 2, ENCODER)
    with pytest.raises(ValueError, match="width 16"):
        Cascade((replace(BASE, text_width=16),), (BASE_SETTINGS,), ENCODER)
    with pytest.raises(ValueError, match="2 stages but 1"):
        Cascade((BASE, SR), (BASE_SETTINGS,), ENCODER)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"sampler": "euler"}, "'euler'; choose one of ddpm, ddim, dpmpp_2m, heun"),
        ({"spacing": "karras"}, "'karras'"),
        ({"threshold": "clip"}, "'clip'"),
        ({"steps": 0}, "steps .* 0"),
        ({"steps": 5000}, "steps .* 5000"),
        ({"guidance": float("nan")}, "nan"),
        ({"guidance_interval": (0.1, 1.1)}, "1.1"),
        ({"aug_level": 1.5}, "1.5"),
        ({"eta": -0.5}, "-0.5"),
        ({"percentile": 0.0}, "percentile"),
        ({"cap": 0.5}, "cap"),
        ({"spacing": "fast27", "steps": 50}, "50, but spacing 'fast27' has 27"),
        ({"spacing": (9, 5, 1), "steps": 4}, "has 3 steps"),
        ({"steps_offset": -1}, "steps_offset .* -1"),
        ({"lambda_min": -float("inf")}, "lambda_min"),
    ],
)
def test_settings_refuse_what_makes_no_sense(wrong: dict, named: str):
    with pytest.raises(ValueError, match=named):
        SamplingSettings(**wrong)


@pytest.mark.parametrize("spacing", ["time", "leading", "smart185", (900, 500, 0)])
def test_settings_go_through_json(spacing):
    settings = SamplingSettings(spacing=spacing, steps_offset=1, lambda_min=-5.1)
    assert from_dict(SamplingSettings, json.loads(json.dumps(asdict(settings)))) == settings
    assert settings.steps == {"smart185": 185, (900, 500, 0): 3}.get(spacing, 256)


def test_a_continuous_schedule_has_no_time_steps():
    with pytest.raises(ValueError, match="'fast27' counts time steps, and Cosine has none"):
        sample_stage(BASE, {}, sample_keys(0, [0]), settings=SamplingSettings(spacing="fast27"))


def test_settings_refuse_an_unknown_key():
    with pytest.raises(ValueError, match="'stepz'"):
        from_dict(SamplingSettings, {"stepz": 3})


def test_a_callers_wishes_go_to_their_stages():
    own = CASCADE.sampling
    assert with_overrides(own) == own
    assert [entry.aug_level for entry in with_overrides(own, aug_level=0.7)] == [0.7, 0.7]
    base, sr = with_overrides(own, guidance=9.0, steps=2, sampler="ddim")
    assert (base.guidance, base.steps, base.sampler) == (9.0, 2, "ddim")
    assert (sr.guidance, sr.steps, sr.sampler) == (1.0, 2, "ddim")
    base, sr = with_overrides(own, guidance=(None, 4.0), steps=[7])
    assert (base.guidance, base.steps) == (3.0, 7)
    assert (sr.guidance, sr.steps) == (4.0, 3)
    base, sr = with_overrides(own, spacing=["fast27", (999, 500, 0)])
    assert (base.spacing, base.steps) == ("fast27", 27)
    assert (sr.spacing, sr.steps) == ((999, 500, 0), 3)
    assert [entry.steps for entry in with_overrides(own, spacing="leading")] == [4, 3]
    assert with_overrides((base,), spacing="leading", steps=9)[0].steps == 9
    with pytest.raises(ValueError, match="3 entries; the model has 2"):
        with_overrides(own, steps=(1, 2, 3))
