"""Stages as diffusers directories: diffusers and our reader load what was saved."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import load_model
from imagen_jax.cascade.stage import Stage, apply_network, init_params
from imagen_jax.convert import diffusers_export
from imagen_jax.convert.diffusers_directory import PIPELINES, read_directory
from imagen_jax.convert.diffusers_export import (
    call_arguments,
    check_pipeline,
    save_pipeline,
    save_unet,
    scheduler_to_diffusers,
)
from imagen_jax.convert.diffusers_unet import config_from_diffusers, unet_layout
from imagen_jax.convert.t5 import load_huggingface
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import Cosine, DiscreteBeta, LinearBeta
from imagen_jax.diffusion.time_grids import spaced_steps
from imagen_jax.models import (
    EfficientLevel,
    EfficientUNetConfig,
    TransformerConfig,
    UNetConfig,
    UNetLevel,
    t5,
)
from imagen_jax.storage.layout_files import read_layout
from imagen_jax.storage.safetensors import open_tensors
from imagen_jax.text.encoder import TextEncoder, tokenize
from imagen_jax.text.tokenizers import ByteTokenizer, SentencePieceTokenizer
from imagen_jax.training.run_config import read_config
from imagen_jax.typing import TextEmbeddings

REASON = "the reference implementation is in the extra 'parity'"
WIDTH, TOKENS = 24, 7
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
DISCRETE = {"kind": "discrete_beta", "beta_schedule": "squaredcos_cap_v2"}
# Sections of a config: a tiny stage I of DeepFloyd IF, and a tiny stage II.
BASE = {
    "name": "if",
    "resolution": 8,
    "text_width": WIDTH,
    "schedule": DISCRETE,
    "loss": {"vlb_weight": 0.001},
    "network": {
        "kind": "unet",
        "levels": [
            {"channels": 16, "num_res_blocks": 1, "attention": None},
            {"channels": 32, "num_res_blocks": 1, "attention": "self"},
        ],
        "out_channels": 6,
        "head_channels": 8,
        "activation": "gelu",
        "norm_groups": 8,
        "text_projection": 32,
        "text_norm": "group",
        "pooling_heads": 3,
        "mask_text": False,
    },
}
ENLARGING = BASE | {
    "name": "if2",
    "low_resolution": 4,
    "aug_schedule": DISCRETE,
    "upsampling": "bilinear_align_corners",
    "network": BASE["network"]
    | {
        "low_res_channels": 3,
        "mid_attention": "cross",
        "embedding_activation": "gelu",
        "activate_embedding": False,
        "output_scale_factor": 1.4142271248762552,
        "mid_output_scale_factor": 1.4142271248762552,
    },
}
SECTIONS = {"base": BASE, "enlarging": ENLARGING}
TEXT = {
    "tokenizer": "bytes",
    "max_length": TOKENS,
    "encoder": {
        "vocab_size": 384,
        "d_model": WIDTH,
        "num_heads": 2,
        "head_dim": 8,
        "num_layers": 1,
        "d_ff": 32,
        "embedding_multiplier": 3.0,
    },
}
SETTINGS = Sampling(steps=50, spacing="leading", percentile=95.0, cap=1.5, guidance=7.0)


def random_stage(section: dict):
    """(stage, parameters): all of them random, as training leaves them."""
    run = {"stage": section, "text": TEXT, "batch_size": 4, "num_steps": 1}
    stage = read_config(run | {"data": {"source": "memory"}}).stage
    shapes = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    rng = np.random.default_rng(0)

    def values(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = np.prod(shape.shape[:-1], dtype=int) if len(shape.shape) > 1 else 4
        return (rng.standard_normal(shape.shape) / np.sqrt(fan_in)).astype(np.float32)

    return stage, jax.tree.map(values, shapes)


@pytest.fixture(scope="module", params=list(SECTIONS))
def run(request):
    return random_stage(SECTIONS[request.param])


def random_inputs(stage: Stage, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {"x": normal(2, 8, 16, 3), "text": 0.1 * normal(2, TOKENS, WIDTH)}
    inputs["step"] = rng.integers(0, 1000, 2)
    if stage.low_resolution:
        inputs |= {"low_res": normal(2, 8, 16, 3), "level": rng.integers(0, 1000, 2)}
    return inputs


def ours(stage: Stage, params, inputs) -> np.ndarray:
    """The output as a pipeline of our own asks for it: at times and levels in [0, 1]."""
    text = TextEmbeddings(jnp.asarray(inputs["text"]), jnp.ones((2, TOKENS), bool))
    low_res = None if "level" not in inputs else jnp.asarray(inputs["low_res"])
    level = None if "level" not in inputs else jnp.asarray((inputs["level"] + 1) / 1000)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def call(params):
        t = jnp.asarray((inputs["step"] + 1) / 1000)
        return apply_network(
            stage, params, jnp.asarray(inputs["x"]), t, text=text, low_res=low_res, aug_level=level
        )

    return np.asarray(call(params))


def theirs(network, inputs) -> np.ndarray:
    import torch

    x = np.concatenate([inputs["x"], *([inputs["low_res"]] if "level" in inputs else [])], -1)
    labels = torch.from_numpy(inputs["level"]) if "level" in inputs else None
    with torch.no_grad():
        out = network(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            torch.from_numpy(inputs["step"]),
            torch.from_numpy(inputs["text"]),
            class_labels=labels,
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


def distance(value, expected) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def read_back(directory, variant=None, dtype="float32"):
    """(network, parameters) by our reader."""
    found = read_directory(directory, variant)
    network = config_from_diffusers(found.unet_config)
    stage = Stage(
        "read", 8, network, low_resolution=4 if found.super_resolution else None, text_width=WIDTH
    )
    shapes = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    unet = found.unet
    files = open_tensors(unet.directory, unet.name, unet.variant)
    return network, read_layout(unet_layout(network), files, shapes, dtype=dtype)


def spiece_encoder(repository) -> TextEncoder:
    sizes = {"vocab_size": 6000, "d_model": WIDTH, "num_heads": 2, "head_dim": 8, "d_ff": 32}
    config = t5.T5Config(**sizes, num_layers=2, embedding_multiplier=3.0)
    path = repository / "imagen_jax" / "pretrained" / "icons" / "spiece.model"
    return TextEncoder(config, SentencePieceTokenizer(str(path)), max_length=TOKENS)


def test_a_stage_goes_to_diffusers_and_comes_back(run, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    stage, params = run
    save_pipeline(tmp_path, stage, SETTINGS, params)
    inputs = random_inputs(stage)
    expected = ours(stage, params, inputs)
    assert np.std(expected[..., 3:]) > 0  # the variance too
    network = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet").eval()
    assert distance(theirs(network, inputs), expected) < 1e-5
    config, back = read_back(tmp_path)
    assert config == stage.network
    jax.tree.map(np.testing.assert_array_equal, back, params)
    np.testing.assert_array_equal(ours(stage, back, inputs), expected)


def test_the_network_alone_needs_no_discrete_schedule(run, tmp_path):
    """What is not the network's own may be anything: only the time it is shown is another."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    stage, params = run
    stage = replace(stage, schedule=Cosine(), loss=replace(stage.loss, vlb_weight=0.0))
    save_unet(tmp_path, stage, params)
    network = diffusers.UNet2DConditionModel.from_pretrained(tmp_path).eval()
    inputs = random_inputs(stage)
    # Shown 1000 t, which is step + 1 of those times but for its rounding.
    t = ((inputs["step"] + 1) / 1000).astype(np.float32)
    shown = inputs | {"step": np.float32(1000) * t}
    assert distance(theirs(network, shown), ours(stage, params, inputs)) < 1e-5
    with pytest.raises(ValueError, match=r"schedule Cosine: .*discrete_beta"):
        save_pipeline(tmp_path / "whole", stage, SETTINGS, params)
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize("shard_bytes", [None, 40_000])
def test_half_precision_under_a_variants_name(run, tmp_path, shard_bytes):
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    stage, params = run
    options = {"dtype": "float16", "variant": "fp16"}
    if shard_bytes is not None:
        options["max_shard_bytes"] = shard_bytes
    files = save_unet(tmp_path / "unet", stage, params, **options)
    names = sorted(file.name for file in files)
    if shard_bytes is None:
        assert names == ["diffusion_pytorch_model.fp16.safetensors"]
    else:
        assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
        assert sum("fp16-0000" in name for name in names) > 2
    network = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "unet", variant="fp16", use_safetensors=True
    )
    halved = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params)
    inputs = random_inputs(stage)
    expected = ours(stage, halved, inputs)
    assert distance(theirs(network.float().eval(), inputs), expected) < 1e-5
    # Saved again in one file, the shards are gone.
    if shard_bytes is not None:
        save_unet(tmp_path / "unet", stage, params, dtype="float16", variant="fp16")
        assert len(list((tmp_path / "unet").iterdir())) == 2
    # Beside it, the weights without a variant.
    save_unet(tmp_path / "unet", stage, params)
    both = {file.name for file in (tmp_path / "unet").glob("*.safetensors")}
    assert both >= {f"diffusion_pytorch_model{end}.safetensors" for end in ("", ".fp16")}


