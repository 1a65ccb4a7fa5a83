"""A stage with a discrete schedule and a learned variance, sampled whole as diffusers samples IF.

The network is our own; what is compared is everything around it: time steps, guidance, variance,
the enlarged and noised low-resolution input, edits.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import network

from imagen_jax import models
from imagen_jax.cascade.cascade import Cascade, sample_keys
from imagen_jax.cascade.sample import InjectedNoise, run_steps, sample_steps
from imagen_jax.cascade.stage import Conditions, Stage, init_params
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.diffusion.time_grids import fixed_steps
from imagen_jax.pipeline.generation import sample_cascade
from imagen_jax.pipeline.request import Request

BATCH, WEIGHT, LEVEL = 2, 4.0, 250
STAGE = Stage(
    "enlarging",
    8,
    replace(network(3, num_classes=3), out_channels=6),
    low_resolution=4,
    conditioning="label",
    schedule=DiscreteBeta(),
    aug_schedule=DiscreteBeta(),
    upsampling="bilinear_align_corners",
)
SETTINGS = Sampling(
    steps=12, spacing="leading", guidance=WEIGHT, percentile=95.0, cap=1.0, aug_level=0.251
)
RNG = np.random.default_rng(5)
TABLE = RNG.standard_normal((64, BATCH, 8, 8, 3)).astype(np.float32)
NOISE = InjectedNoise(TABLE[:40], TABLE[40], TABLE[:40][::-1])
IMAGE = np.tanh(TABLE[50])
MASK = (TABLE[51][..., :1] > 0).astype(np.float32)
LABELS = np.array([2, 0], np.int32)
LOW_RES = np.tanh(RNG.standard_normal((BATCH, 4, 4, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda key: init_params(STAGE, key), jax.random.key(0))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes)


def chunks(params, settings=SETTINGS, noise=NOISE, edit=None, every=None):
    """(step, images) after every so many steps."""
    conditions = Conditions(label=LABELS, low_res=LOW_RES)
    steps = sample_steps(STAGE, params, noise, conditions, settings, edit, every=every)
    return [(step, np.clip(state.x, -1, 1)) for step, state in steps]


def sample(params, settings=SETTINGS, noise=NOISE, edit=None):
    return chunks(params, settings, noise, edit)[-1][1]


class Reference:
    """Stage II of DeepFloyd IF as diffusers' pipelines run it, in torch, around our network."""

    def __init__(self, params, monkeypatch):
        self.torch = pytest.importorskip("torch", reason="the reference runs in it")
        diffusers = pytest.importorskip("diffusers", reason="the reference schedulers")
        self.monkeypatch, self.module = monkeypatch, diffusers.schedulers.scheduling_ddpm
        betas = {"beta_schedule": "squaredcos_cap_v2"}
        noising = diffusers.DDPMScheduler(**betas)
        self.scheduler = diffusers.DDPMScheduler(
            **betas, variance_type="learned_range", thresholding=True,
            dynamic_thresholding_ratio=0.95, sample_max_value=1.0,
        )  # fmt: skip
        low_res = self.torch.nn.functional.interpolate(
            self.image(LOW_RES), (8, 8), mode="bilinear", align_corners=True
        )
        levels = self.torch.tensor([LEVEL] * BATCH)
        low_res = self.array(noising.add_noise(low_res, self.image(TABLE[40]), levels))

        @jax.jit
        def call(x, step):
            both = {"label": jnp.concatenate([LABELS, np.full(BATCH, 3, np.int32)])}
            double = jnp.concatenate([x, x]), jnp.full(2 * BATCH, step, jnp.float32)
            return models.apply(
                STAGE.network, params, *double, text=None,
                low_res=jnp.concatenate([low_res, low_res]),
                aug_level=jnp.full(2 * BATCH, LEVEL, jnp.float32), **both,
            )  # fmt: skip

        self.call = call

    def image(self, x):
        return self.torch.tensor(np.moveaxis(np.asarray(x), -1, 1))

    def array(self, x):
        return np.moveaxis(x.numpy(), 1, -1)

    def run(self, steps, x=None, skipped=0, mask=None):
        """All but the `skipped` first of `steps`; the scheduler knows them all."""
        x = self.image(TABLE[0] if x is None else x)
        for index, step in enumerate(steps[skipped:], start=skipped):
            noise = self.image(TABLE[index + 1])
            self.monkeypatch.setattr(self.module, "randn_tensor", lambda *a, n=noise, **k: n)
            out = self.image(self.call(self.array(x), step))
            (towards, variance), (away, _) = (half.split(3, 1) for half in out.chunk(2))
            mixed = self.torch.cat([away + WEIGHT * (towards - away), variance], 1)
            new = self.scheduler.step(mixed, step, x).prev_sample
            x = new if mask is None else (1 - self.image(mask)) * x + self.image(mask) * new
        return np.clip(self.array(x), -1, 1)

    def start(self, step, mask=None):
        steps = self.torch.tensor([step] * BATCH)
        noised = self.scheduler.add_noise(self.image(IMAGE), self.image(TABLE[0]), steps)
        noised = self.array(noised)
        return noised if mask is None else (1 - mask) * IMAGE + mask * noised


