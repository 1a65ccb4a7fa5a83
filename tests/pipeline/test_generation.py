"""Sampling of a whole cascade: keys, batches, progress, what compiles, how deep the calls are."""

import contextlib
import logging
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import (
    BASE,
    BASE_SETTINGS,
    CASCADE,
    SR,
    SR_SETTINGS,
    random_conditions,
    random_params,
    tiny_pipeline,
)

import imagen_jax
from imagen_jax import models
from imagen_jax.cascade.cascade import sample_keys
from imagen_jax.cascade.sample import run_steps, sample_stage, start_stage
from imagen_jax.cascade.stage import Conditions
from imagen_jax.devices import program_cache
from imagen_jax.pipeline import pipeline as pipeline_file
from imagen_jax.pipeline.generation import prepare_ahead, sample_cascade, take_rows
from imagen_jax.pipeline.request import Request

MOST_FRAMES = 15
QUIET = {"seed": 3, "progress": False, "batch_size": 2}


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(CASCADE)


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    """Text of three samples, and one null for all."""
    return random_conditions(3)


def rows(conditions: Conditions, chosen: list[int]) -> Conditions:
    return take_rows(conditions, np.array(chosen))


def sample(params: dict, conditions: Conditions, **request) -> np.ndarray:
    request = {"num_images": 3, "stages": range(2), "seed": 0, "batch_size": 2, **request}
    batches = sample_cascade(CASCADE, params, CASCADE.sampling, Request(**request), conditions)
    return np.concatenate(list(batches))


def test_images_have_the_shape_and_range_of_the_last_stage(params, conditions):
    images = sample(params, conditions)
    assert images.shape == (3, 8, 8, 3)
    assert images.dtype == np.float32
    assert np.abs(images).max() <= 1
    assert images.std() > 0.05
    assert sample(params, conditions, stages=range(1)).shape == (3, 4, 4, 3)


def test_an_image_does_not_depend_on_its_batch(params, conditions):
    together = sample(params, conditions, seed=7)
    for index in range(3):
        own = rows(conditions, [index])
        alone = sample(params, own, seed=7, num_images=1, first_index=index)
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_stage_i_samples_from_the_key_folded_with_i(params, conditions):
    keys, wanted = sample_keys(3, [0, 1]), rows(conditions, [0, 1])
    fold = jax.vmap(jax.random.fold_in, (0, None))
    low_res = sample_stage(BASE, params["base"], fold(keys, 0), wanted, BASE_SETTINGS)
    upsampled = wanted._replace(low_res=low_res)
    images = sample_stage(SR, params["sr"], fold(keys, 1), upsampled, SR_SETTINGS)
    two = {"seed": 3, "num_images": 2}
    np.testing.assert_allclose(sample(params, wanted, **two), images, atol=1e-6)
    entered = sample(params, upsampled, stages=range(1, 2), **two)
    np.testing.assert_allclose(entered, images, atol=1e-6)


def test_progress_tells_stage_batch_and_step(params, conditions):
    seen = []
    sample(
        params,
        conditions,
        callback=lambda p: seen.append((p.stage.name, p.first, p.count, p.step, p.x0.shape)),
        every=3,
    )
    assert seen == [
        ("base", 0, 2, 3, (2, 4, 4, 3)),
        ("base", 0, 2, 4, (2, 4, 4, 3)),
        ("sr", 0, 2, 3, (2, 8, 8, 3)),
        ("base", 2, 1, 3, (1, 4, 4, 3)),
        ("base", 2, 1, 4, (1, 4, 4, 3)),
        ("sr", 2, 1, 3, (1, 8, 8, 3)),
    ]


@contextlib.contextmanager
def logged_compiles():
    """`jax.log_compiles` of all threads."""
    before = jax.config.jax_log_compiles
    jax.config.update("jax_log_compiles", True)
    try:
        yield
    finally:
        jax.config.update("jax_log_compiles", before)


