"""T5 v1.1 at XXL width: two layers of random weights from both forms, on one device and eight."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.convert.t5 import load_huggingface
from imagen_jax.convert.t5x import load_t5x
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.pipeline.loading import sharding_over
from imagen_jax.text.encoder import encode_tokens
from tests.convert.t5x_writer import t5x_arrays, write_checkpoint
from tests.convert.test_t5x import relative_error

SIZES = {"d_model": 4096, "num_heads": 64, "d_kv": 64, "num_layers": 2, "d_ff": 10240}
VOCABULARY, LENGTH = 1000, 24  # fewer rows than XXL's 32128: each is read alike
LOADERS = {"huggingface": load_huggingface, "t5x": load_t5x}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder with both checkpoints, ids, mask, what transformers computes)."""
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    transformers = pytest.importorskip("transformers", reason="the reference encoder is in it")
    folder = tmp_path_factory.mktemp("xxl")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **SIZES)
    model = transformers.T5EncoderModel(config).eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCABULARY, (2, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None] < np.array([[LENGTH], [9]])
    with torch.no_grad():
        inputs = torch.tensor(ids.astype(np.int64)), torch.tensor(mask.astype(np.int64))
        expected = model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state.numpy()
    model.save_pretrained(folder / "huggingface")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_checkpoint(folder / "t5x", t5x_arrays(state, scanned=False), partitioned=True)
    del model, state
    gc.collect()
    return folder, ids, mask, expected


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted(LOADERS))
def test_the_encoder_is_that_of_transformers(form, written):
    folder, ids, mask, expected = written
    found = []
    for mesh in (None, make_mesh(MeshConfig(1, 4, 2))):
        config, params = LOADERS[form](folder / form, sharding=sharding_over(mesh))
        assert (config.d_model, config.num_heads, config.d_ff) == (4096, 64, 10240)
        if mesh is not None:  # an eighth of each matrix lies on each device
            matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.size > 2**24]
            assert matrices
            for leaf in matrices:
                assert leaf.size == 8 * leaf.addressable_shards[0].data.size
        values = encode_tokens(config, params, jnp.asarray(ids), jnp.asarray(mask)).values
        found.append(np.asarray(values))
        assert relative_error(found[-1][mask], expected[mask]) < 1e-5
        del params, values
        gc.collect()
    assert relative_error(*[values[mask] for values in found]) < 1e-5
