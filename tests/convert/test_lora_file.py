"""Adapters on disk: names and numbers as peft and diffusers have them, faults by name."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_cascade import CASCADE, random_params, tiny_pipeline
from tiny_lora import UNET_STAGE, random_lora

from imagen_jax.cascade.cascade import part_shapes
from imagen_jax.cascade.stage import Stage, apply_network, init_params
from imagen_jax.convert.diffusers_unet import config_to_diffusers
from imagen_jax.convert.lora import METADATA_KEY, LoraFile, read_lora, save_lora
from imagen_jax.models import TransformerConfig, UNetConfig, UNetLevel
from imagen_jax.models.lora import LoraConfig, merge_lora
from imagen_jax.pipeline.adapters import adapted_params
from imagen_jax.storage.layout_files import write_layout
from imagen_jax.storage.trees import flatten
from imagen_jax.typing import TextEmbeddings

LORA = LoraConfig(rank=2, alpha=3.0)
WIDTH = 32
IF_STAGE = Stage(
    "if",
    8,
    UNetConfig(
        (UNetLevel(32, 1, None), UNetLevel(64, 1, "self"), UNetLevel(64, 1, "cross")),
        out_channels=6,
        head_channels=32,
        activation="gelu",
        text_projection=64,
        text_norm="group",
        pooling_heads=4,
        mask_text=False,
    ),
    text_width=WIDTH,
)


def shapes_of(stage: Stage):
    return jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))


def random_tree(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def if_params():
    return random_tree(shapes_of(IF_STAGE))


@pytest.fixture(scope="module")
def if_file(tmp_path_factory, if_params):
    """(path, the adapter that it holds) of a DeepFloyd IF network."""
    lora = random_lora(if_params, LORA)
    path = tmp_path_factory.mktemp("if") / "pytorch_lora_weights.safetensors"
    save_lora(path, IF_STAGE, lora, LORA)
    return path, lora


def test_names_and_metadata_are_pefts(if_file):
    tensors = load_file(if_file[0])
    module = "unet.down_blocks.1.attentions.0."
    names = {name.removeprefix(module) for name in tensors if name.startswith(module)}
    linears = ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0")
    assert names == {f"{name}.lora_{part}.weight" for name in linears for part in "AB"}
    assert tensors["unet.mid_block.attentions.0.to_q.lora_A.weight"].shape == (2, 64)
    assert tensors["unet.mid_block.attentions.0.to_q.lora_B.weight"].shape == (64, 2)
    with safe_open(if_file[0], "numpy") as opened:
        values = json.loads(opened.metadata()[METADATA_KEY])
    assert values["unet.r"] == 2
    assert values["unet.lora_alpha"] == 3.0
    assert set(values["unet.target_modules"]) == {
        name.removeprefix("unet.").split(".lora_")[0] for name in tensors
    }


def test_what_is_written_is_read(if_file, if_params):
    path, lora = if_file
    read = read_lora(LoraFile(path), IF_STAGE, if_params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        merge_lora(if_params, read),
        merge_lora(if_params, lora, LORA.scale),
    )


def test_our_own_networks_have_our_own_names(tmp_path):
    params = random_params(CASCADE)["base"]
    lora = random_lora(params, LORA)
    save_lora(tmp_path / "a.safetensors", CASCADE.stages[0], lora, LORA)
    file = LoraFile(tmp_path / "a.safetensors")
    assert "down0_attention.text_key_value" in file.modules
    assert file.stage_name == "base"
    read = flatten(read_lora(file, CASCADE.stages[0], params))
    for name, value in flatten(lora).items():
        scale = LORA.scale if name.endswith("up") else 1.0
        np.testing.assert_allclose(read[name], scale * value, rtol=1e-6)


def unet_of_diffusers(params):
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the reference")
    from imagen_jax.convert.diffusers_unet import unet_layout

    values = config_to_diffusers(IF_STAGE.network, WIDTH)
    unet = diffusers.UNet2DConditionModel.from_config(values).eval()
    tensors = write_layout(unet_layout(IF_STAGE.network), params)
    unet.load_state_dict(
        {
            # Their class token has an axis of length 1 that ours lacks.
            name: torch.from_numpy(tensors[name].copy()).reshape(old.shape)
            for name, old in unet.state_dict().items()
        }
    )
    return unet


@jax.jit
def run(params, x, t, text):
    embeddings = TextEmbeddings(text, jnp.ones(text.shape[:2], bool))
    return apply_network(IF_STAGE, params, x, t, text=embeddings)


def both_outputs(unet, params) -> tuple[np.ndarray, np.ndarray]:
    import torch

    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    text = rng.normal(size=(2, 5, WIDTH)).astype(np.float32)
    t = np.asarray([0.25, 0.75], np.float32)
    ours = np.asarray(run(params, x, t, text))
    with torch.no_grad():
        theirs = unet(
            torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(1000 * t),
            encoder_hidden_states=torch.from_numpy(text),
        ).sample.numpy()  # fmt: skip
    return ours, theirs.transpose(0, 2, 3, 1)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_names_lead_to_diffusers_own_layers(if_file, if_params):
    """W + alpha / rank * B A, added by hand to the modules that the file names."""
    unet = unet_of_diffusers(if_params)
    import torch

    tensors = load_file(if_file[0])
    for name in tensors:
        if name.endswith("lora_A.weight"):
            other = name.replace("lora_A", "lora_B")
            module = unet.get_submodule(name.removeprefix("unet.").split(".lora_")[0])
            change = LORA.scale * tensors[other] @ tensors[name]
            with torch.no_grad():
                module.weight += torch.from_numpy(change)
    merged = merge_lora(if_params, if_file[1], LORA.scale)
    ours, theirs = both_outputs(unet, merged)
    plain, _ = both_outputs(unet, if_params)
    assert relative(ours, theirs) < 1e-4
    assert relative(plain, theirs) > 1e-2


def test_peft_loads_what_we_write_and_we_load_what_it_writes(if_file, if_params, tmp_path):
    pytest.importorskip("peft", reason="diffusers loads adapters with it")
    unet = unet_of_diffusers(if_params)
    unet.load_lora_adapter(if_file[0].parent, prefix="unet", weight_name=if_file[0].name)
    merged = merge_lora(if_params, if_file[1], LORA.scale)
    ours, theirs = both_outputs(unet, merged)
    assert relative(ours, theirs) < 1e-4
    unet.save_lora_adapter(tmp_path, adapter_name="default_0")
    back = read_lora(LoraFile(tmp_path / "pytorch_lora_weights.safetensors"), IF_STAGE, if_params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        merge_lora(if_params, back),
        merged,
    )


def test_alphas_and_ranks_may_differ_by_module(tmp_path):
    shapes = part_shapes(CASCADE, "base")
    tensors, rng = {}, np.random.default_rng(0)
    for module, rank in (("down0_attention.query", 2), ("up0_attention.out", 4)):
        tensors[f"{module}.lora_A.weight"] = rng.normal(size=(rank, 8 if "query" in module else 16))
        tensors[f"{module}.lora_B.weight"] = rng.normal(size=(16 if "query" in module else 8, rank))
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    settings = {"r": 2, "lora_alpha": 6, "alpha_pattern": {"up0_attention.out": 1}}
    settings["rank_pattern"] = {"out": 4}
    for rslora, scales in ((False, (3.0, 0.25)), (True, (6 / 2**0.5, 0.5))):
        values = json.dumps(settings | {"use_rslora": rslora})
        save_file(tensors, tmp_path / "a.safetensors", metadata={METADATA_KEY: values})
        read = flatten(read_lora(LoraFile(tmp_path / "a.safetensors"), CASCADE.stages[0], shapes))
        for place, module, scale in zip(
            ("down0_attention/query", "up0_attention/out"),
            ("down0_attention.query", "up0_attention.out"),
            scales,
            strict=True,
        ):
            up = tensors[f"{module}.lora_B.weight"].T
            np.testing.assert_allclose(read[f"{place}/up"], scale * up, rtol=1e-6)
    save_file(tensors, tmp_path / "a.safetensors")
    read = flatten(read_lora(LoraFile(tmp_path / "a.safetensors"), CASCADE.stages[0], shapes))
    up = tensors["up0_attention.out.lora_B.weight"].T
    np.testing.assert_array_equal(read["up0_attention/out/up"], up)


def test_each_of_stacked_layers_has_its_own_module(tmp_path):
    """And the merged network is that of one layer after the other."""
    network = TransformerConfig(width=8, depth=3, heads=2, patch_size=4, bottleneck=None)
    stage = Stage("plain", 8, network, text_width=WIDTH)
    params = random_tree(shapes_of(stage))
    lora, path = random_lora(params, LORA), tmp_path / "a.safetensors"
    assert set(lora["layers"]["attention"]) == {"query", "key", "value", "out"}
    save_lora(path, stage, lora, LORA)
    file = LoraFile(path)
    assert "layers.2.attention.query" in file.modules
    back = merge_lora(params, read_lora(file, stage, params))
    for merged in (back, merge_lora(params, lora, LORA.scale)):
        for part, factors in lora["layers"]["attention"].items():
            kernels = params["layers"]["attention"][part]["kernel"]
            for layer in range(3):
                down, up = (factors[name][layer].astype(np.float64) for name in ("down", "up"))
                expected = kernels[layer] + 1.5 * down @ up
                out = merged["layers"]["attention"][part]["kernel"][layer]
                np.testing.assert_allclose(out, expected, atol=1e-6)
    tensors = {name: x for name, x in load_file(path).items() if ".layers.1." not in name}
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"layers\.0\.attention.* to layers\.2\.attention"):
        read_lora(LoraFile(path), stage, params)


def spoilt(tensors: dict, fault: str) -> dict:
    tensors = dict(tensors)
    a = "unet.down0_attention.query.lora_A.weight"
    b = a.replace("lora_A", "lora_B")
    if fault == "name":
        for name in (a, b):
            tensors[name.replace("down0_attention.query", "down7.to_q")] = tensors.pop(name)
    elif fault == "rank":
        tensors[a] = np.zeros((3, tensors[a].shape[1]), np.float32)
    elif fault == "shape":
        tensors[b] = np.zeros((9, 2), np.float32)
    elif fault == "half":
        del tensors[b]
    elif fault == "convolution":
        tensors[a] = tensors[a][:, :, None, None]
    elif fault == "other":
        tensors["unet.down0_attention.query.scale"] = np.zeros((1,), np.float32)
    elif fault == "rank 0":
        tensors[a], tensors[b] = tensors[a][:0], tensors[b][:, :0]
    elif fault == "twice":
        tensors[a.removeprefix("unet.")] = tensors[a]
    elif fault == "NaN":
        tensors[a] = np.full_like(tensors[a], np.nan)
    elif fault == "empty":
        return {}
    return tensors


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("name", "does not fit stage 'base': down7.to_q is not a linear layer"),
        ("rank", "down0_attention.query has rank 3 in lora_A and 2 in lora_B"),
        ("shape", "down0_attention.query is for 8 to 9 channels, not 8 to 16"),
        ("half", "down0_attention.query without its other half"),
        ("convolution", "down0_attention.query has tensors of"),
        ("other", "not unet.down0_attention.query.scale"),
        ("empty", "is not an adapter: it has nothing"),
        ("rank 0", "down0_attention.query has rank 0"),
        ("twice", "the same factor twice"),
        ("NaN", "unet.down0_attention.query.lora_A.weight is not finite"),
    ],
)
def test_a_fault_is_named(fault, message, tmp_path):
    pipeline, path = tiny_pipeline(), tmp_path / "a.safetensors"
    lora = random_lora(pipeline.params["base"], LORA)
    save_lora(path, pipeline.cascade.stages[0], lora, LORA)
    with safe_open(path, "numpy") as opened:
        metadata = opened.metadata()
    save_file(spoilt(load_file(path), fault), path, metadata=metadata)
    before = pipeline.params
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline.load_lora(path)
    assert pipeline.params is before


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_none_changes_nothing(scale):
    pipeline = tiny_pipeline()
    before = pipeline.params, pipeline.fingerprint
    with pytest.raises(ValueError, match=f"scale must be a finite number: {scale!r}"):
        pipeline.load_lora("a.safetensors", scale)
    assert (pipeline.params, pipeline.fingerprint) == before


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "in its lora_adapter_metadata, it is not JSON"),
        ("[1]", "not an object"),
        ('{"lora_alpha": "x"}', "an alpha is 'x'; it must be a number"),
        ('{"r": 0}', "a rank is '0'; it must be a number from 1"),
        ('{"alpha_pattern": 3}', "alpha_pattern is '3', not an object"),
        ('{"lora_alpha": 1e300}', "an alpha is '1e+300'"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "... of 401 digits"),
        ('{"alpha_pattern": {"(": 1}}', "'(', not a regex"),
        ('{"alpha_pattern": {"(a+)+b": 1}}', "no regex of more than"),
        ('{"rank_pattern": {"a*b*c*d*e": 1}}', "no regex of more than"),
        ('{"rank_pattern": {"a{99999999999}": 1}}', "not a regex"),
        ('{"peft_type": "LOHA"}', "it is LOHA of peft, which is not supported"),
        ('{"use_dora": true}', "use_dora is set: it is DoRA, which is not supported"),
        ('{"bias": "all"}', "bias is 'all'"),
        ('{"init_lora_weights": "pissa_niter_4"}', "which changes the base weights too"),
        ('{"use_rslora": "yes"}', "use_rslora is 'yes', not true or false"),
    ],
)
def test_damaged_settings_are_named(metadata, message, tmp_path):
    tensors = {f"a.lora_{part}.weight": np.zeros((1, 1), np.float32) for part in "AB"}
    save_file(tensors, tmp_path / "a.safetensors", metadata={METADATA_KEY: metadata})
    with pytest.raises(ValueError, match=re.escape(message)):
        LoraFile(tmp_path / "a.safetensors")


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"):
        LoraFile(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"pickle" * 9)
    with pytest.raises(ValueError, match="text that begins 'picklepickle"):
        LoraFile(tmp_path / "a.safetensors")


def test_the_stage_is_found(tmp_path):
    """By name, by the file's word, by its fit; else it must be said."""
    pipeline = tiny_pipeline()
    lora = random_lora(pipeline.params["sr"], LORA)
    path = tmp_path / "a.safetensors"
    save_lora(path, CASCADE.stages[1], lora, LORA)

    def choose(stage):
        return adapted_params(LoraFile(path), CASCADE, pipeline.params, 1.0, stage)[0]

    assert choose(None) == "sr"
    assert choose("base") == "base"
    with pytest.raises(ValueError, match="no stage 'big', only base, sr"):
        choose("big")
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="fits the stages base, sr"):
        choose(None)


def test_unet_stages_of_ours_that_diffusers_lacks_keep_our_names(tmp_path):
    shapes = shapes_of(UNET_STAGE)
    lora = random_lora(shapes, LORA)
    save_lora(tmp_path / "a.safetensors", UNET_STAGE, lora, LORA)
    assert "mid_attention.text_key" in LoraFile(tmp_path / "a.safetensors").modules
