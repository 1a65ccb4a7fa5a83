"""Figures while training: of the images that the pipeline would make, and logged by the loop."""

import json
from dataclasses import replace

import numpy as np
import pytest
import stand_in
from tiny_cascade import BASE, CASCADE, ENCODER, SR, random_params, tiny_pipeline

from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.evaluation.distances import cosines, frechet_distance, statistics_of
from imagen_jax.evaluation.image_folder import Preprocessing
from imagen_jax.evaluation.reference import Reference, write_reference
from imagen_jax.training import scores
from imagen_jax.training.run_config import (
    DataConfig,
    EvaluateConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)
from imagen_jax.training.state import Frozen
from tests.training import toy

PROMPTS = [f"prompt {i}" for i in range(5)]
SAMPLING = Sampling("ddim", steps=2, guidance=1.5)


def config(folder, stage=BASE, **section):
    values = {"prompts": str(folder / "prompts.txt"), "features": ("inception", "clip")}
    return RunConfig(
        stage,
        DataConfig("folder"),
        batch_size=1,
        num_steps=1,
        text=TextConfig(ENCODER.config),
        sample=SampleConfig(sampling=SAMPLING),
        evaluate=EvaluateConfig(**values | {"batch_size": 2} | section),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, rng):
    networks = {"inception": stand_in.inception(), "clip": stand_in.clip()}
    monkeypatch.setattr(scores, "read_extractors", lambda names: [networks[n] for n in names])
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    features = {
        stand.name: rng.normal(size=(9, 6)).astype(np.float32) for stand in networks.values()
    }
    about = {
        "source": {"kind": "folder"},
        "pictures": 9,
        "treatment": Preprocessing(4).to_dict(),
        "extractors": {stand.name: stand.identity for stand in networks.values()},
    }
    write_reference(tmp_path / "reference.safetensors", Reference(features, about))
    return tmp_path, features


def test_the_figures_are_those_of_the_pipelines_images(folder):
    folder, features = folder
    params = random_params(CASCADE)
    frozen = Frozen(None, params["text_encoder"])
    score = scores.make_score_fn(
        config(folder, reference=str(folder / "reference.safetensors")), ENCODER, frozen
    )
    found = score({"network": params["base"]})
    images = tiny_pipeline().generate_images(
        PROMPTS,
        1,
        4,
        seed=0,
        batch_size=2,
        sampling=(SAMPLING, CASCADE.sampling[1]),
        progress=False,
    )
    images = np.stack([np.asarray(image) for image in images])
    inception, clip = stand_in.inception(), stand_in.clip()
    expected = cosines(clip.images(images), clip.texts(PROMPTS)).mean()
    assert found["scores/clip/tiny-clip"] == pytest.approx(expected, abs=1e-3)
    expected = frechet_distance(
        statistics_of(inception.images(images)), statistics_of(features[inception.name])
    )
    assert found["scores/fid/random-inception"] == pytest.approx(expected, rel=1e-2)
    assert set(found) == {
        "scores/fid/random-inception", "scores/cmmd/tiny-clip", "scores/clip/tiny-clip"
    }  # fmt: skip


def test_what_cannot_be_scored_is_refused(folder):
    folder, _ = folder
    with pytest.raises(ValueError, match="which 'sr' is not"):
        scores.make_score_fn(config(folder, SR), ENCODER, Frozen())
    with pytest.raises(ValueError, match="FID needs a reference"):
        scores.make_score_fn(config(folder, features=("inception",)), ENCODER, Frozen())
    embedded = replace(config(folder), data=DataConfig("folder", embeddings="embeddings"))
    with pytest.raises(ValueError, match=r"data\.embeddings the run has none"):
        scores.make_score_fn(embedded, ENCODER, Frozen())
    with pytest.raises(ValueError, match="is a folder; give the file of its features"):
        scores.make_score_fn(config(folder, reference=str(folder)), ENCODER, Frozen())
    with pytest.raises(FileNotFoundError, match="one prompt a line"):
        scores.make_score_fn(config(folder, prompts="none.txt"), ENCODER, Frozen())


def test_the_loop_logs_them_at_chosen_steps_and_at_the_end(tmp_path):
    toy.run(tmp_path, steps=5, score_every=2, score=lambda params: {"scores/fid/x": 1.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = {line["step"]: line["scores"] for line in lines if "scores" in line}
    assert scored == {step: {"scores/fid/x": 1.5} for step in (2, 4, 5)}
