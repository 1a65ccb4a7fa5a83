"""The stage: JSON and back, what it refuses, and its denoiser."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import BASE, SR, network, random_params

from imagen_jax import models
from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.stage import (
    KINDS,
    Conditions,
    Stage,
    apply_network,
    init_params,
    make_stage_denoiser,
    null_label,
)
from imagen_jax.diffusion.losses import Loss
from imagen_jax.diffusion.process import convert
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta, LinearBeta
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.storage.codec import from_dict, to_dict
from imagen_jax.text.encoder import null_text
from imagen_jax.typing import TextEmbeddings

UNET = UNetConfig((UNetLevel(8, 1), UNetLevel(8, 2, "self")), out_channels=6, num_classes=5)
CLASSES = Stage(
    "classes",
    16,
    UNET,
    conditioning="label",
    schedule=LinearBeta(1e-3, 0.01, 500),
    prediction="v",
    loss=Loss("min_snr", min_snr_gamma=3.0),
    time_power=0.5,
)

DISCRETE = replace(
    SR,
    name="discrete",
    network=replace(SR.network, out_channels=6),
    schedule=DiscreteBeta(),
    aug_schedule=DiscreteBeta("linear", 1e-3, 0.01, 500),
    upsampling="bilinear_align_corners",
    loss=Loss(vlb_weight=0.001),
)


def read(values):
    return from_dict(Stage, values, "stage", KINDS)


@pytest.mark.parametrize("stage", [BASE, SR, CLASSES, DISCRETE], ids=lambda stage: stage.name)
def test_json_and_back(stage):
    assert read(json.loads(json.dumps(to_dict(stage, KINDS)))) == stage


def test_models_of_before_have_the_defaults():
    values = to_dict(SR, KINDS)
    del values["aug_schedule"], values["upsampling"], values["time_logit_normal"]
    del values["loss"]["vlb_weight"], values["loss"]["min_scale"]
    assert read(values) == SR


def test_from_dict_names_what_it_does_not_know():
    values = to_dict(BASE, KINDS)
    network = values["network"]
    levels = [{"channels": 8, "width": 1}]
    for changes, match in [
        ({"speed": 3}, r"unknown key 'stage\.speed'.*time_power"),
        ({"network": {**network, "depth": 3}}, r"unknown key 'stage\.network\.depth'"),
        ({"network": {**network, "kind": "vit"}}, r"'stage\.network\.kind' is 'vit'; known: unet"),
        ({"schedule": {"shift": 0.0}}, r"'stage\.schedule\.kind' is None; known: cosine"),
        ({"network": {**network, "levels": levels}}, r"'stage\.network\.levels\.0\.width'"),
        ({"loss": {"weight": "huber"}}, "unknown loss weight 'huber'"),
    ]:
        with pytest.raises(ValueError, match=match):
            read({**values, **changes})


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (BASE, {"resolution": 5}, "5 is not a multiple of 2"),
        (BASE, {"resolution": 0}, "0 is not a multiple of 2"),
        (BASE, {"text_width": None}, "needs text_width"),
        (BASE, {"conditioning": "label"}, "num_classes None do not fit"),
        (BASE, {"network": network(num_classes=3)}, "num_classes 3 do not fit"),
        (BASE, {"low_resolution": 2}, "a super-resolution stage needs both"),
        (SR, {"low_resolution": None}, "a super-resolution stage needs both"),
        (BASE, {"channels": 1}, "the network takes 3 and gives 3 channels for images of 1"),
        (SR, {"aug_levels": (0.5, 0.2)}, "must rise within"),
        (SR, {"aug_levels": (0.0, 1.5)}, "must rise within"),
        (BASE, {"time_power": 0.0}, "time_power must be positive"),
        (BASE, {"time_logit_normal": (0.0, 0.0)}, "a mean and a positive deviation"),
        (BASE, {"time_logit_normal": (0.0, 1.0), "time_power": 0.5}, "time_power 1, not 0.5"),
        (BASE, {"prediction": "v", "min_scale": 0.05}, "min_scale 0.05 is for prediction 'x0'"),
        (SR, {"upsampling": "cubic"}, "upsampling 'cubic' must be one of .*bilinear_align_corners"),
        (BASE, {"loss": Loss(vlb_weight=0.1)}, "out_channels 6, not 3"),
        (DISCRETE, {"schedule": LinearBeta()}, "a schedule of kind discrete_beta"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(stage, changes, message):
    with pytest.raises(ValueError, match=f"stage '{stage.name}': .*{message}"):
        replace(stage, **changes)


def test_unknown_predictions_are_named():
    stage = replace(BASE)
    object.__setattr__(stage, "prediction", "noise")  # where annotations are not checked
    with pytest.raises(ValueError, match=r"prediction 'noise' must be one of .*'eps'"):
        stage.__post_init__()


def test_the_reduction_is_what_resolutions_are_multiples_of():
    assert models.reduction(UNET) == 2
    assert models.reduction(replace(network(), patch_size=4)) == 8


def params_of(stage: Stage) -> dict:
    if stage.conditioning == "text":
        stage = replace(stage, conditioning=None, text_width=None)
    return random_params(Cascade((stage,), (Sampling(),)))[stage.name]


@pytest.fixture(scope="module")
def labelled():
    """A stage of three classes, 4x4, and everything that a call needs."""
    stage = Stage("labelled", 4, network(num_classes=3), conditioning="label", prediction="v")
    rng = np.random.default_rng(3)
    x_t = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    return stage, params_of(stage), x_t, jnp.array([0.3, 0.8]), jnp.array([0, 2])


def test_guidance_mixes_class_and_no_class(labelled):
    """Weight 2: 2 cond - uncond of the network's own outputs, then x0; weight 1: cond alone."""
    stage, params, x_t, t, label = labelled
    np.testing.assert_array_equal(null_label(stage, 2), [3, 3])
    call = jax.jit(lambda label: apply_network(stage, params, x_t, t, label=label))
    conditional, unconditional = call(label), call(null_label(stage, 2))
    assert np.abs(conditional - unconditional).max() > 1e-3

    @jax.jit
    def denoise(weight):
        sampling = Sampling(guidance=weight, threshold="none")
        denoiser = make_stage_denoiser(stage, params, Conditions(label=label), sampling)
        return denoiser(x_t, t).x0

    for weight in (1.0, 2.0):
        output = weight * conditional + (1 - weight) * unconditional
        expected = convert(output, x_t, stage.schedule.logsnr(t), "v", "x0")
        np.testing.assert_allclose(denoise(jnp.float32(weight)), expected, atol=1e-4)


