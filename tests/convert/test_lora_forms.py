"""Adapters of others: peft's patterns against peft itself, the names of diffusers' and kohya's
scripts, and kinds that are refused by name.
"""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_lora import random_lora

from imagen_jax.convert.lora import LoraFile, find_adapter, read_lora, save_lora
from imagen_jax.models.lora import LoraConfig, merge_lora
from imagen_jax.storage.trees import flatten
from tests.convert.test_lora_file import IF_STAGE, random_tree, shapes_of

LORA = LoraConfig(rank=2)
LAYERS = {
    "down_blocks.1.attentions.0.to_q": "down1_attention0/query",
    "down_blocks.1.attentions.0.to_out.0": "down1_attention0/out",
    "mid_block.attentions.0.to_q": "mid_attention/query",
    "mid_block.attentions.0.add_k_proj": "mid_attention/text_key",
    "up_blocks.0.attentions.1.to_q": "up2_attention1/query",
}


@pytest.fixture(scope="module")
def params():
    return random_tree(shapes_of(IF_STAGE))


@pytest.fixture(scope="module")
def tensors(params, tmp_path_factory):
    """The tensors of an adapter to every attention layer, in peft's form without a prefix."""
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    save_lora(path, IF_STAGE, random_lora(params, LORA), LORA)
    return {name.removeprefix("unet."): value for name, value in load_file(path).items()}


def read(path, params):
    return flatten(read_lora(LoraFile(path), IF_STAGE, params))


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)


# --- peft ---


def linear_layers(params):
    """A network of linear layers of PyTorch with names and weights of ours."""
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    network, flat = torch.nn.Module(), flatten(params)
    for name, ours in LAYERS.items():
        kernel, place = flat[f"{ours}/kernel"], network
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, torch.nn.Module())
            place = getattr(place, folder)
        linear = torch.nn.Linear(*kernel.shape, bias=False)
        linear.weight.data = torch.from_numpy(kernel.T.copy())
        place.add_module(last, linear)
    return network


