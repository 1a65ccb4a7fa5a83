"""Sampling as files and callers give it: what is refused, JSON, and overrides by stage."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from tiny_cascade import CASCADE

from imagen_jax.diffusion.overrides import check_sampling, sampling_from_dict, with_overrides
from imagen_jax.diffusion.sampling import Sampling


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"sampler": "plms"}, "'plms'; choose one of ddpm, ddim, euler, heun"),
        ({"spacing": "uniform"}, "'uniform'"),
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
def test_sampling_refuse_what_makes_no_sense(wrong: dict, named: str):
    with pytest.raises(ValueError, match=named):
        check_sampling(Sampling(**wrong))


@pytest.mark.parametrize("spacing", ["time", "leading", "smart185", (900, 500, 0)])
def test_sampling_go_through_json(spacing):
    sampling = check_sampling(Sampling(spacing=spacing, steps_offset=1, lambda_min=-5.1))
    assert sampling_from_dict(json.loads(json.dumps(asdict(sampling)))) == sampling
    assert sampling.steps == {"smart185": 185, (900, 500, 0): 3}.get(spacing, 256)


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="stepz"):
        sampling_from_dict({"stepz": 3})


def test_overrides_go_to_their_stages():
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


def test_numbers_of_any_kind_become_plain_ones():
    given = Sampling(steps=np.int64(7), guidance=3, aug_level=np.float32(0.5), percentile=95)
    plain = asdict(check_sampling(given))
    assert plain == asdict(Sampling(steps=7, guidance=3.0, aug_level=0.5, percentile=95.0))
    assert {type(plain[name]) for name in ("guidance", "aug_level", "percentile")} == {float}
    assert type(plain["steps"]) is int
    assert plain["cap"] is None