def test_guidance_leads_away_from_the_null_text():
    """A text stage that enlarges: the pair is one doubled batch with the same low-resolution."""
    stage = replace(SR, resolution=4, low_resolution=2)
    shapes = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), jnp.float32), shapes)
    x_t, low_res = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    values = jnp.asarray(rng.normal(size=(2, 3, stage.text_width)), jnp.float32)
    text, null = TextEmbeddings(values, jnp.ones((2, 3), bool)), null_text(2, 3, stage.text_width)
    t, level = jnp.array([0.3, 0.8]), jnp.array([0.2, 0.2])
    sampling = Sampling(guidance=3.0, threshold="none", aug_level=0.2)
    given = {"low_res": low_res, "aug_level": level}
    call = jax.jit(lambda text: apply_network(stage, params, x_t, t, text=text, **given))
    output = 3.0 * call(text) - 2.0 * call(null)
    expected = convert(output, x_t, stage.schedule.logsnr(t), "eps", "x0")
    denoiser = make_stage_denoiser(stage, params, Conditions(text, null, low_res=low_res), sampling)
    result = jax.jit(lambda: denoiser(x_t, t).x0)()
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_networks_see_thousandths(labelled):
    stage, params, x_t, t, label = labelled
    direct = jax.jit(lambda: models.apply(stage.network, params, x_t, 1000 * t, label=label))()
    staged = jax.jit(lambda: apply_network(stage, params, x_t, t, label=label))()
    np.testing.assert_allclose(staged, direct, atol=1e-5)


def test_a_stage_without_conditions_has_no_parameters_for_them():
    plain = replace(BASE, conditioning=None, text_width=None)
    shapes = jax.eval_shape(lambda key: init_params(plain, key), jax.random.key(0))
    with_text = jax.eval_shape(lambda key: init_params(BASE, key), jax.random.key(0))
    names = {"/".join(str(k.key) for k in path) for path, _ in jax.tree.leaves_with_path(shapes)}
    more = {"/".join(str(k.key) for k in path) for path, _ in jax.tree.leaves_with_path(with_text)}
    assert names < more
    assert not any("text" in name for name in names)


def test_a_crop_fits_the_network_and_the_enlargement():
    cropped = replace(SR, crop=4)
    assert (SR.training_side, cropped.training_side) == (SR.resolution, 4)
    for side in (0, 3, 2 * SR.resolution):
        with pytest.raises(ValueError, match=f"crop {side} must be at most {SR.resolution}"):
            replace(SR, crop=side)
    assert read(to_dict(cropped, KINDS)) == cropped