def peft_model(params, **options):
    """These layers with a random adapter of peft."""
    peft = pytest.importorskip("peft", reason="the reference")
    import torch

    config = peft.LoraConfig(target_modules=list(LAYERS), **options)
    model = peft.get_peft_model(linear_layers(params), config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


PATTERNS = {
    "none": {},
    "the end of a name": {"alpha_pattern": {"to_q": 3}},
    "a whole name": {"alpha_pattern": {"mid_block.attentions.0.to_q": 3}},
    "part of a part is no match": {"alpha_pattern": {"q": 3, "attentions": 5, "down_blocks": 7}},
    "an anchored name": {"alpha_pattern": {"^mid_block.attentions.0.to_q": 3, "^to_q": 9}},
    "a regex": {"alpha_pattern": {r"(down|up)_blocks\.\d+\.attentions\.\d\.to_q": 3}},
    "the first that fits": {"alpha_pattern": {"attentions.0.to_q": 3, "to_q": 5, ".*": 7}},
    "ranks": {"rank_pattern": {"to_q": 4, "to_out.0": 1}},
    "ranks and alphas": {"rank_pattern": {"to_q": 4}, "alpha_pattern": {"add_k_proj": 5, "0": 7}},
    "rsLoRA": {"use_rslora": True, "rank_pattern": {"to_q": 4}, "alpha_pattern": {"^mid.*": 5}},
}


@pytest.mark.parametrize("case", list(PATTERNS))
def test_a_folder_of_peft_is_merged_as_peft_does(case, params, tmp_path):
    peft_model(params, r=2, lora_alpha=6, **PATTERNS[case]).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    merged = merge_lora(params, read_lora(LoraFile(tmp_path), IF_STAGE, params))
    from peft import PeftModel

    # As peft reads it again: it has sorted the patterns when it wrote them.
    plain = PeftModel.from_pretrained(linear_layers(params), tmp_path).merge_and_unload()
    for name, ours in LAYERS.items():
        theirs = plain.get_submodule(name).weight.detach().numpy()
        np.testing.assert_allclose(
            flatten(merged)[f"{ours}/kernel"], theirs.T, rtol=1e-5, atol=1e-6
        )
    file = LoraFile(tmp_path / "adapter_model.safetensors")
    assert [path.name for path in file.files] == [
        "adapter_model.safetensors",
        "adapter_config.json",
    ]


def test_dora_of_peft_is_named(params, tmp_path):
    peft_model(params, r=2, use_dora=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is DoRA \(.*\), which is not supported"):
        LoraFile(tmp_path)


def test_pefts_file_without_its_settings_is_refused(params, tmp_path):
    peft_model(params, r=2).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json, which says how strong"):
        LoraFile(tmp_path)


def test_settings_of_another_rank_are_refused(params, tmp_path):
    peft_model(params, r=2).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 2', '"r": 8'))
    with pytest.raises(ValueError, match="to_q has rank 2, but its settings say 8"):
        read(tmp_path, params)


def test_a_hostile_regex_takes_no_time(tensors, params, tmp_path):
    pattern = r".*.*.*x"
    metadata = {"lora_adapter_metadata": json.dumps({"alpha_pattern": {pattern: 1}})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    read(tmp_path, params)


# --- names of diffusers and kohya ---


def renamed(tensors, form):
    """The same adapter with the names of another program."""
    found = {}
    for name, value in tensors.items():
        module, letter = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()
        half = {"A": "down", "B": "up"}[letter]
        attention, layer = re.fullmatch(
            r"(.+)\.(to_[qkv]|to_out\.0|add_[kv]_proj)", module
        ).groups()
        new = {
            "unet": f"unet.{name}",
            "late 2023": f"unet.{module}.lora.{half}.weight",
            "processors": f"{attention}.processor.{layer.removesuffix('.0')}_lora.{half}.weight",
            "processors of a unet": f"unet.{attention}.processor.{layer.removesuffix('.0')}_lora"
            f".{half}.weight",
            "kohya": f"lora_unet_{module.replace('.', '_')}.lora_{half}.weight",
        }[form]
        found[new] = value
    return found


@pytest.mark.parametrize(
    "form", ["unet", "late 2023", "processors", "processors of a unet", "kohya"]
)
def test_other_names_are_the_same_adapter(form, tensors, params, tmp_path):
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(renamed(tensors, form), tmp_path / "b.safetensors")
    wanted = read(tmp_path / "a.safetensors", params)
    assert_same(read(tmp_path / "b.safetensors", params), wanted)


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 0.5), (0.0, 1.0), (6.0, 3.0)])
def test_kohyas_alpha_is_divided_by_the_rank(alpha, scale, tensors, params, tmp_path):
    kohya = renamed(tensors, "kohya")
    save_file(tensors, tmp_path / "a.safetensors")
    module = "lora_unet_mid_block_attentions_0_to_q"
    kohya[f"{module}.alpha"] = np.asarray(alpha, np.float16)
    save_file(kohya, tmp_path / "b.safetensors")
    wanted = read(tmp_path / "a.safetensors", params)
    wanted["mid_attention/query/up"] = scale * wanted["mid_attention/query/up"]
    assert_same(read(tmp_path / "b.safetensors", params), wanted)
    for odd in (np.zeros(3, np.float32), np.asarray(np.nan, np.float32)):
        save_file(kohya | {f"{module}.alpha": odd}, tmp_path / "b.safetensors")
        with pytest.raises(ValueError, match=r"to_q\.alpha of shape .* not one finite number"):
            LoraFile(tmp_path / "b.safetensors")


