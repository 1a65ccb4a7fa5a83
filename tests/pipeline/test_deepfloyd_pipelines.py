"""DeepFloyd IF's six pipelines of diffusers against `load_model` of their directories.

Tiny random networks, one table of noise for both; guidance, dynamic thresholding and the learned
variance are on.
"""

from dataclasses import replace

import numpy as np
import pytest
from tiny_deepfloyd import (
    BASE_SIZE,
    SR_SIZE,
    components,
    diffusers,
    save,
    text_components,
    torch,
)

from imagen_jax.cascade.sample import InjectedNoise, sample_stage
from imagen_jax.diffusion.editing import Edit
from imagen_jax.pipeline.generation import encode_request
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.request import Request

PROMPTS = ["A photo of <b>Two</b> dogs!!", "a red cat & seven balloons"]
BATCH = len(PROMPTS)
STEPS = 12
RNG = np.random.default_rng(11)
IMAGES = {
    size: np.tanh(RNG.standard_normal((BATCH, size, size, 3))).astype(np.float32)
    for size in (BASE_SIZE, SR_SIZE)
}
MASK = (RNG.standard_normal((SR_SIZE, SR_SIZE)) > 0).astype(np.float32)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of stage I with the text encoder, and of stage II without it."""
    place = tmp_path_factory.mktemp("if")
    text = text_components(place / "spiece")
    stage1 = diffusers.IFPipeline(**components(text, False))
    stage2 = diffusers.IFSuperResolutionPipeline(**components(text, True, 2))
    save(stage1, place / "stage1", place / "spiece")
    for name in text:
        stage2.register_modules(**{name: None})
    save(stage2, place / "stage2")
    return place


@pytest.fixture(scope="module")
def parts(places):
    """The same networks as diffusers has read them back."""
    stage1 = diffusers.IFPipeline.from_pretrained(places / "stage1")
    stage2 = diffusers.IFSuperResolutionPipeline.from_pretrained(places / "stage2")
    text = {"tokenizer": stage1.tokenizer, "text_encoder": stage1.text_encoder}
    return [
        dict(stage1.components, requires_safety_checker=False),
        dict(stage2.components, requires_safety_checker=False, **text),
    ]


@pytest.fixture(scope="module")
def joined(places):
    return load_model([places / "stage1", places / "stage2"])


def to_torch(images):
    return torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy())


def relative(ours, theirs):
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


class Noise:
    """The draws of a pipeline, in order, from a table."""

    def __init__(self, size, seed=0):
        rng = np.random.default_rng(seed)
        self.table = rng.standard_normal((STEPS + 4, BATCH, size, size, 3)).astype(np.float32)
        self.drawn = 0

    def __call__(self, shape, **_):
        noise = to_torch(self.table[self.drawn])
        assert tuple(noise.shape) == tuple(shape)
        self.drawn += 1
        return noise

    def injected(self, first_step, enlarging):
        """For our steps, of which the first is `first_step`: initial, augmentation, then steps."""
        used = self.table[: self.drawn]
        augmentation = used[1] if enlarging else None
        noises = used[2:] if enlarging else used[1:]
        steps = np.zeros((STEPS + 1, *used.shape[1:]), np.float32)
        steps[0] = used[0]
        steps[first_step + 1 : first_step + 1 + len(noises)] = noises
        return InjectedNoise(steps, augmentation)


def run_theirs(name, parts, monkeypatch, noise, **wishes):
    import importlib

    kind = getattr(diffusers, name)
    for module in (kind.__module__, "diffusers.schedulers.scheduling_ddpm"):
        monkeypatch.setattr(importlib.import_module(module), "randn_tensor", noise)
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    wishes = {"prompt": PROMPTS, "num_inference_steps": STEPS, "output_type": "pt", **wishes}
    return pipeline(**wishes).images


def run_ours(model, position, noise, first_step=0, low_res=None, edit=None, **changes):
    cascade, stage = model.cascade, model.cascade.stages[position]
    request = Request(PROMPTS, negative_prompt=changes.pop("negative", None), batch_size=BATCH)
    conditions = encode_request(cascade, model.params, request)._replace(low_res=low_res)
    sampling = replace(cascade.sampling[position], steps=STEPS, **changes)
    injected = noise.injected(first_step, low_res is not None)
    params = model.params[stage.name]
    return np.asarray(sample_stage(stage, params, injected, conditions, sampling, edit))


def test_text_to_image(parts, joined, monkeypatch):
    noise = Noise(BASE_SIZE)
    theirs = run_theirs("IFPipeline", parts[0], monkeypatch, noise, guidance_scale=7.0)
    assert noise.drawn == STEPS
    assert relative(run_ours(joined, 0, noise), theirs.clamp(-1, 1)) < 1e-4
    # Guidance, noise and text all matter: without any of them the result is another one.
    assert relative(run_ours(joined, 0, noise, guidance=1.0), theirs) > 1e-2
    assert relative(run_ours(joined, 0, noise, negative="seven red dogs"), theirs) > 1e-3
    assert relative(run_ours(joined, 0, noise, learned_variance=False), theirs) > 1e-3


def test_a_negative_prompt(parts, joined, monkeypatch):
    noise, negative = Noise(BASE_SIZE), "the lazy Fox"
    theirs = run_theirs(
        "IFPipeline", parts[0], monkeypatch, noise, negative_prompt=[negative] * BATCH
    )
    ours = run_ours(joined, 0, noise, negative=negative)
    assert relative(ours, theirs.clamp(-1, 1)) < 1e-4


def test_image_to_image(parts, joined, monkeypatch):
    noise, image = Noise(BASE_SIZE), IMAGES[BASE_SIZE]
    theirs = run_theirs(
        "IFImg2ImgPipeline", parts[0], monkeypatch, noise,
        image=to_torch(image), strength=0.85, guidance_scale=7.0,
    )  # fmt: skip
    assert noise.drawn == 10
    ours = run_ours(joined, 0, noise, STEPS - 10, edit=Edit(image, strength=0.85))
    assert relative(ours, theirs.clamp(-1, 1)) < 1e-4


def test_inpainting(parts, joined, monkeypatch):
    noise, image = Noise(BASE_SIZE), IMAGES[BASE_SIZE]
    mask = MASK[:BASE_SIZE, :BASE_SIZE]
    theirs = run_theirs(
        "IFInpaintingPipeline", parts[0], monkeypatch, noise, image=to_torch(image),
        mask_image=torch.from_numpy(mask[None, None].copy()), strength=1.0, guidance_scale=7.0,
    )  # fmt: skip
    ours = run_ours(joined, 0, noise, edit=Edit(image, mask[None, ..., None], known="clean"))
    assert relative(ours, theirs.clamp(-1, 1)) < 1e-4


def test_super_resolution(parts, joined, monkeypatch):
    noise, low_res = Noise(SR_SIZE), IMAGES[BASE_SIZE]
    theirs = run_theirs(
        "IFSuperResolutionPipeline", parts[1], monkeypatch, noise, image=to_torch(low_res)
    )
    assert noise.drawn == STEPS + 1
    ours = run_ours(joined, 1, noise, low_res=low_res)
    assert relative(ours, theirs.clamp(-1, 1)) < 1e-4
    assert relative(run_ours(joined, 1, noise, low_res=low_res, aug_level=0.3), theirs) > 1e-3


def test_image_to_image_at_super_resolution(parts, joined, monkeypatch):
    noise, low_res, image = Noise(SR_SIZE), IMAGES[BASE_SIZE], IMAGES[SR_SIZE]
    theirs = run_theirs(
        "IFImg2ImgSuperResolutionPipeline", parts[1], monkeypatch, noise,
        image=to_torch(low_res), original_image=to_torch(image), strength=0.85,
    )  # fmt: skip
    edit = Edit(image, strength=0.85)
    ours = run_ours(joined, 1, noise, STEPS - 10, low_res=low_res, edit=edit)
    assert relative(ours, theirs.clamp(-1, 1)) < 1e-4


def test_inpainting_at_super_resolution(parts, joined, monkeypatch):
    noise, low_res, image = Noise(SR_SIZE), IMAGES[BASE_SIZE], IMAGES[SR_SIZE]
    theirs = run_theirs(
        "IFInpaintingSuperResolutionPipeline", parts[1], monkeypatch, noise,
        image=to_torch(low_res), original_image=to_torch(image), strength=1.0,
        mask_image=torch.from_numpy(MASK[None, None].copy()), noise_level=0,
    )  # fmt: skip
    edit = Edit(image, MASK[None, ..., None], known="clean")
    ours = run_ours(joined, 1, noise, low_res=low_res, edit=edit, aug_level=0.001)
    assert relative(ours, theirs.clamp(-1, 1)) < 1e-4