@pytest.fixture
def reference(params, monkeypatch):
    return Reference(params, monkeypatch)


def distance(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("spacing", ["leading", "fast27", (980, 700, 200, 0)])
def test_super_resolution_is_deepfloyd_ifs(params, reference, spacing):
    settings = replace(SETTINGS, spacing=spacing, steps=12 if spacing == "leading" else 256)
    if spacing == "leading":
        reference.scheduler.set_timesteps(12)
    else:
        reference.scheduler.set_timesteps(timesteps=list(fixed_steps(spacing)))
    expected = reference.run([int(n) for n in reference.scheduler.timesteps])
    assert distance(sample(params, settings), expected) < 1e-4
    for changes in ({"aug_level": 0.3}, {"learned_variance": False}, {"guidance": 3.9}):
        assert distance(sample(params, replace(settings, **changes)), expected) > 1e-3


@pytest.mark.parametrize("mask", [None, MASK], ids=["image_to_image", "inpainting"])
def test_edits_are_deepfloyd_ifs(params, reference, mask):
    settings = replace(SETTINGS, steps=20)
    reference.scheduler.set_timesteps(20)
    steps = [int(n) for n in reference.scheduler.timesteps]
    expected = reference.run(steps, reference.start(steps[6], mask), 6, mask)
    edit = Edit(IMAGE, mask, strength=0.7)
    assert distance(sample(params, settings, edit=edit), expected) < 1e-4
    chunked = chunks(params, settings, edit=edit, every=5)
    assert [step for step, _ in chunked] == [5, 10, 14]
    assert distance(chunked[-1][1], expected) < 1e-4


@pytest.mark.parametrize("known", ["clean", "noised"])
def test_resampling_keeps_the_image(params, known):
    """Whatever is drawn, from keys or injected; chunks are the single run; lengths are traced."""
    edit = Edit(IMAGE, MASK, 0.9, known, resamplings=2, jump_length=2)
    keys = sample_keys(0, range(BATCH))
    images = sample(params, noise=keys, edit=edit)
    np.testing.assert_allclose(images * (1 - MASK), IMAGE * (1 - MASK), atol=1e-6)
    compiled = run_steps._cache_size()
    step, chunked = chunks(params, noise=keys, edit=edit, every=4)[-1]
    # 10 of 12 steps; from levels 0, 2, 4 and 6 back by 2, with the jump 3 steps more each.
    assert step == 10 + 4 * 3
    np.testing.assert_allclose(chunked, images, atol=1e-5)
    once = sample(params, noise=keys, edit=replace(edit, jump_length=3))
    sample(params, replace(SETTINGS, steps=15), noise=keys, edit=replace(edit, strength=0.4))
    sample(params, noise=keys, edit=replace(edit, resamplings=1))
    assert run_steps._cache_size() == compiled
    assert distance(once * MASK, images * MASK) > 1e-2


def test_new_spacings_and_numbers_never_recompile(params):
    sample(params)
    compiled = run_steps._cache_size()
    for changes in ({"steps": 20}, {"spacing": "trailing"}, {"spacing": "time"}):
        sample(params, replace(SETTINGS, **changes))
    sample(params, replace(SETTINGS, steps=256, spacing="super27"))
    assert run_steps._cache_size() == compiled


def test_a_cascade_edits_at_each_stage(params):
    """One image for all, one mask a sample, in batches of two."""
    cascade, count = Cascade((STAGE,), (SETTINGS,)), 3
    conditions = Conditions(label=np.array([0, 1, 2]), low_res=np.repeat(LOW_RES[:1], 3, 0))
    mask = np.zeros((count, 8, 8, 1), np.float32)
    mask[1:, :4] = 1
    mask[2] = 1
    seen = []
    request = Request(
        num_images=count, seed=0, edits=[Edit(IMAGE[:1], mask, strength=0.5)], batch_size=2,
        callback=lambda progress: seen.append((progress.step, progress.steps)), every=4,
    )  # fmt: skip
    batches = sample_cascade(cascade, {"enlarging": params}, (SETTINGS,), request, conditions)
    images = np.concatenate(list(batches))
    assert seen == [(4, 6), (6, 6)] * 2
    np.testing.assert_array_equal(images * (1 - mask), IMAGE[:1] * (1 - mask))
    assert np.abs(images[1] - IMAGE[0])[:4].min() > 0


def test_what_an_edit_needs_is_said(params):
    with pytest.raises(ValueError, match=r"edits 2 images of shape \(8, 8, 3\).*\(2, 4, 4, 3\)"):
        sample(params, edit=Edit(LOW_RES))
    with pytest.raises(ValueError, match="lacks `known`"):
        sample(params, noise=NOISE._replace(known=None), edit=Edit(IMAGE, MASK, known="noised"))
    with pytest.raises(ValueError, match=r"strength 0.01 leaves none of 12"):
        sample(params, edit=Edit(IMAGE, strength=0.01))
