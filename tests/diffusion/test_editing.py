"""Editing against diffusers' pipelines for DeepFloyd IF, and RePaint's path and kernels."""

from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.denoiser import Denoised
from imagen_jax.diffusion.editing import (
    Edit,
    check_edit,
    edited_grid,
    edited_start,
    first_step,
    inpainting,
    jumping,
    resampling_path,
)
from imagen_jax.diffusion.samplers import initial_state, sample_loop
from imagen_jax.diffusion.steps import NO_ESTIMATE
from imagen_jax.diffusion.time_grids import padded_grid, spaced_steps, step_grid

diffusers = pytest.importorskip("diffusers", reason="the reference schedulers and pipelines")
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    IFImg2ImgPipeline,
    IFInpaintingPipeline,
    RePaintScheduler,
)
from diffusers.pipelines.deepfloyd_if import (  # noqa: E402
    pipeline_if_img2img,
    pipeline_if_inpainting,
)
from diffusers.schedulers import scheduling_ddpm, scheduling_repaint  # noqa: E402
from scheduler_runs import (  # noqa: E402
    COSINE,
    IF_STAGE_1,
    SHAPE,
    TABLE,
    distance,
    from_torch,
    guided_output,
    inject,
    our_run,
    scheduler_run,
    to_torch,
)

IMAGE = np.tanh(TABLE[60])
MASK = (TABLE[61][..., :1] > 0).astype(np.float32)
COUNT = 16
GRID = step_grid(COSINE, spaced_steps(COSINE, "leading", COUNT))
SCHEDULERS = {
    "ddpm": lambda: DDPMScheduler(**IF_STAGE_1, timestep_spacing="leading"),
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**IF_STAGE_1),
}
STEPS = [int(n) for n in spaced_steps(COSINE, "leading", COUNT)]


def keep(sampler, given):
    """For `our_run`: the sampler that keeps the image outside of the mask."""
    image, mask, known = given
    if known is None:
        return inpainting(sampler, Edit(image, mask), lambda index: image * jnp.nan)
    return inpainting(sampler, Edit(image, mask, known="noised"), lambda index: known[index])


def keep_and_jump(sampler, given):
    return keep(jumping(sampler), given)


def their_start(pipeline, module, scheduler, strength, monkeypatch, *mask):
    """The pipeline's own first image, and the steps that it runs."""
    pipe = SimpleNamespace(scheduler=scheduler)
    steps, left = pipeline.get_timesteps(pipe, COUNT, strength)
    assert len(steps) == left
    inject(monkeypatch, module, [TABLE[0]])
    x = pipeline.prepare_intermediate_images(
        pipe, to_torch(IMAGE), steps[:1].repeat(2), 2, 1, torch.float32, "cpu", *mask
    )
    return from_torch(x), steps


def their_schedule(name):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(timesteps=STEPS)
    return scheduler


def our_start(strength, mask=None):
    start = first_step(COUNT, strength)
    edit, eps = Edit(jnp.asarray(IMAGE), mask), jnp.asarray(TABLE[0])
    return start, np.asarray(edited_start(edit, eps, COSINE, GRID.times[start]))


