"""Training an adapter: what is trained and stored, on any mesh, and what a pipeline makes of it."""

import os
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from fine_tuning import LORA, lora_config, run, save, tiny_model

from imagen_jax import load_model
from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.models.lora import merge_lora
from imagen_jax.pipeline.loading import export_lora
from imagen_jax.pipeline.snapshots import synthesize
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.storage.trees import flatten
from imagen_jax.training import build
from imagen_jax.training.metrics import read_losses
from imagen_jax.training.run_config import read_config
from imagen_jax.training.table import model_table
from tests.training.test_config import tiny

SETTINGS = {"progress": False, "seed": 3, "num_images": 1, "steps": 3, "batch_size": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def base(model, tmp_path_factory) -> str:
    return save(model, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(model, base, tmp_path_factory):
    """(workdir, state) after eight steps on one device."""
    workdir = tmp_path_factory.mktemp("lora")
    raw = lora_config(base, num_steps="8", checkpoint__every="8", ema="{'every': 1}")
    return workdir, jax.device_get(run(raw, model, workdir))


def pixels(pipeline, **options) -> np.ndarray:
    images = pipeline.generate_images("no 3", **SETTINGS, **options)
    return np.stack([np.asarray(image, np.float64) for image in images])


def test_the_state_holds_the_adapter_alone(trained):
    workdir, state = trained
    names = {path.split("/")[0] for path in flatten(state.params)}
    assert names == {"lora"}
    assert set(state.params["lora"]) == {"down1_attention", "up1_attention"}
    stored = Checkpoints(workdir / "checkpoints", read_only=True)
    _, params, run_values = stored.read_parameters("ema")
    jax.tree.map(np.testing.assert_array_equal, params, state.ema)
    assert run_values["config"]["lora"] == LORA
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) < 6.2 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_both_factors_learn(trained):
    for path, leaf in flatten(trained[1].params["lora"]).items():
        assert np.abs(leaf).max() > 0, path
        if path.endswith("/up"):
            assert np.abs(leaf).min() > 0, path


@pytest.mark.parametrize(
    ("shape", "split"), [((1, 8, 1), "True"), ((2, 2, 2), "False")], ids=["fsdp", "all"]
)
def test_a_mesh_gives_the_losses_of_one_device(model, base, trained, tmp_path, shape, split):
    raw = lora_config(base, num_steps="5", checkpoint__every="5", frozen_split=split)
    state = run(raw, model, tmp_path, MeshConfig(*shape), 8)
    expected, losses = read_losses(trained[0]), read_losses(tmp_path)
    assert list(losses) == [1, 2, 3, 4, 5]
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5)
    down = state.params["lora"]["down1_attention"]["query"]["down"]
    assert not down.sharding.is_fully_replicated


def test_a_pipeline_is_the_base_with_the_average_merged_in(trained, base, model):
    workdir, state = trained
    pipeline = load_model(workdir)
    merged = merge_lora(model.params["tiny"], state.ema["lora"], 2.0)
    jax.tree.map(np.testing.assert_array_equal, pipeline.params["tiny"], merged)
    kept = load_model(base)
    jax.tree.map(
        np.testing.assert_array_equal, pipeline.params[TEXT_ENCODER], kept.params[TEXT_ENCODER]
    )
    assert np.abs(pixels(pipeline) - pixels(kept)).max() > 1


def test_an_average_of_any_width_is_merged_in(trained, model):
    workdir, state = trained
    kept = merge_lora(model.params["tiny"], state.power_ema["0.1"]["lora"], 2.0)
    params = load_model(workdir, ema=0.1).params["tiny"]
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    _, between = synthesize(workdir, 0.08)
    pipeline = load_model(workdir, ema=0.08)
    merged = merge_lora(model.params["tiny"], between["lora"], 2.0)
    jax.tree.map(np.testing.assert_array_equal, pipeline.params["tiny"], merged)
    assert pipeline.notes == {"step": 8, "ema": 0.08}


def test_a_base_that_is_gone_is_named(trained, base, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) != base and os.path.isdir(path))
    with pytest.raises(ValueError, match=f"was trained from {base}: it is gone"):
        load_model(trained[0])


def test_the_written_adapter_changes_the_base_by_the_same(trained, base, tmp_path):
    """Loaded, at half its strength, and taken away again."""
    path = export_lora(trained[0], tmp_path / "lora.safetensors")
    merged, pipeline = load_model(trained[0]), load_model(base)
    before, fingerprint = pipeline.params["tiny"], pipeline.fingerprint
    pipeline.load_lora(path)
    assert pipeline.fingerprint != fingerprint
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        pipeline.params["tiny"],
        merged.params["tiny"],
    )
    np.testing.assert_array_equal(pixels(pipeline), pixels(merged))
    pipeline.unload_lora()
    assert pipeline.params["tiny"] is before
    assert pipeline.fingerprint == fingerprint
    with warnings.catch_warnings(action="error"):
        pipeline.load_lora(path, 0.25)
    with pytest.warns(UserWarning, match=r"lora\.safetensors was loaded before"):
        pipeline.load_lora(path, 0.25)
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, before, merged.params["tiny"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        pipeline.params["tiny"],
        halfway,
    )
    pipeline.unload_lora()
    pipeline.unload_lora()
    jax.tree.map(np.testing.assert_array_equal, pipeline.params["tiny"], before)


def test_a_dry_run_counts_what_is_trained_and_what_is_not(base):
    config = read_config(lora_config(base))
    encoder, mesh = build.make_text_encoder(config), make_mesh(MeshConfig(1), jax.devices()[:1])
    step, init, frozen = build.make_training(config, encoder, mesh)
    said = model_table(config, step, init, mesh, frozen)
    count = sum(leaf.size for leaf in jax.tree.leaves(load_model(base).params["tiny"]))
    trained = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)).params)
    )
    assert [line.split()[-1] for line in said.splitlines() if "parameters" in line][:3] == [
        f"{trained:,}",
        f"{count:,}",
        f"{sum(leaf.size for leaf in jax.tree.leaves(frozen.text_encoder)):,}",
    ]
    assert "GFLOP an image" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"init_from": "None"}, "init_from must say which"),
        ({"text__trainable": "True"}, "text.trainable must be False"),
        ({"lora": "{'rank': 0}"}, "lora.rank must be 1 or more"),
        ({"lora": "{'rnak': 4}"}, "'config.lora.rnak'; did you mean 'rank'"),
    ],
)
def test_a_mistake_in_the_section_is_named(overrides, message):
    given = {"init_from": "'x'", "lora": "{}", "text__trainable": "False", **overrides}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_config(tiny(**given))
    assert message in str(caught.value)


def test_a_target_without_a_match_stops_before_anything_is_read():
    raw = lora_config("nowhere", lora__targets="['to_q']")
    config = read_config(raw)
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    with pytest.raises(ValueError, match="'to_q' finds no parameter"):
        build.make_training(config, build.make_text_encoder(config), mesh)


def test_a_run_of_whole_parameters_has_no_adapter(tmp_path, model, base):
    raw = lora_config(base, num_steps="1")
    raw.lora = None
    run(raw, model, tmp_path)
    with pytest.raises(ValueError, match="not an adapter"):
        export_lora(tmp_path, tmp_path / "lora.safetensors")
