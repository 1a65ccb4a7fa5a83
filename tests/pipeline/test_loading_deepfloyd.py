"""`load_model` of DeepFloyd IF's directories: what it reads, where it puts it, what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from PIL import Image
from tiny_deepfloyd import SR_UNET, components, diffusers, save, text_components

from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.devices.sharding import MeshConfig, make_mesh, partition_spec, state_shardings
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.diffusion.time_grids import spaced_steps
from imagen_jax.pipeline import encoder_files, loading
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.model_directory import write_model
from imagen_jax.storage.trees import flatten
from imagen_jax.text import encoder as text
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
from imagen_jax.training.start import read_encoder, read_network, with_absolute_sources

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"seed": 1, "progress": False, "steps": 2, "num_images": 1}
SOLVER = {"_class_name": "DPMSolverMultistepScheduler"}
UNIPC = {"_class_name": "UniPCMultistepScheduler"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    place = tmp_path_factory.mktemp("if")
    parts = text_components(place / "spiece")
    save(diffusers.IFPipeline(**components(parts, False)), place / "I", place / "spiece")
    stage2 = diffusers.IFSuperResolutionPipeline(**components(parts, True, 2))
    save(stage2, place / "II", place / "spiece")
    stage2.register_modules(tokenizer=None, text_encoder=None)
    save(stage2, place / "II_alone")
    return place


def copy(places, name, target):
    shutil.copytree(places / name, target)
    return target


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pixels(images):
    return np.stack([np.asarray(image, np.int32) for image in images])


def test_a_directory_is_a_pipeline_of_one_stage(places):
    model = load_model(places / "I")
    (stage,), (settings,), encoder = (
        model.cascade.stages, model.cascade.sampling, model.cascade.encoder,
    )  # fmt: skip
    assert (stage.name, stage.resolution, stage.low_resolution) == ("base8", 8, None)
    assert stage.schedule == DiscreteBeta("squaredcos_cap_v2")
    assert (settings.steps, settings.guidance, settings.spacing) == (100, 7.0, "leading")
    assert (settings.threshold, settings.percentile, settings.cap) == ("dynamic", 95.0, 1.5)
    assert settings.learned_variance
    assert (encoder.max_length, encoder.null, encoder.padding) == (77, "empty", "encoded")
    assert encoder.caption == "clean"
    model = load_model(places / "II_alone")
    (stage,), (settings,) = model.cascade.stages, model.cascade.sampling
    assert (stage.name, stage.resolution, stage.low_resolution) == ("sr32", 32, 8)
    assert stage.upsampling == "bilinear_align_corners"
    assert stage.aug_schedule == DiscreteBeta("squaredcos_cap_v2")
    assert (settings.steps, settings.guidance, settings.aug_level) == (50, 4.0, 0.251)
    with pytest.raises(ValueError, match=r"without a text encoder: load it together"):
        model.upscale(np.zeros((8, 8, 3), np.uint8), "a cat", **QUIET)


def test_stages_are_joined_drawn_saved_and_let_go(places, tmp_path):
    model = load_model([places / "I", places / "II"])
    assert model.sizes == (8, 32)
    made = model.generate_images("a red cat", low_memory=True, **QUIET)
    assert made[0].size == (32, 32)
    assert not model.params._read  # nothing is held any more, and all is read again
    again = model.generate_images("a red cat", **QUIET)
    np.testing.assert_array_equal(pixels(made), pixels(again))
    model.save_pretrained(tmp_path / "ours", dtype="float32")
    ours = load_model(tmp_path / "ours")
    assert ours.cascade.stages == model.cascade.stages
    assert text.to_dict(ours.cascade.encoder) == text.to_dict(model.cascade.encoder)
    np.testing.assert_array_equal(pixels(ours.generate_images("a red cat", **QUIET)), pixels(made))


def test_the_empty_prompt_is_what_guidance_leads_away_from(places):
    model = load_model(places / "I")
    encoder, params = model.cascade.encoder, model.params[TEXT_ENCODER]
    null, empty = text.unconditional(encoder, params), text.encode(encoder, params, [""])
    np.testing.assert_allclose(null.values, empty.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(null.mask, empty.mask)
    assert np.abs(null.values[:, 1:]).min(axis=-1).max() > 0  # the padding is encoded, too


def test_parameters_are_read_straight_onto_a_mesh(places):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model, plain = load_model(places / "I", mesh=mesh), load_model(places / "I")
    for part in ("base8", TEXT_ENCODER):
        wanted = flatten(plain.params[part])
        for path, leaf in flatten(model.params[part]).items():
            spec = partition_spec(path, leaf.shape, mesh)
            assert leaf.sharding == NamedSharding(mesh, spec)
            np.testing.assert_array_equal(leaf, wanted[path])
    split = [leaf for leaf in jax.tree.leaves(model.params["base8"]) if leaf.sharding.spec]
    assert len(split) > 20
    rows = []

    def see(progress):
        rows.append(progress.state.x.sharding.shard_shape(progress.state.x.shape)[0])

    made = pixels(model.generate_images("a red cat", batch_size=5, callback=see, every=2, **QUIET))
    assert set(rows) == {2}  # of 8, the least that divides by the four devices of a batch
    assert np.abs(made - pixels(plain.generate_images("a red cat", **QUIET))).max() <= 1
    with pytest.raises(ValueError, match=r"The mesh has the axes \('x',\)"):
        load_model(places / "I", mesh=jax.make_mesh((8,), ("x",)))


def test_bfloat16_stays_so_in_memory(places):
    model = load_model(places / "I", dtype="bfloat16")
    leaves = jax.tree.leaves([model.params["base8"], model.params[TEXT_ENCODER]])
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    assert model.cascade.stages[0].network.dtype == "bfloat16"
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        load_model(places / "I", dtype="float16")


def test_a_fingerprint_tells_weights_and_dtypes_apart(places, tmp_path):
    sources = {
        "same": (copy(places, "I", tmp_path / "same"), "float32"),
        "bf16": (places / "I", "bfloat16"),
        "other": (copy(places, "I", tmp_path / "other"), "float32"),
        "II": (places / "II_alone", "float32"),
    }
    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    found = {name: load_model(path, dtype=d).fingerprint for name, (path, d) in sources.items()}
    assert load_model(places / "I").fingerprint == found["same"]
    assert len(set(found.values())) == 4
    joined = load_model([places / "I", places / "II_alone"])
    assert joined.fingerprint == f"{found['same']}+{found['II']}"


def test_a_name_is_looked_up_on_the_hub(places, monkeypatch, tmp_path):
    asked, place = [], copy(places, "I", tmp_path / "m")
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))

    def resolve(name, **options):
        asked.append((name, options))
        return place

    monkeypatch.setattr(loading, "resolve", resolve)
    model = load_model("DeepFloyd/IF-I-M-v1.0", variant="fp16", revision="main")
    assert model.name == "DeepFloyd/IF-I-M-v1.0"
    wanted = {"revision": "main", "variant": "fp16", "ignore_patterns": ()}
    assert asked == [("DeepFloyd/IF-I-M-v1.0", wanted)]
    with pytest.raises(ValueError, match="revision 'main' is for names on the hub"):
        load_model(places / "I", revision="main")
    with pytest.raises(ValueError, match="variant 'fp16' is for DeepFloyd IF"):
        load_model("icons", variant="fp16")


def test_stages_of_different_text_encoders_are_refused(places, tmp_path):
    parts = text_components(tmp_path / "spiece", seed=5)
    stage = diffusers.IFSuperResolutionPipeline(**components(parts, True, 2))
    other = save(stage, tmp_path / "other", tmp_path / "spiece")
    with pytest.raises(ValueError, match=r"different text encoders.*parameters final_norm/scale"):
        load_model([places / "I", other])
    rounded = load_model(places / "II")  # of another rounding: the same
    rounded.save_pretrained(tmp_path / "bf16", dtype="bfloat16")
    assert load_model([places / "I", tmp_path / "bf16"]).sizes == (8, 32)
    values = json.loads((tmp_path / "bf16" / "model.json").read_text())
    values[TEXT_ENCODER]["max_length"] = 40
    (tmp_path / "bf16" / "model.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"max_length is 77 and 40"):
        load_model([places / "I", tmp_path / "bf16"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, "_class_name is 'HeunDiscreteScheduler'"),
        ({**SOLVER, "solver_order": 3}, "solver_order is 3"),
        ({**SOLVER, "algorithm_type": "sde-dpmsolver"}, "is 'sde-dpmsolver'"),
        ({**UNIPC, "solver_order": 4}, "solver_order is 4"),
        ({**UNIPC, "solver_type": "bh1"}, "solver_type is 'bh1'"),
        ({**UNIPC, "predict_x0": False}, "predict_x0 is False"),
        ({**UNIPC, "disable_corrector": [0]}, r"disable_corrector is \[0\]"),
        ({**UNIPC, "use_flow_sigmas": True}, "unknown field, use_flow_sigmas"),
        ({**SOLVER, "lambda_min_clipped": None}, "lambda_min_clipped is None"),
        ({**SOLVER, "use_karras_sigmas": True}, "unknown field, use_karras_sigmas"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"beta_start": -1.0}, "beta_start is -1.0"),
        ({"clip_sample_range": 2.0, "thresholding": False}, "clip_sample_range is 2.0"),
        ({"dynamic_thresholding_ratio": 95}, "dynamic_thresholding_ratio is 95"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10**12}, "supported is an integer from 1 to 100000"),
        ({"steps_offset": 10**30}, "steps_offset is 1000"),
        ({"beta_end": 10**400}, "it has the number 1000"),
        ({**SOLVER, "lambda_min_clipped": -(10**400)}, "it has the number -1000"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"sample_max_value": 0.5}, "sample_max_value is 0.5"),
        ({"steps_offset": -1}, "steps_offset is -1"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
        ({"trained_betas": [0.1]}, r"trained_betas is \[0.1\]"),
        ({"use_karras_sigmas": True}, "unknown field, use_karras_sigmas"),
        ({"variance_type": "learned"}, "variance_type is 'learned'"),
    ],
)
def test_unsupported_values_of_a_scheduler_are_named(places, tmp_path, changes, message):
    place = copy(places, "I", tmp_path / "m")
    change(place / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_model(place)


@pytest.mark.parametrize(
    ("options", "spacing", "lambda_min"),
    [
        ({}, "dpm_linspace", None),
        ({"timestep_spacing": "leading", "lambda_min_clipped": -5.1}, "dpm_leading", -5.1),
        ({"timestep_spacing": "trailing"}, "trailing", None),
    ],
)
def test_dpm_solver_is_read_from_its_file(places, tmp_path, options, spacing, lambda_min):
    place = copy(places, "I", tmp_path / "m")
    before = diffusers.DDPMScheduler.from_pretrained(place / "scheduler")
    solver = diffusers.DPMSolverMultistepScheduler.from_config(before.config, **options)
    solver.save_pretrained(place / "scheduler")
    if "timestep_spacing" not in options:
        change(place / "scheduler" / "scheduler_config.json", timestep_spacing="linspace")
    (settings,) = load_model(place).cascade.sampling
    assert (settings.sampler, settings.spacing) == ("dpmpp_2m", spacing)
    assert (settings.lambda_min, settings.threshold) == (lambda_min, "dynamic")


@pytest.mark.parametrize(
    ("kind", "options", "sampler"),
    [
        ("UniPCMultistepScheduler", {}, "unipc"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc_3"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
    ],
)
def test_other_solvers_are_read_from_their_files(places, tmp_path, kind, options, sampler):
    place = copy(places, "I", tmp_path / "m")
    before = diffusers.DDPMScheduler.from_pretrained(place / "scheduler")
    solver = getattr(diffusers, kind).from_config(
        before.config, timestep_spacing="leading", **options
    )
    solver.save_pretrained(place / "scheduler")
    (settings,) = load_model(place).cascade.sampling
    assert (settings.sampler, settings.spacing) == (sampler, "dpm_leading")
    solver.set_timesteps(7)
    steps = spaced_steps(load_model(place).cascade.stages[0].schedule, settings.spacing, 7)
    np.testing.assert_array_equal(steps, solver.timesteps)


def test_unsupported_values_of_other_parts_are_named(places, tmp_path):
    place = copy(places, "II", tmp_path / "m")
    change(place / "unet" / "config.json", sample_size=30)
    with pytest.raises(ValueError, match="sample_size is 30"):
        load_model(place)
    for field, value in {
        "sample_size": 2**31,
        "layers_per_block": 10**9,
        "block_out_channels": [2**40, 2**40],
        "attention_head_dim": 2**70,
    }.items():
        change(place / "unet" / "config.json", **{**SR_UNET, field: value})
        with pytest.raises(ValueError, match=rf"{field} is .*integer"):
            load_model(place)
    change(place / "unet" / "config.json", **SR_UNET)
    change(place / "unet" / "config.json", sample_size=None)
    with pytest.raises(ValueError, match="sample_size is None"):
        load_model(place)
    change(place / "unet" / "config.json", sample_size=32, class_embed_type=None)
    with pytest.raises(ValueError, match="class_embed_type is None; it must be 'timestep'"):
        load_model(place)
    change(place / "text_encoder" / "config.json", feed_forward_proj="gated-tanh")
    change(place / "unet" / "config.json", class_embed_type="timestep")
    with pytest.raises(ValueError, match="feed_forward_proj is 'gated-tanh'"):
        load_model(place)


def test_schedulers_without_a_learned_variance(places, tmp_path):
    place = copy(places, "I", tmp_path / "m")
    config = place / "scheduler" / "scheduler_config.json"
    for kind, gamma in {"fixed_small": 0.0, "fixed_large": 1.0}.items():
        change(config, variance_type=kind, thresholding=False, clip_sample=kind == "fixed_small")
        (settings,) = load_model(place).cascade.sampling
        assert (settings.learned_variance, settings.gamma) == (False, gamma)
        assert settings.threshold == ("static" if kind == "fixed_small" else "none")


def train(place, workdir, *options, devices=1):
    """The console output of scripts/train.py with configs/lora_if.py, run in `place`."""
    command = [
        sys.executable, ROOT / "scripts" / "train.py", "--config", ROOT / "configs/lora_if.py",
        "--workdir", workdir, "--config.data.path=images", "--config.num_steps=1",
        "--config.batch_size=2", "--config.sample.steps=1", *options,
    ]  # fmt: skip
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=place, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_reads_onto_its_mesh(places):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    pipeline = load_model(places / "I")
    (stage,), encoder = pipeline.cascade.stages, pipeline.cascade.encoder
    text = TextConfig(encoder.config)
    config = RunConfig(stage, DataConfig("memory"), 8, 1, text=text, init_from=str(places / "I"))
    read = {
        "network": read_network(config, "bfloat16", mesh),
        TEXT_ENCODER: read_encoder(config, "bfloat16", mesh),
    }
    for leaf, wanted in zip(
        *map(jax.tree.leaves, (read, state_shardings(read, mesh))), strict=True
    ):
        assert leaf.sharding == wanted


def test_relative_paths_of_models_become_absolute(places, monkeypatch):
    monkeypatch.chdir(places)
    for source, kept in (("I", str(places / "I")), ("org/name", "org/name"), ("icons", "icons")):
        config = with_absolute_sources({"init_from": source, "text": {"init_from": source}})
        assert config == {"init_from": kept, "text": {"init_from": kept}}


@pytest.mark.slow
def test_an_adapter_is_trained_and_drawn_on_two_devices_and_opened_from_elsewhere(places, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(2):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "images" / f"{i}.txt").write_text("a red cat")
    copy(places, "I", tmp_path / "org" / "model")
    train(tmp_path, "run", "--init_from=org/model", "--config.mesh.fsdp=2", devices=2)
    assert (tmp_path / "run" / "samples" / "samples_0000001.png").is_file()
    model = load_model(tmp_path / "run")  # in another folder, where org/model is a name on the hub
    assert model.cascade.stages[0].network == load_model(places / "I").cascade.stages[0].network
    (tmp_path / "org" / "model").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"was trained from .*org/model: it is gone"):
        load_model(tmp_path / "run")


def test_what_is_saved_computes_in_what_is_asked_for(places, tmp_path):
    model = load_model(places / "I")
    write_model(tmp_path / "ours", model.cascade, model.params, release=model.params.free)
    assert not model.params._read
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert files == ["base8.safetensors", "text_encoder.safetensors"]
    for dtype in ("bfloat16", "float32"):
        ours, theirs = (load_model(p, dtype=dtype) for p in (tmp_path / "ours", places / "I"))
        assert ours.cascade.stages == theirs.cascade.stages
        assert ours.cascade.encoder.config == theirs.cascade.encoder.config
        assert ours.cascade.encoder.config.dtype == dtype
        (device,) = jax.tree.leaves(ours.params["base8"])[0].devices()
        assert device == jax.devices()[0]


def test_the_text_encoder_is_fetched_once(places, tmp_path, monkeypatch):
    """Of a second stage on the hub only its config and its tokenizer."""
    asked = []

    def resolve(name, ignore_patterns=(), **options):
        asked.append(ignore_patterns)
        if ignore_patterns:
            copy(places, "II", tmp_path / "II")
            for path in tmp_path.glob(f"II/{ignore_patterns[0]}"):
                path.unlink()
            return tmp_path / "II"
        return places / "I"

    monkeypatch.setattr(loading, "resolve", resolve)
    model = load_model(["org/I", "org/II"])
    assert asked == [(), ("text_encoder/*.safetensors",)]
    assert sorted(model.params) == ["base8", "sr32", TEXT_ENCODER]
    assert not list(tmp_path.glob("II/text_encoder/*.safetensors"))
    jax.tree.leaves(model.params[TEXT_ENCODER])
    change(tmp_path / "II" / "text_encoder" / "config.json", d_ff=48)
    places_of = {"org/I": places / "I", "org/II": tmp_path / "II"}
    monkeypatch.setattr(loading, "resolve", lambda name, **_: places_of[name])
    with pytest.raises(ValueError, match=r"different text encoders.*d_ff is 32 and 48"):
        load_model(["org/I", "org/II"])


def test_a_large_text_encoder_of_if_is_referred_to(places, tmp_path, monkeypatch):
    place = copy(places, "I", tmp_path / "I")
    model = load_model(place)
    config, params = model.cascade.encoder.config, model.params[TEXT_ENCODER]
    monkeypatch.setattr(encoder_files, "LARGEST_COPY", 1000)
    monkeypatch.setattr(encoder_files, "resolve", lambda name: {"org/I": place}[name])
    for source in (place, "org/I"):
        workdir = tmp_path / f"run_{len(str(source))}"
        workdir.mkdir()
        encoder_files.keep(workdir, source, params)
        assert [path.name for path in workdir.iterdir()] == [encoder_files.REFERENCE_FILE]
    # Another variant that comes beside it changes nothing.
    weights = place / "text_encoder" / "model.safetensors"
    shutil.copyfile(weights, weights.with_name("model.fp16.safetensors"))
    kept = encoder_files.read_kept(workdir, config)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="whose files have changed"):
        encoder_files.read_kept(workdir, config)