@pytest.mark.parametrize("count", [1, 3, 10, 27, 50, 100])
def test_strength_leaves_as_many_steps_as_in_diffusers(count):
    scheduler = DDPMScheduler()
    for strength in (0.1, 0.29, 0.3, 0.57, 0.7, 0.8, 0.999, 1.0):
        scheduler.set_timesteps(count)
        pipe = SimpleNamespace(scheduler=scheduler)
        timesteps, left = IFImg2ImgPipeline.get_timesteps(pipe, count, strength)
        if left < 1:
            with pytest.raises(ValueError, match=f"strength {strength} leaves none of {count}"):
                first_step(count, strength)
            continue
        steps = spaced_steps(COSINE, "leading", count)[first_step(count, strength) :]
        np.testing.assert_array_equal(steps, timesteps)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_image_to_image_is_diffusers(name, strength, monkeypatch):
    scheduler = their_schedule(name)
    x, steps = their_start(IFImg2ImgPipeline, pipeline_if_img2img, scheduler, strength, monkeypatch)
    start, ours = our_start(strength)
    assert distance(ours, x) < 1e-6
    assert len(steps) == COUNT - start >= 10
    inject(monkeypatch, scheduling_ddpm, TABLE[start + 1 :])
    expected = scheduler_run(scheduler, x, steps=steps)
    runs = our_run(COSINE, GRID, ours, sampler=name, start=start)
    assert max(map(distance, runs, expected)) < 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inpainting_is_diffusers(name, strength, monkeypatch):
    """The kept part stays the image itself, from before the first step on."""
    scheduler, mask = their_schedule(name), to_torch(MASK)
    x, steps = their_start(
        IFInpaintingPipeline, pipeline_if_inpainting, scheduler, strength, monkeypatch, mask
    )
    start, ours = our_start(strength, jnp.asarray(MASK))
    assert distance(ours, x) < 1e-6
    inject(monkeypatch, scheduling_ddpm, TABLE[start + 1 :])
    expected = scheduler_run(
        scheduler, x, after=lambda before, x: (1 - mask) * before + mask * x, steps=steps
    )
    runs = our_run(
        COSINE, GRID, ours, sampler=name, start=start, wrap=keep, given=(IMAGE, MASK, None)
    )
    assert len(runs) == len(expected) >= 10
    assert max(map(distance, runs, expected)) < 1e-4
    np.testing.assert_array_equal(runs[-1] * (1 - MASK), IMAGE * (1 - MASK))
    free = our_run(COSINE, GRID, our_start(strength)[1], sampler=name, start=start)
    assert distance(runs[-1] * MASK, free[-1] * MASK) > 1e-2  # the kept part matters to the rest


# ---- RePaint


def visited(num_steps, jump_length, resamplings):
    """Noise levels that RePaint visits, by the rule of its paper's appendix; -1 is clean."""
    left = dict.fromkeys(range(0, num_steps - jump_length, jump_length), resamplings - 1)
    levels = [num_steps - 1]
    while levels[-1] >= 0:
        if left.get(levels[-1], 0) > 0 and len(levels) > 1 and levels[-2] > levels[-1]:
            left[levels[-1]] -= 1
            levels += range(levels[-1] + 1, levels[-1] + jump_length + 1)
        else:
            levels.append(levels[-1] - 1)
    return levels


@pytest.mark.parametrize(("jump_length", "resamplings"), [(1, 3), (2, 2), (5, 4), (20, 2)])
def test_the_path_is_repaints(jump_length, resamplings):
    levels = visited(20, jump_length, resamplings)
    path = 19 - resampling_path(20, 0, resamplings, jump_length)
    before, after = [99, *levels[:-1]], [*levels[1:], -9]
    inside = [a < level < b for a, level, b in zip(before, levels, after, strict=True)]
    # A jump is one step here, whatever it passes on its way up.
    assert path.tolist() == [n for n, passed in zip(levels, inside, strict=True) if not passed]
    assert any(inside) == (1 < jump_length < 20)


def test_no_resampling_is_the_plain_path():
    np.testing.assert_array_equal(resampling_path(12, 5, 1, 3), np.arange(13))
    grid = edited_grid(GRID, Edit(jnp.zeros(SHAPE), strength=13 / 16, jump_length=4))
    assert int(grid.start) == 3
    jax.tree.map(np.testing.assert_array_equal, grid._replace(start=np.int32(0)), GRID)


def test_paths_start_where_strength_says():
    path = resampling_path(20, 8, 3, 4)
    np.testing.assert_array_equal(path[:9], np.arange(9))
    assert path[8:].min() == 8
    assert path[-1] == 20
    downs = np.diff(path[8:])
    assert set(downs) == {1, -4}
    # Every stretch between jumps is passed three times.
    assert np.sum(downs == 1) == 12 + 2 * 4 * np.sum(np.unique(path[:-1][np.diff(path) < 0]) > 0)


def test_repaints_long_path_fits():
    grid = step_grid(COSINE, spaced_steps(COSINE, "leading", 250))
    grid = edited_grid(grid, Edit(jnp.zeros(SHAPE), resamplings=10, jump_length=10))
    assert int(grid.stop) == 250 + 24 * 9 * 11
    assert grid.times.shape == (3 * 1024 + 1,)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (10, 300), (500, 999)])