def test_keys_of_cross_attention_that_2023s_processors_never_read(tensors, params, tmp_path):
    """Their factors are in the files all the same."""
    old = renamed(tensors, "processors")
    attention = "down_blocks.2.attentions.0"  # to the text alone
    assert not any(name.startswith(f"{attention}.to_k") for name in tensors)
    for layer in ("to_k", "to_v"):
        for half, shape in (("down", (2, 64)), ("up", (64, 2))):
            name = f"{attention}.processor.{layer}_lora.{half}.weight"
            old[name] = np.ones(shape, np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(old, tmp_path / "b.safetensors")
    wanted = read(tmp_path / "a.safetensors", params)
    assert_same(read(tmp_path / "b.safetensors", params), wanted)
    modern = {
        name.replace(".processor", "").replace("_lora.", ".lora."): value
        for name, value in old.items()
    }
    save_file(modern, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=f"{attention}.to_k is not a linear layer"):
        read(tmp_path / "b.safetensors", params)


def test_two_names_of_one_layer_are_refused(tensors, params, tmp_path):
    save_file(tensors | renamed(tensors, "kohya"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="are the same layer"):
        read(tmp_path / "a.safetensors", params)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unet.a.to_q.lora_magnitude_vector", "is DoRA"),
        ("lora_unet_a_to_q.dora_scale", "is DoRA"),
        ("lora_unet_a_to_q.hada_w1_a", "LoHa"),
        ("lora_unet_a_to_q.lokr_w1", "LoKr"),
        ("lora_unet_a.oft_blocks", "OFT"),
        ("base_model.model.a.vera_lambda_b", "VeRA"),
        ("base_model.model.a.ia3_l", "IA3"),
        ("base_model.model.a.lora_E", "AdaLoRA"),
        ("lora_unet_a.lora_mid.weight", "convolutions' middles"),
        ("unet.mid_block.attentions.0.to_q.lora_B.bias", "LoRA with biases"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "the text encoder"),
        ("text_encoder.layers.0.q_proj.lora_A.weight", "the text encoder"),
        ("transformer.single_blocks.0.to_q.lora_A.weight", "a diffusion transformer"),
        ("base_model.model.conv_in.weight", "not a LoRA of linear layers alone"),
    ],
)
def test_other_kinds_are_named(name, said, tensors, tmp_path):
    save_file(tensors | {name: np.ones((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        LoraFile(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 700


def test_convolutions_and_other_networks_are_named(tensors, params, tmp_path):
    module = "mid_block.resnets.0.conv1"
    conv = {
        f"{module}.lora_A.weight": np.ones((2, 64, 3, 3), np.float32),
        f"{module}.lora_B.weight": np.ones((64, 2, 1, 1), np.float32),
    }
    save_file(tensors | conv, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"{module} is not a linear layer"):
        read(tmp_path / "a.safetensors", params)
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    names = [f"{module}{i}.lora_{half}.weight" for i in range(400) for half in ("down", "up")]
    save_file(dict.fromkeys(names, np.ones((1, 1), np.float32)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"and 392 more.*Stable Diffusion") as caught:
        read(tmp_path / "a.safetensors", params)
    assert len(str(caught.value)) < 2000


def test_a_models_weights_are_no_adapter(tmp_path):
    save_file({"conv_in.weight": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"is not an adapter: it has conv_in\.weight"):
        LoraFile(tmp_path / "a.safetensors")


# --- files and folders ---


def test_the_adapter_of_a_folder_is_found(tensors, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no adapter: no adapter_model\.safetensors"):
        find_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"in a pickle \(adapter_model\.bin\)"):
        find_adapter(tmp_path)
    save_file(tensors, tmp_path / "style.safetensors")
    assert find_adapter(tmp_path).name == "style.safetensors"
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"several adapters, other\.safetensors, style"):
        find_adapter(tmp_path)
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    assert find_adapter(tmp_path).name == "pytorch_lora_weights.safetensors"
    with pytest.raises(FileNotFoundError, match=r"did you mean .*style\.safetensors"):
        find_adapter(tmp_path / "stile.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# A LoRA of cats\n\nTrained on 30 images.", "text that begins '# A LoRA of cats'"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"PK\x03\x04" + bytes(40) + b"archive/data.pkl" + bytes(99), r"PyTorch \(a pickle\)"),
    ],
)
def test_other_files_are_named(content, said, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        LoraFile(tmp_path / "README.md")


def test_an_adapter_in_bfloat16(tensors, params, tmp_path):
    half = {name: np.asarray(value, jnp.bfloat16) for name, value in tensors.items()}
    save_file(half, tmp_path / "a.safetensors")
    for name, value in read(tmp_path, params).items():
        assert value.dtype == np.float32, name