def test_the_text_encoder_and_tokenizer_go_along(run, tmp_path, repository):
    """The embedding's multiplier is in the weights: Hugging Face's T5 has none."""
    pytest.importorskip("diffusers", reason=REASON)
    torch = pytest.importorskip("torch", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    stage, params = run
    encoder = spiece_encoder(repository)
    words = t5.init(encoder.config, jax.random.key(1))
    save_pipeline(tmp_path, stage, SETTINGS, params, encoder, words)
    prompts = ["red heart", "红心 and a cat"]
    ids, mask = tokenize(encoder, prompts)
    tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path / "tokenizer")
    for row, prompt in zip(ids, prompts, strict=True):
        found = tokenizer(prompt, padding="max_length", max_length=12).input_ids[:TOKENS]
        np.testing.assert_array_equal(found[: TOKENS - 1], row[: TOKENS - 1])
    expected = np.asarray(t5.encode(encoder.config, words, jnp.asarray(ids), jnp.asarray(mask)))
    model = transformers.T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    with torch.no_grad():
        out = model(torch.from_numpy(ids).long(), torch.from_numpy(mask).long())[0].numpy()
    assert distance(np.where(mask[..., None], out, 0.0), expected) < 1e-5
    config, back = load_huggingface(tmp_path / "text_encoder")
    assert config == replace(encoder.config, embedding_multiplier=1.0)
    again = t5.encode(config, back, jnp.asarray(ids), jnp.asarray(mask))
    assert distance(np.asarray(again), expected) < 1e-5


