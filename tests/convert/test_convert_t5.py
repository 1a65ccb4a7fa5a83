"""Hugging Face encoders to our parameters; tests/models/test_t5.py compares their outputs."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import save_file

from imagen_jax.convert import t5 as convert
from imagen_jax.devices.sharding import MeshConfig, make_mesh, partition_spec, state_shardings
from imagen_jax.models import t5

VALUES = {
    "model_type": "t5",
    "vocab_size": 30,
    "d_model": 12,
    "num_heads": 2,
    "d_kv": 4,
    "num_layers": 2,
    "d_ff": 20,
    "feed_forward_proj": "gated-gelu",
}
CONFIG = convert.config_from_huggingface(VALUES)


@pytest.fixture
def tensors(rng) -> dict[str, np.ndarray]:
    """A state dict with the names and shapes that transformers gives an encoder."""
    shapes = {"shared.weight": (30, 12), "encoder.final_layer_norm.weight": (12,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
    for i in range(2):
        attention = f"encoder.block.{i}.layer.0.SelfAttention."
        feed_forward = f"encoder.block.{i}.layer.1.DenseReluDense."
        shapes |= {f"{attention}{name}.weight": (8, 12) for name in "qkv"}
        shapes[f"{attention}o.weight"] = (12, 8)
        shapes[f"encoder.block.{i}.layer.0.layer_norm.weight"] = (12,)
        shapes |= {f"{feed_forward}{name}.weight": (20, 12) for name in ("wi_0", "wi_1")}
        shapes[f"{feed_forward}wo.weight"] = (12, 20)
        shapes[f"encoder.block.{i}.layer.1.layer_norm.weight"] = (12,)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_tree_is_that_of_init(tensors, key):
    params = convert.params_from_huggingface(CONFIG, tensors)
    fresh = jax.eval_shape(lambda: t5.init(CONFIG, key))
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    query = tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    np.testing.assert_array_equal(params["layers"]["attention"]["query"]["kernel"][1], query.T)


def test_missing_and_unused_tensors_are_named(tensors):
    tensors["encoder.extra.weight"] = np.zeros(3)
    del tensors["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    with pytest.raises(ValueError, match=r"1 missing: .*block\.1.*wo\.weight; 1 unused: .*extra"):
        convert.params_from_huggingface(CONFIG, tensors)


def test_too_many_layers_are_not_cut_off(tensors):
    shallow = convert.config_from_huggingface({**VALUES, "num_layers": 1})
    with pytest.raises(ValueError, match=r"unused: encoder\.block\.1"):
        convert.params_from_huggingface(shallow, tensors)


def test_other_shapes_are_named(tensors):
    wide = convert.config_from_huggingface({**VALUES, "d_ff": 24})
    with pytest.raises(ValueError, match=r"block\.0.*wi_0\.weight is \(20, 12\), not \(24, 12\)"):
        convert.params_from_huggingface(wide, tensors)
    name = "encoder.block.1.layer.0.layer_norm.weight"
    with pytest.raises(ValueError, match=r"block\.1\.layer\.0\.layer_norm\.weight is \(5,\), not"):
        convert.params_from_huggingface(CONFIG, {**tensors, name: np.ones(5, np.float32)})


def test_the_decoder_and_the_copy_of_the_embedding_are_left_out(tensors):
    expected = convert.params_from_huggingface(CONFIG, tensors)
    more = {
        "decoder.block.0.layer.0.SelfAttention.q.weight": np.zeros((8, 12)),
        "lm_head.weight": np.zeros((30, 12)),
        "encoder.embed_tokens.weight": tensors["shared.weight"].copy(),
    }
    for extra in (more, {"encoder.embed_tokens.weight": tensors["shared.weight"]}):
        params = convert.params_from_huggingface(CONFIG, tensors | extra)
        assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))
    only_copy = {**tensors, **more}
    del only_copy["shared.weight"]
    params = convert.params_from_huggingface(CONFIG, only_copy)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))


def test_two_different_embeddings_are_refused(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    with pytest.raises(ValueError, match="differ"):
        convert.params_from_huggingface(CONFIG, tensors)


def test_a_folder_is_read(tensors, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(VALUES))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        convert.load_huggingface(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        convert.load_huggingface(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    config, params = convert.load_huggingface(tmp_path, dtype="bfloat16", remat=True)
    assert config == t5.T5Config(**{**vars(CONFIG), "remat": True})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_the_meshs_rules_place_an_encoder(tensors, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(VALUES))
    save_file(tensors, tmp_path / "model.safetensors")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def sharding(path, shape):
        return NamedSharding(mesh, partition_spec(path, shape, mesh))

    _, placed = convert.load_huggingface(tmp_path, dtype="bfloat16", sharding=sharding)
    _, whole = convert.load_huggingface(tmp_path, dtype="bfloat16")
    assert jax.tree.all(jax.tree.map(np.array_equal, placed, whole))
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == state_shardings(whole, mesh)
    wi = placed["layers"]["feed_forward"]["wi_0"]["kernel"]
    assert wi.sharding.shard_shape(wi.shape) == (2, 6, 10)


def test_a_sharded_folder_saved_by_transformers_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {name: value for name, value in VALUES.items() if name != "model_type"}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, params = convert.load_huggingface(tmp_path)
    assert config == CONFIG
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = convert.params_from_huggingface(CONFIG, tensors)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))


def test_public_sizes_are_read():
    # The values of google/t5-v1_1-xxl, google/umt5-small and google/byt5-small.
    xxl = {**VALUES, "vocab_size": 32128, "d_model": 4096, "num_heads": 64, "d_kv": 64}
    xxl |= {"num_layers": 24, "d_ff": 10240}
    assert convert.config_from_huggingface(xxl) == t5.T5_V1_1["xxl"]
    assert convert.config_from_huggingface({**VALUES, "model_type": "umt5"}).bias_in_every_layer
    plain = convert.config_from_huggingface({**VALUES, "feed_forward_proj": "relu"})
    assert (plain.activation, plain.gated) == ("relu", False)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="'bert'"):
        convert.config_from_huggingface({**VALUES, "model_type": "bert"})
    with pytest.raises(ValueError, match="'swish'"):
        convert.config_from_huggingface({**VALUES, "feed_forward_proj": "swish"})
