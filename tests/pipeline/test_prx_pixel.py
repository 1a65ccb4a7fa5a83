"""A PRXPixel directory, read and sampled here and by diffusers from the same noise and text."""

from dataclasses import replace
from math import log

import jax
import numpy as np
import pytest

import imagen_jax
from imagen_jax.cascade.cascade import Cascade, sample_keys
from imagen_jax.cascade.sample import InjectedNoise, plan_steps, sample_stage, sample_steps
from imagen_jax.cascade.stage import Conditions
from imagen_jax.convert.prx_pipeline import schedule_of
from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.diffusion.schedules import Flow
from imagen_jax.models import PRXConfig
from imagen_jax.typing import TextEmbeddings
from tests.tiny_prx import TINY, change_json, diffusers, pipeline, relative_error, save, torch

LENGTH = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(pipeline(0), tmp_path_factory.mktemp("prx") / "tiny")


@pytest.fixture(scope="module")
def model(directory):
    return imagen_jax.load_model(directory)


def embeddings(rng, rows: int = 1) -> TextEmbeddings:
    values = rng.standard_normal((rows, LENGTH, TINY["context_in_dim"]), np.float32)
    return TextEmbeddings(values, np.arange(LENGTH)[None] < rng.integers(2, LENGTH, (rows, 1)))


def theirs(made, eps, text, null, guidance, steps) -> list[np.ndarray]:
    """What diffusers' pipeline has after every step."""
    seen = []

    def see(pipe, i, t, values):
        seen.append(values["latents"].numpy().transpose(0, 2, 3, 1))
        return {}

    made(
        prompt_embeds=torch.from_numpy(text.values),
        prompt_attention_mask=torch.from_numpy(text.mask),
        negative_prompt_embeds=torch.from_numpy(null.values),
        negative_prompt_attention_mask=torch.from_numpy(null.mask),
        latents=made.config.noise_scale * torch.from_numpy(eps.transpose(0, 3, 1, 2).copy()),
        height=eps.shape[1],
        width=eps.shape[2],
        guidance_scale=guidance,
        num_inference_steps=steps,
        use_resolution_binning=False,
        output_type="pt",
        callback_on_step_end=see,
    )
    return seen


@pytest.mark.parametrize(
    ("shift", "guidance", "steps", "size"),
    [(3.0, 4.0, 28, (8, 8)), (1.0, 1.0, 3, (4, 12))],
)
def test_every_step_is_diffusers(shift, guidance, steps, size, tmp_path):
    made, rng = pipeline(steps, shift), np.random.default_rng(steps)
    model = imagen_jax.load_model(save(made, tmp_path / "tiny"))
    (stage,), (sampling,) = model.cascade.stages, model.cascade.sampling
    text, null = embeddings(rng), embeddings(rng)
    eps = rng.standard_normal((1, *size, 3), np.float32)
    expected = theirs(made, eps, text, null, guidance, steps)
    (sampling,) = with_overrides((sampling,), guidance=guidance, steps=steps)
    states = sample_steps(
        stage,
        model.params[stage.name],
        InjectedNoise(eps[None]),
        Conditions(text=text, null=null),
        sampling,
        size=size,
        every=1,
    )
    ours = [np.asarray(state.x) for _, state in states]
    assert len(ours) == len(expected) == steps
    assert max(map(relative_error, ours, expected)) < 1e-5


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 6.5])
@pytest.mark.parametrize("steps", [1, 2, 28, 1000])
def test_sigmas_are_diffusers(shift, steps, model):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    schedule = schedule_of(dict(scheduler.config), noise_scale=2.0)
    (sampling,) = with_overrides(model.cascade.sampling, steps=steps)
    stage = replace(model.cascade.stages[0], schedule=schedule)
    grid = plan_steps(stage, sampling)
    assert (grid.start, grid.stop) == (0, steps)
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(grid.times[: steps + 1]))
    expected = scheduler.sigmas.numpy()
    np.testing.assert_allclose(np.asarray(sigma) / 2.0, expected, rtol=2e-6)
    np.testing.assert_allclose(alpha, 1.0 - expected, rtol=2e-6, atol=1e-6)
    assert sigma[-1] == 0.0


def test_the_cascade_is_that_of_the_files(model):
    (stage,), (sampling,) = model.cascade.stages, model.cascade.sampling
    assert model.cascade == Cascade((stage,), (sampling,))
    assert (stage.name, stage.resolution, stage.text_width) == ("base8", 8, 16)
    assert stage.network == PRXConfig(
        patch_size=2, bottleneck=8, width=32, depth=2, heads=4, mlp_ratio=2.0
    )
    assert stage.schedule == Flow(shift=-2 * log(3.0), noise_scale=2.0)
    assert stage.prediction == "x0"
    assert (sampling.steps, sampling.guidance, sampling.threshold) == (28, 4.0, "none")


def test_embeddings_are_given_and_prompts_refused(directory):
    model = imagen_jax.load_model(directory, dtype="bfloat16")
    (stage,), (sampling,) = model.cascade.stages, with_overrides(model.cascade.sampling, steps=2)
    rng = np.random.default_rng(0)
    images = sample_stage(
        stage,
        model.params[stage.name],
        sample_keys(0, range(2)),
        Conditions(text=embeddings(rng, 2), null=embeddings(rng)),
        sampling,
    )
    assert images.shape == (2, 8, 8, 3)
    assert np.all(np.isfinite(images))
    assert not np.array_equal(images[0], images[1])
    with pytest.raises(ValueError, match=r"without a text encoder.*sample_stage"):
        model.generate_images("a red cat")


def test_it_becomes_a_model_directory(model, tmp_path):
    model.save_pretrained(tmp_path / "ours", dtype="float32")
    again = imagen_jax.load_model(tmp_path / "ours")
    assert again.cascade == model.cascade
    name = model.cascade.stages[0].name
    jax.tree.map(np.testing.assert_array_equal, again.params[name], model.params[name])


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        (
            "scheduler/scheduler_config.json",
            {"use_karras_sigmas": True},
            "use_karras_sigmas = True",
        ),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "stochastic_sampling"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 0.1}, "shift_terminal = 0.1"),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas"),
        ("scheduler/scheduler_config.json", {"shift": 0}, "shift is 0; supported is a positive"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "is 500; .* is 1000"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"}, "'DDPMScheduler'"),
        ("model_index.json", {"noise_scale": -1}, "noise_scale is -1"),
        ("model_index.json", {"default_sample_size": 9}, "default_sample_size is 9; .*multiple"),
        ("model_index.json", {"transformer": None}, "names no 'transformer'"),
        ("transformer/config.json", {"in_channels": 16}, "in_channels is 16"),
    ],
)
def test_what_is_not_supported_is_named(file, values, said, tmp_path):
    path = save(pipeline(0), tmp_path / "tiny")
    change_json(path / file, **values)
    with pytest.raises(ValueError, match=said):
        imagen_jax.load_model(path)


def test_damaged_weights_are_named(tmp_path):
    path = save(pipeline(0), tmp_path / "tiny")
    change_json(path / "transformer" / "config.json", depth=3)
    model = imagen_jax.load_model(path)
    with pytest.raises(ValueError, match=r"blocks\.2"):
        model.params["base8"]
    (path / "transformer" / "diffusion_pytorch_model.safetensors").rename(path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="diffusion_pytorch_model"):
        imagen_jax.load_model(path)