def test_nothing_recompiles(caplog):
    """Of all that is jitted, within JAX too: only what makes another program compiles one."""
    pipeline = tiny_pipeline()
    pipeline.generate_images("a cat", 2, guidance=3.0, **QUIET)
    own = pipeline.cascade.sampling
    with logged_compiles(), caplog.at_level(logging.WARNING):
        for changes in [
            {"guidance": 3},
            {"guidance": (1.5, np.float32(2))},
            {"steps": 9},
            {"steps": np.int64(5)},
            {"aug_level": 0.7},
            {"sampling": [replace(entry, cap=1.5, percentile=90, gamma=1) for entry in own]},
            {"sampling": [replace(entry, guidance_interval=(0.2, 1)) for entry in own]},
        ]:
            pipeline.generate_images("a dog", 2, **changes, **QUIET)
        assert [entry for entry in caplog.messages if entry.startswith("Compiling")] == []
        pipeline.generate_images("a dog", 2, spacing="logsnr", **QUIET)
        compiled = [entry for entry in caplog.messages if entry.startswith("Compiling")]
        assert not any("run_steps" in entry or "start_stage" in entry for entry in compiled)
        pipeline.generate_images("a dog", 2, sampler="ddim", **QUIET)
        compiled = [entry for entry in caplog.messages if "run_steps" in entry]
        assert any(entry.startswith("Compiling") for entry in compiled)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda pipe, _: pipe.generate_images("a cat", 3, negative_prompt="a dog", **QUIET),
        lambda pipe, image: pipe.inpaint(image, image.convert("L"), "a cat", **QUIET),
        lambda pipe, image: pipe.upscale(image.resize((4, 4)), "a cat", **QUIET),
    ],
)
def test_what_is_compiled_ahead_is_what_runs(tmp_path, monkeypatch, request_of):
    """Of a model on disk, whose parameters need not be read for it."""
    directory = tmp_path / "model"
    tiny_pipeline().save_pretrained(directory, dtype="float32")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    monkeypatch.setattr(program_cache, "cache_folder", lambda: tmp_path / "traced")
    programs, ahead = [start_stage, run_steps], []
    for program in programs:
        monkeypatch.setattr(program, "_programs", {})

    def waited(thread, *given):
        prepare_ahead(thread, *given)
        thread.submit(lambda: None).result()
        ahead.extend(set(program._programs) for program in programs)

    monkeypatch.setattr(pipeline_file, "prepare_ahead", waited)
    request_of(imagen_jax.load_model(directory), image)
    assert all(ahead)
    assert [set(program._programs) for program in programs] == ahead


def test_the_network_is_entered_at_most_fifteen_frames_deep(capsys, monkeypatch):
    """Of ours on the stack, from `generate_images` on, JAX's and the checkers' own left out."""
    monkeypatch.setattr(program_cache, "cache_folder", lambda: None)  # else nothing is traced
    ours, stacks = str(Path(imagen_jax.__file__).parent), []
    entry = getattr(models.apply, "__wrapped__", models.apply).__code__

    def look(frame, event, argument):
        if event != "call" or frame.f_code is not entry:
            return
        names = []
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(ours):
                place = Path(code.co_filename).relative_to(ours)
                names.append(f"{place}:{frame.f_lineno} {code.co_qualname}")
            frame = frame.f_back
        stacks.append(names[::-1])

    pipeline = tiny_pipeline()
    sys.setprofile(look)
    try:
        pipeline.generate_images("a cat", 1, steps=2, seed=0, progress=False)
    finally:
        sys.setprofile(None)
    deepest = max(stacks, key=len)
    with capsys.disabled():
        print(f"\n{len(deepest)} frames from generate_images to the network:", *deepest, sep="\n  ")
    assert "Pipeline.generate_images" in deepest[0]
    assert "apply" in deepest[-1]
    assert len(deepest) <= MOST_FRAMES
