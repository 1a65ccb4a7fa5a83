"""The page's noise and samplers are those of Python, for random seeds and settings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cascade.cascade import stage_keys
from imagen_jax.cascade.sample import AUGMENTATION_INDEX, start_stage
from imagen_jax.cascade.stage import KINDS, Stage
from imagen_jax.diffusion.denoiser import make_denoiser
from imagen_jax.diffusion.samplers import SAMPLERS, initial_state, noise_from_keys, sample_loop
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Cosine, Flow
from imagen_jax.diffusion.time_grids import sampling_grid
from imagen_jax.storage import codec
from tests import tiny_cascade
from tests.web.node import needs_node, run_node

pytestmark = needs_node
SIDE = 4
KEY = jax.random.split(jax.random.key(0), 1)  # of noise that these samplers do not use


def error(found: Any, wanted: Any) -> float:
    """Relative, in L2."""
    found, wanted = np.ravel(found), np.ravel(wanted)
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def described(stage: Stage, sampling: Sampling) -> dict:
    """As a model's `model.json` says it."""
    return {"stage": codec.to_dict(stage, KINDS), "sampling": vars(sampling)}


def test_noise_of_a_seed_is_that_of_jax():
    rng = np.random.default_rng()
    for seed in (0, 2**32 - 1, int(rng.integers(2**32))):
        index, stage, which = (int(n) for n in rng.integers([9, 3, AUGMENTATION_INDEX + 1]))
        keys = stage_keys(np.uint32(seed), np.array([index], np.uint32), np.uint32(stage))
        wanted = noise_from_keys(keys, (64, 32, 3))(which)
        found = run_node(
            "noise.js",
            "stageNoise",
            [seed, index, stage, which],
            "const [seed, index, stage, which] = given;"
            "return [...stageNoise(seed, index, stage)(which, 64 * 32 * 3)];",
        )
        assert error(found, wanted) < 1e-6
        np.testing.assert_allclose(found, np.ravel(wanted), atol=5e-6)


# A network that is easily written twice: {name: (Python's, JavaScript's)} of x, t and the text.
OUTPUTS = {True: "0.3 * x + 0.5 * t", False: "0.1 * x - 0.2 * t + 0.1"}


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_samplers_are_those_of_python(sampler: str, prediction: str):
    rng = np.random.default_rng()
    schedule = Cosine(shift=float(rng.uniform(-3, 1)))
    stage = dataclasses.replace(tiny_cascade.BASE, schedule=schedule, prediction=prediction)
    threshold = ["static", "none"][rng.integers(2)]
    for steps, guidance in [(1, 1.0), (int(rng.integers(2, 9)), float(rng.uniform(1.5, 4)))]:
        sampling = Sampling(sampler, steps, guidance=guidance, threshold=threshold)
        eps = rng.normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)

        def network(x, t, text):
            return eval(OUTPUTS[text], {"x": x, "t": t[:, None, None, None]})

        denoise = make_denoiser(
            lambda x, t: network(x, t, True),
            lambda x, t: (network(x, t, True), network(x, t, False)),
            schedule,
            prediction,
            sampling,
        )
        grid = sampling_grid(schedule, sampling)
        state, noise = initial_state(jnp.asarray(eps), sampler), noise_from_keys(KEY, eps.shape[1:])
        loop = SAMPLERS[sampler], denoise, schedule, grid, state, noise, sampling
        wanted = np.clip(sample_loop(*loop).x, -1.0, 1.0)
        found = run_node(
            "sampler.js",
            "sample, unsupported",
            {"eps": eps.ravel().tolist(), **described(stage, sampling)},
            f"""const outputs = {{
              true: (x, t) => {OUTPUTS[True]}, false: (x, t) => {OUTPUTS[False]} }};
            const predict = (x, t, s, text) => x.map((value) => outputs[text](value, t));
            if (unsupported(given)) throw new Error(unsupported(given));
            let image;
            const eps = Float32Array.from(given.eps), steps = given.sampling.steps;
            for await (image of sample(given, eps, steps, predict));
            return [...image];""",
        )
        assert error(found, wanted) < 1e-5


def test_the_low_resolution_input_is_that_of_python():
    rng = np.random.default_rng()
    sampling = Sampling("ddim", 2, aug_level=float(rng.uniform(0, 1)))
    stage = dataclasses.replace(tiny_cascade.SR, aug_schedule=Cosine(shift=float(rng.normal())))
    low = rng.uniform(-1, 1, (1, 4, 4, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**32))), 1)
    _, wanted = start_stage(stage, (8, 8, 3), keys, low, sampling)
    eps = noise_from_keys(keys, (8, 8, 3))(AUGMENTATION_INDEX)
    given = {"low": low.ravel().tolist(), "eps": np.ravel(eps).tolist()}
    found = run_node(
        "sampler.js",
        "augmented",
        {**given, **described(stage, sampling)},
        "const [low, eps] = [given.low, given.eps].map((list) => Float32Array.from(list));"
        "return [...augmented(given, low, eps)];",
    )
    assert error(found, wanted) < 1e-6


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling("ddpm", threshold="static"), "sampler ddpm"),
        (Sampling("ddim"), "threshold dynamic"),
        (Sampling("ddim", threshold="static", eta=0.5), "eta 0.5"),
        (Sampling("ddim", threshold="static", guidance_kind="apg"), "guidance_kind apg"),
    ],
)
def test_what_the_page_cannot_sample_is_named(sampling: Sampling, named: str):
    flow = dataclasses.replace(tiny_cascade.BASE, schedule=Flow())
    stages = [(tiny_cascade.BASE, sampling), (flow, Sampling("ddim", threshold="static"))]
    given = [described(*each) for each in stages]
    said = run_node("sampler.js", "unsupported", given, "return given.map(unsupported);")
    assert named in said[0]
    assert "schedule flow" in said[1]
