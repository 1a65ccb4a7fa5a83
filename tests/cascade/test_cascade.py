"""The cascade and its stages: traced numbers, chunks, injected noise, and what they refuse."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import (
    BASE,
    BASE_SETTINGS,
    CASCADE,
    ENCODER,
    SR,
    SR_SETTINGS,
    random_conditions,
    random_params,
)

from imagen_jax.cascade import description
from imagen_jax.cascade.cascade import Cascade, sample_keys
from imagen_jax.cascade.sample import (
    AUGMENTATION_INDEX,
    InjectedNoise,
    run_steps,
    sample_stage,
    sample_steps,
    start_stage,
)
from imagen_jax.cascade.stage import Conditions
from imagen_jax.diffusion.augmentation import upsample
from imagen_jax.diffusion.samplers import noise_from_keys
from imagen_jax.diffusion.sampling import Sampling


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(CASCADE)


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    """Text of two samples, and one null for both."""
    return random_conditions(2)


def test_numbers_are_traced(params, conditions):
    keys, wanted = sample_keys(0, [0, 1]), conditions
    low_res = jnp.zeros((2, 4, 4, 3))
    sample_stage(BASE, params["base"], keys, wanted, BASE_SETTINGS)
    sample_stage(SR, params["sr"], keys, wanted._replace(low_res=low_res), SR_SETTINGS)
    compiled = run_steps._cache_size(), start_stage._cache_size()
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
    assert (run_steps._cache_size(), start_stage._cache_size()) == compiled


def test_guidance_and_text_matter(params, conditions):
    keys, wanted = sample_keys(0, [0, 1]), conditions

    def sample(conditions: Conditions, **changes) -> np.ndarray:
        settings = replace(BASE_SETTINGS, **changes)
        return np.asarray(sample_stage(BASE, params["base"], keys, conditions, settings))

    plain = sample(wanted, guidance=1.0)
    assert np.abs(sample(wanted) - plain).max() > 1e-3
    # Weight 1 outside its interval is no guidance, and guided away from the text itself neither.
    np.testing.assert_allclose(
        sample(wanted, guidance_interval=(0.0, 0.0), guidance=9.0), plain, atol=1e-5
    )
    other = wanted._replace(text=wanted.text._replace(values=-wanted.text.values))
    assert np.abs(sample(other, guidance=1.0) - plain).max() > 1e-3
    np.testing.assert_allclose(sample(wanted._replace(null=wanted.text)), plain, atol=1e-4)


def test_chunks_give_what_one_run_gives(params, conditions):
    keys, wanted = sample_keys(0, [0, 1]), conditions
    settings = replace(BASE_SETTINGS, steps=5)
    whole = sample_stage(BASE, params["base"], keys, wanted, settings)
    chunks = list(sample_steps(BASE, params["base"], keys, wanted, settings, every=2))
    assert [step for step, _ in chunks] == [2, 4, 5]
    last = chunks[-1][1]
    np.testing.assert_allclose(np.clip(last.x, -1, 1), whole, atol=1e-6)
    np.testing.assert_allclose(np.clip(last.x0, -1, 1), whole, atol=1e-5)


def test_injected_noise_takes_the_place_of_the_keys(params, conditions):
    keys = sample_keys(0, [0, 1])
    wanted = conditions._replace(low_res=jnp.full((2, 4, 4, 3), 0.3))
    noise = noise_from_keys(keys, (8, 8, 3))
    injected = InjectedNoise(
        jnp.stack([noise(index) for index in range(SR_SETTINGS.steps + 1)]),
        noise(AUGMENTATION_INDEX),
    )
    from_keys = sample_stage(SR, params["sr"], keys, wanted, SR_SETTINGS)
    given = sample_stage(SR, params["sr"], injected, wanted, SR_SETTINGS)
    np.testing.assert_allclose(from_keys, given, atol=1e-5)


def test_low_resolution_images_are_upsampled_and_noised(key):
    low_res = jax.random.uniform(key, (2, 4, 4, 3), minval=-1)
    keys = sample_keys(0, [0, 1])
    _, clean = start_stage(SR, (8, 8, 3), keys, low_res, Sampling(aug_level=0.0))
    np.testing.assert_allclose(clean, upsample(low_res, 8), atol=0.01)
    _, noised = start_stage(SR, (8, 8, 3), keys, low_res, Sampling(aug_level=1.0))
    assert np.abs(noised - upsample(low_res, 8)).mean() > 0.3
    with pytest.raises(ValueError, match="4 pixels to upsample"):
        sample_stage(SR, {}, keys)
    with pytest.raises(ValueError, match="takes no low-resolution"):
        sample_stage(BASE, {}, keys, Conditions(low_res=low_res))
    noise = InjectedNoise(np.zeros((SR_SETTINGS.steps + 1, 2, 8, 8, 3)))
    with pytest.raises(ValueError, match="lacks `augmentation`"):
        sample_stage(SR, {}, noise, Conditions(low_res=low_res), SR_SETTINGS)


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
    with pytest.raises(ValueError, match="Unknown sampler 'plms'; choose one of ddpm"):
        Cascade((BASE,), (Sampling(sampler="plms"),), ENCODER)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampler": "plms"}, "Unknown sampler 'plms'; choose one of ddpm"),
        ({"threshold": "clip"}, "Unknown threshold 'clip'; choose one of none, static"),
        ({"steps": 5000}, "steps must be a whole number from 1 to 1024: 5000"),
    ],
)
def test_a_stage_is_sampled_by_what_is_known(changes, named):
    with pytest.raises(ValueError, match=named):
        sample_stage(BASE, {}, sample_keys(0, [0]), sampling=Sampling(**changes))


def test_a_continuous_schedule_has_no_time_steps():
    with pytest.raises(ValueError, match="'fast27' counts time steps, and Cosine has none"):
        sample_stage(BASE, {}, sample_keys(0, [0]), sampling=Sampling(spacing="fast27"))
