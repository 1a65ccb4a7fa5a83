"""T5X checkpoints, of both layouts, against transformers on the same weights."""

import json

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.convert.t5x import load_t5x
from imagen_jax.convert.t5x_checkpoint import read_checkpoint
from imagen_jax.text.encoder import encode_tokens
from tests.convert.t5x_writer import t5x_arrays, write_checkpoint, write_tree

LENGTH = 17


def random_encoder(family: str, seed: int):
    """A Hugging Face encoder with random weights, norms and biases too."""
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    transformers = pytest.importorskip("transformers", reason="the reference encoders are in it")
    make_config, make_model = {
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
    }[family]
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "d_model": 24, "num_heads": 3, "d_kv": 4, "num_layers": 3}
    model = make_model(make_config(**sizes, d_ff=20, feed_forward_proj="gated-gelu")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return torch, model


def arrays_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def assert_same_encoder(config, params, torch, model, rng):
    ids = rng.integers(2, 50, (3, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None] < np.array([[5], [LENGTH], [11]])
    ours = np.asarray(encode_tokens(config, params, jnp.asarray(ids), jnp.asarray(mask)).values)
    with torch.no_grad():
        inputs = torch.tensor(ids.astype(np.int64)), torch.tensor(mask.astype(np.int64))
        theirs = model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state.numpy()
    assert relative_error(ours[mask], theirs[mask]) < 1e-5


@pytest.mark.parametrize("partitioned", [True, False])
@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("family", ["t5", "umt5"])
@pytest.mark.parametrize("heads_apart", [True, False])
def test_the_encoder_is_that_of_transformers(
    family, scanned, partitioned, heads_apart, tmp_path, rng
):
    torch, model = random_encoder(family, seed=3)
    arrays = t5x_arrays(arrays_of(model), scanned=scanned, heads_apart=heads_apart)
    write_checkpoint(tmp_path / "checkpoint_5", arrays, partitioned=partitioned)
    config, params = load_t5x(tmp_path / "checkpoint_5")
    # Scanned, each layer has a bias of its own, here the same one.
    assert config.bias_in_every_layer == (scanned or family == "umt5")
    assert (config.num_heads, config.head_dim, config.num_layers) == (3, 4, 3)
    assert_same_encoder(config, params, torch, model, rng)


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("partitioned", [True, False])
def test_bfloat16(scanned, partitioned, tmp_path, rng):
    torch, model = random_encoder("t5", seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    arrays = t5x_arrays(arrays_of(model), scanned=scanned)
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    write_checkpoint(tmp_path / "c", halves, partitioned=partitioned)
    config, params = load_t5x(tmp_path / "c")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert_same_encoder(config, params, torch, model, rng)
    _, kept = load_t5x(tmp_path / "c", dtype=None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"bfloat16"}
    assert jax.tree.all(
        jax.tree.map(lambda a, b: np.array_equal(a.astype(b.dtype), b), kept, params)
    )


@pytest.mark.parametrize("driver", ["gfile", "gcs"])
def test_checkpoints_written_elsewhere_are_read_from_their_folder(driver, tmp_path, rng):
    torch, model = random_encoder("t5", seed=5)
    arrays = t5x_arrays(arrays_of(model), scanned=False)
    write_checkpoint(tmp_path / "c", arrays, partitioned=True, driver=driver)
    config, params = load_t5x(tmp_path / "c")
    assert_same_encoder(config, params, torch, model, rng)


@pytest.fixture
def random_state(rng) -> dict[str, np.ndarray]:
    """The state dict of an encoder of two layers, without PyTorch."""

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    state = {"shared.weight": normal(40, 16), "encoder.final_layer_norm.weight": normal(16)}
    for i in range(2):
        attention, mlp = f"encoder.block.{i}.layer.0.", f"encoder.block.{i}.layer.1."
        for name in "qkv":
            state[f"{attention}SelfAttention.{name}.weight"] = normal(8, 16)
        state[f"{attention}SelfAttention.o.weight"] = normal(16, 8)
        state[f"{attention}layer_norm.weight"] = normal(16)
        for name in ("wi_0", "wi_1"):
            state[f"{mlp}DenseReluDense.{name}.weight"] = normal(24, 16)
        state[f"{mlp}DenseReluDense.wo.weight"] = normal(16, 24)
        state[f"{mlp}layer_norm.weight"] = normal(16)
    state["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = normal(32, 2)
    return state


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("heads_apart", [True, False])
def test_parts_are_read_for_each_device(scanned, heads_apart, random_state, tmp_path):
    arrays = t5x_arrays(random_state, scanned=scanned, heads_apart=heads_apart)
    write_checkpoint(tmp_path / "c", arrays, partitioned=True)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

    def sharding(path, shape):
        spec = [None] * len(shape)
        if path.endswith("out/kernel"):
            spec[-2] = "b"  # 4 parts of 2 heads: inside a head
        elif path.endswith("kernel"):
            spec[-2:] = ["a", "b"]
        return NamedSharding(mesh, PartitionSpec(*spec))

    _, whole = load_t5x(tmp_path / "c")
    _, placed = load_t5x(tmp_path / "c", sharding=sharding)
    assert jax.tree.all(jax.tree.map(np.array_equal, placed, whole))
    query = placed["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) == (2, 8, 2)


def test_what_shapes_do_not_tell_can_be_said(random_state, tmp_path):
    write_checkpoint(tmp_path / "c", t5x_arrays(random_state, scanned=False), partitioned=False)
    config, _ = load_t5x(tmp_path / "c")
    assert (config.max_distance, config.activation, config.gated) == (128, "gelu", True)
    config, _ = load_t5x(tmp_path / "c", max_distance=64, activation="silu")
    assert (config.max_distance, config.activation) == (64, "silu")


def test_arrays_that_flax_splits_are_joined(random_state, tmp_path):
    arrays = t5x_arrays(random_state, scanned=False)
    table = arrays["token_embedder/embedding"]
    pieces = {"0": table.reshape(-1)[:100], "1": table.reshape(-1)[100:]}
    split = {"__msgpack_chunked_array__": True, "shape": {"0": 40, "1": 16}, "chunks": pieces}
    write_checkpoint(tmp_path / "c", arrays, partitioned=False)
    content = (tmp_path / "c" / "checkpoint").read_bytes()
    tree = flax.serialization.msgpack_restore(content)
    tree["optimizer"]["target"]["token_embedder"]["embedding"] = split
    write_tree(tmp_path / "c", tree)
    np.testing.assert_array_equal(load_t5x(tmp_path / "c")[1]["token_embedding"], table)


def test_misfits_are_listed(random_state, tmp_path):
    arrays = t5x_arrays(random_state, scanned=False)
    arrays["encoder/layers_1/extra"] = np.zeros(2, np.float32)
    del arrays["encoder/layers_1/mlp/wo/kernel"]
    arrays["encoder/layers_0/mlp/wi_1/kernel"] = np.zeros((16, 25), np.float32)
    write_checkpoint(tmp_path / "c", arrays, partitioned=False)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_t5x(tmp_path / "c")
    message = str(error.value)
    assert "1 missing: encoder/layers_1/mlp/wo/kernel" in message
    assert "1 unused: encoder/layers_1/extra" in message
    assert "encoder/layers_0/mlp/wi_1/kernel is (16, 25)" in message


def test_the_folder_of_the_run_names_its_steps(random_state, tmp_path):
    write_checkpoint(
        tmp_path / "checkpoint_7", t5x_arrays(random_state, scanned=False), partitioned=False
    )
    with pytest.raises(FileNotFoundError, match=r"give one of its steps.*checkpoint_7"):
        load_t5x(tmp_path)


def test_only_the_asked_part_is_read(random_state, tmp_path):
    write_checkpoint(tmp_path / "c", t5x_arrays(random_state, scanned=True), partitioned=True)
    folder = tmp_path / "c" / "target.encoder.encoder.mlp.wo.kernel"
    metadata = json.loads((folder / ".zarray").read_text())
    assert metadata["chunks"] == [12, 1, 8]
    (folder / "1.1.1").write_bytes(b"not a chunk")
    files = read_checkpoint(tmp_path / "c")
    name = "encoder/encoder/mlp/wo/kernel"
    part = files[name][slice(0, 24), slice(0, 1), slice(0, 16)]
    np.testing.assert_array_equal(
        part[:, 0], random_state["encoder.block.0.layer.1.DenseReluDense.wo.weight"].T
    )
    with pytest.raises(ValueError, match=r"mlp\.wo\.kernel cannot be read as a zarr array"):
        files[name][()]