def test_a_jump_is_the_forward_process(low, high):
    """x_s = sqrt(prod (1 - beta)) x_t + sqrt(1 - prod) z over the betas between."""
    kept = np.prod(1.0 - COSINE.betas().astype(np.float64)[low + 1 : high + 1])
    times = np.array([(low + 1) / 1000, (high + 1) / 1000], np.float32)
    grid = padded_grid(times)

    def never(denoise, state, step, noise, sampling):
        return state._replace(x=state.x * jnp.nan)

    for x, noise in ((1.0, 0.0), (0.0, 1.0)):
        state = sample_loop(
            jumping(never), lambda x, t: Denoised(x), COSINE, grid,
            initial_state(jnp.full((1, 1, 1, 1), x)),
            lambda index, noise=noise: jnp.full((1, 1, 1, 1), noise),
        )  # fmt: skip
        expected = np.sqrt(kept) * x + np.sqrt(1 - kept) * noise
        np.testing.assert_allclose(state.x.item(), expected, rtol=2e-3 if high == 1 else 1e-4)
        assert state.history[0].logsnr == NO_ESTIMATE


@pytest.mark.parametrize("step", [900, 500, 100, 0])
def test_a_step_is_the_repaint_schedulers(step, monkeypatch):
    """At eta 1 and without clipping; it gives both parts the same noise, so ours is given it."""
    theirs = RePaintScheduler(beta_schedule="squaredcos_cap_v2", eta=1.0, clip_sample=False)
    theirs.set_timesteps(10, 1, 1)
    inject(monkeypatch, scheduling_repaint, [TABLE[1]])
    output = guided_output(to_torch(TABLE[5]), step, 3.0, False)
    expected = theirs.step(
        output, step, to_torch(TABLE[5]), to_torch(IMAGE), 1 - to_torch(MASK)
    ).prev_sample
    grid = (
        step_grid(COSINE, [step])
        if step == 0
        else padded_grid([(step + 1) / 1000, (step - 99) / 1000])
    )
    ours = our_run(COSINE, grid, TABLE[5], threshold="none", learned=False, wrap=keep_and_jump,
                   given=(IMAGE, MASK, TABLE))[0]  # fmt: skip
    assert distance(ours, from_torch(expected)) < 1e-5


def test_a_resampled_run_is_ddpm_steps_and_forward_jumps(monkeypatch):
    """Down by diffusers' DDPMScheduler, up by the forward process, in torch."""
    count, known = 10, TABLE[::-1].copy()
    steps = spaced_steps(COSINE, "leading", count)
    path = resampling_path(count, 0, 3, 2)
    scheduler, mask = DDPMScheduler(**IF_STAGE_1), to_torch(MASK)
    scheduler.set_timesteps(timesteps=steps.tolist())
    signal = scheduler.alphas_cumprod.double()
    x, expected = to_torch(TABLE[0]), []
    for i, (place, target) in enumerate(pairwise(path)):
        noise = TABLE[i + 1]
        if target > place:
            inject(monkeypatch, scheduling_ddpm, [noise])
            output = guided_output(x, int(steps[place]), 3.0, True)
            x = scheduler.step(output, int(steps[place]), x).prev_sample
        else:
            ratio = (signal[steps[target]] / signal[steps[place]]).item()
            x = ratio**0.5 * x + (1 - ratio) ** 0.5 * to_torch(noise)
        level = signal[steps[target]].item() if target < count else 1.0
        kept = level**0.5 * to_torch(IMAGE) + (1 - level) ** 0.5 * to_torch(known[i + 1])
        x = mask * x + (1 - mask) * kept
        expected.append(from_torch(x))
    grid = padded_grid(step_grid(COSINE, steps).times[path])
    runs = our_run(COSINE, grid, TABLE[0], wrap=keep_and_jump, given=(IMAGE, MASK, known))
    assert len(runs) == len(expected) == len(path) - 1 > 25
    assert max(map(distance, runs, expected)) < 1e-4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strength": 0.0}, "strength .* 0.0"),
        ({"strength": 1.2}, "1.2"),
        ({"known": "blurred"}, "'blurred'.*clean"),
        ({"resamplings": 0}, "got 0 and 10"),
        ({"jump_length": 0}, "got 1 and 0"),
        ({"mask": np.ones((2, 6, 5, 3), np.float32)}, r"\(2, 6, 5, 3\) does not fit"),
        ({"mask": np.ones((2, 5, 6, 1), np.float32)}, r"\(2, 5, 6, 1\) does not fit"),
    ],
)
def test_impossible_edits_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        check_edit(Edit(**{"image": jnp.zeros(SHAPE), **changes}))