def test_diffusers_runs_the_pipeline(run, tmp_path, repository):
    """Its own loading, its schedulers and our files: images come out."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    torch = pytest.importorskip("torch", reason=REASON)
    stage, params = run
    encoder = spiece_encoder(repository)
    words = t5.init(encoder.config, jax.random.key(1))
    notes = save_pipeline(tmp_path, stage, SETTINGS, params, encoder, words)
    assert any("77 tokens" in note for note in notes)
    kind = json.loads((tmp_path / "model_index.json").read_text())["_class_name"]
    assert kind == ("IFSuperResolutionPipeline" if stage.low_resolution else "IFPipeline")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline).__name__ == kind
    pipeline.set_progress_bar_config(disable=True)
    more = {"image": torch.zeros(1, 3, 4, 4)} if stage.low_resolution else {}
    arguments = call_arguments(stage, replace(SETTINGS, steps=2)) | {"output_type": "np"}
    images = pipeline("red heart", clean_caption=False, **arguments, **more).images
    assert images.shape == (1, 8, 8, 3)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "time"])
def test_schedulers_visit_the_same_steps_of_the_same_noise(spacing):
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    stage = replace(STAGE, schedule=DiscreteBeta("linear", 1e-4, 0.03, 1000))
    settings = Sampling(steps=25, spacing=spacing, cap=None)
    values, notes = scheduler_to_diffusers(stage, settings)
    assert not notes
    json.dumps(values, allow_nan=False)
    scheduler = getattr(diffusers, values["_class_name"]).from_config(values)
    assert set(values) <= {"_class_name", *scheduler.config}
    scheduler.set_timesteps(25)
    if spacing == "time":
        expected = np.arange(25, 0, -1) * 40 - 1
    else:
        expected = spaced_steps(stage.schedule, spacing, 25)
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), expected)
    t = jnp.arange(1, 1001) / 1000
    noise = scheduler.alphas_cumprod.numpy()
    logsnr = np.log(noise) - np.log1p(-noise)
    np.testing.assert_allclose(stage.schedule.logsnr(t), logsnr, rtol=1e-3, atol=1e-3)
    assert scheduler.config.variance_type == "learned_range"
    assert scheduler.config.sample_max_value >= 1e6


@pytest.mark.parametrize("enlarging", [False, True])
def test_what_scheduler_files_cannot_say_is_noted(enlarging):
    stage = replace(STAGE, **ENLARGED) if enlarging else STAGE

    def notes(**settings):
        return " ".join(scheduler_to_diffusers(stage, Sampling(**settings))[1])

    assert "in place of sampler 'heun'" in notes(sampler="heun", spacing="leading")
    assert "no spacing 'logsnr'" in notes(spacing="logsnr", steps=50)
    assert "no spacing 'time'" in notes(spacing="time", steps=30)
    assert "guidance_rescale 0.7" in notes(spacing="leading", guidance_rescale=0.7)
    assert "gamma 0.3" in notes(spacing="leading", learned_variance=False)
    assert not notes(spacing="fast27")
    arguments = call_arguments(stage, Sampling(spacing="fast27", guidance=7.0))
    assert arguments["timesteps"][:2] == [999, 800]
    assert arguments["guidance_scale"] == 7.0
    if stage.low_resolution:
        settings = Sampling(spacing="leading", aug_level=0.251)
        assert call_arguments(stage, settings)["noise_level"] == 250


UNET = UNetConfig(
    (UNetLevel(16, 1, "self"),), out_channels=6, head_channels=8, norm_groups=8,
    text_norm=None, pooling_heads=2, mask_text=False,
)  # fmt: skip
STAGE = Stage("mine", 8, UNET, text_width=8, schedule=DiscreteBeta())
EFFICIENT = EfficientUNetConfig((EfficientLevel(16, 1),), num_heads=1, draft=True, input_skip=True)
ENLARGED = {
    "low_resolution": 4,
    "network": replace(UNET, low_res_channels=3),
    "upsampling": "bilinear_align_corners",
    "aug_schedule": DiscreteBeta(),
}


def test_what_can_be_expressed_is_not_refused():
    check_pipeline(STAGE, None)
    check_pipeline(replace(STAGE, **ENLARGED), None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": LinearBeta()}, ["schedule LinearBeta", "discrete_beta"]),
        ({"schedule": Cosine()}, ["schedule Cosine"]),
        ({"network": replace(UNET, mask_text=True)}, ["mask_text True"]),
        ({"network": replace(UNET, text_norm="layer")}, ["text_norm 'layer'"]),
        ({"network": replace(UNET, out_channels=3)}, ["out_channels 3", "learned variance"]),
        (
            {"network": TransformerConfig(width=8, heads=1, patch_size=8, out_channels=6)},
            ["TransformerConfig", "U-Net"],
        ),
        ({"network": EFFICIENT}, ["efficient_unet", "input_skip and draft"]),
        (
            {"network": replace(UNET, num_classes=3), "conditioning": "label"},
            ["conditioning 'label'"],
        ),
        ({"conditioning": None}, ["conditioning None"]),
        (ENLARGED | {"aug_schedule": Cosine()}, ["aug_schedule Cosine"]),
        (ENLARGED | {"upsampling": "bilinear"}, ["upsampling 'bilinear'"]),
        (
            {"schedule": Cosine(), "network": replace(UNET, out_channels=3, mask_text=True)},
            ["schedule Cosine", "out_channels 3", "mask_text True"],
        ),
    ],
)
def test_what_cannot_be_expressed_is_named(change, said, tmp_path):
    stage = replace(STAGE, **change)
    with pytest.raises(ValueError, match="diffusers cannot express stage 'mine'") as caught:
        save_pipeline(tmp_path / "out", stage, SETTINGS, {})
    assert all(words in str(caught.value) for words in said), caught.value
    assert not (tmp_path / "out").exists()


def test_a_text_encoder_that_cannot_be_expressed_is_named():
    config = t5.T5Config(vocab_size=384, d_model=8, num_heads=1, num_layers=1, d_ff=8)
    with pytest.raises(ValueError, match="tokenizer 'bytes'"):
        check_pipeline(STAGE, TextEncoder(config, ByteTokenizer()))
    odd = replace(config, activation="relu", gated=True)
    with pytest.raises(ValueError, match="activation 'relu' with gated True"):
        check_pipeline(STAGE, TextEncoder(odd, SentencePieceTokenizer("x.model")))


def test_our_reader_gives_the_same_model(run, tmp_path, repository):
    """All but what only training knows, and how a prompt is made into embeddings."""
    stage, params = run
    encoder = spiece_encoder(repository)
    words = t5.init(encoder.config, jax.random.key(1))
    save_pipeline(tmp_path, stage, SETTINGS, params, encoder, words)
    pipeline = load_model(tmp_path)
    (found,), (settings,) = pipeline.cascade.stages, pipeline.cascade.sampling
    low = found.low_resolution and 4  # a quarter, as IF's are: no file says it
    wanted = replace(stage, name=found.name, loss=found.loss, aug_levels=found.aug_levels)
    assert replace(found, low_resolution=low) == wanted
    same = ("sampler", "spacing", "threshold", "cap", "learned_variance")
    assert [getattr(settings, name) for name in same] == [getattr(SETTINGS, name) for name in same]
    np.testing.assert_allclose(settings.percentile, SETTINGS.percentile)
    jax.tree.map(np.testing.assert_array_equal, pipeline.params[found.name], params)
    assert pipeline.cascade.encoder.config == replace(encoder.config, embedding_multiplier=1.0)


def test_the_names_are_those_of_our_reader():
    assert PIPELINES[diffusers_export.BASE] is False
    assert PIPELINES[diffusers_export.SUPER_RESOLUTION] is True
