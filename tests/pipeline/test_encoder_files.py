"""Text encoders by themselves: their three forms on disk, and the frozen one of a workdir."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_cascade import BASE

from imagen_jax.convert.t5 import save_huggingface
from imagen_jax.convert.t5x import checkpoint_layout
from imagen_jax.devices.sharding import MeshConfig, make_mesh, partition_spec
from imagen_jax.models import t5
from imagen_jax.pipeline import encoder_files
from imagen_jax.pipeline.loading import load_encoder
from imagen_jax.storage.checkpoint import MismatchError
from imagen_jax.storage.layout_files import write_layout
from imagen_jax.storage.trees import flatten
from imagen_jax.training.build import make_text_encoder
from imagen_jax.training.loop import start_state
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
from imagen_jax.training.start import read_start
from imagen_jax.training.state import TrainState
from tests.convert.t5x_writer import write_checkpoint

CONFIG = t5.T5Config(vocab_size=300, d_model=8, num_heads=2, head_dim=4, num_layers=2, d_ff=16)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(t5.init(CONFIG, jax.random.key(0)))


@pytest.fixture
def forms(params, tmp_path):
    """The same encoder in the three forms."""
    save_huggingface(tmp_path / "hf", CONFIG, params)
    arrays = write_layout(checkpoint_layout(CONFIG, scanned=False), params)
    write_checkpoint(tmp_path / "t5x", arrays, partitioned=True)
    encoder_files.write_encoder(tmp_path / "ours", CONFIG, params)
    return tmp_path


@pytest.mark.parametrize("form", ["hf", "t5x", "ours"])
def test_every_form_gives_the_same_encoder(forms, params, form):
    source = forms / form
    assert encoder_files.is_encoder(source)
    assert encoder_files.read_config(source) == CONFIG
    config, read = encoder_files.read_encoder(source)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize("form", ["hf", "t5x", "ours"])
def test_it_is_read_onto_a_mesh_by_the_rules_of_training(forms, form):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, read = load_encoder(forms / form, dtype="bfloat16", mesh=mesh)
    for path, leaf in flatten(read).items():
        assert leaf.dtype == "bfloat16"
        wanted = jax.NamedSharding(mesh, partition_spec(path, leaf.shape, mesh))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), path
    assert any(not leaf.is_fully_replicated for leaf in flatten(read).values())


@pytest.mark.parametrize("form", ["hf", "t5x"])
def test_sizes_that_differ_are_named(forms, form):
    wanted = replace(CONFIG, d_ff=32, num_layers=3, dtype="bfloat16", embedding_init_scale=2.0)
    with pytest.raises(ValueError, match="is not the encoder in") as caught:
        encoder_files.check_config(forms / form, CONFIG, wanted)
    assert "num_layers 3 (there 2), d_ff 32 (there 16)" in str(caught.value)
    assert "dtype" not in str(caught.value)
    encoder_files.check_config(forms / form, CONFIG, replace(CONFIG, dtype="bfloat16"))
    # A T5X checkpoint does not say its largest distance.
    farther = replace(CONFIG, max_distance=64)
    if form == "t5x":
        encoder_files.check_config(forms / form, CONFIG, farther)
    else:
        with pytest.raises(ValueError, match="max_distance 64"):
            encoder_files.check_config(forms / form, CONFIG, farther)


def test_what_a_config_leaves_out_is_the_encoders(forms):
    with pytest.raises(ValueError, match=r"no spiece.model: give the path .* 'bytes' for ByT5"):
        encoder_files.text_section({"max_length": 8}, forms / "hf")
    section = encoder_files.text_section({"max_length": 8, "tokenizer": "bytes"}, forms / "hf")
    assert section["encoder"]["d_model"] == 8
    (forms / "hf" / "spiece.model").write_bytes(b"")
    section = encoder_files.text_section({"encoder": {"d_model": 9}}, forms / "hf")
    assert section["encoder"] == {"d_model": 9}
    assert section["tokenizer"] == str(forms / "hf" / "spiece.model")


def test_a_workdir_keeps_a_copy(forms, params, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    assert not encoder_files.is_kept(workdir)
    encoder_files.keep(workdir, forms / "hf", params)
    assert encoder_files.is_kept(workdir)
    read = encoder_files.read_kept(workdir, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert not encoder_files.is_encoder(workdir)


def test_of_a_large_one_a_workdir_keeps_a_reference(forms, params, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_files, "LARGEST_COPY", 1000)
    workdir = tmp_path / "run"
    workdir.mkdir()
    encoder_files.keep(workdir, forms / "hf", params)
    assert [path.name for path in workdir.iterdir()] == [encoder_files.REFERENCE_FILE]
    read = encoder_files.read_kept(workdir, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    # Other weights in its place are noticed.
    save_huggingface(forms / "hf", CONFIG, jax.tree.map(lambda leaf: 2 * leaf, params))
    with pytest.raises(ValueError, match="whose files have changed"):
        encoder_files.read_kept(workdir, CONFIG)
    (forms / "hf").rename(forms / "elsewhere")
    with pytest.raises(ValueError, match="hf: it is gone"):
        encoder_files.read_kept(workdir, CONFIG)
    # A model or a workdir may change: it is copied, whatever its size.
    encoder_files.keep(workdir, forms / "no_encoder", params)
    assert [path.name for path in workdir.iterdir()] == ["text_encoder.safetensors"]


def test_a_damaged_encoder_is_named(forms):
    path = forms / "ours" / encoder_files.CONFIG_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"layers": 3}))
    with pytest.raises(ValueError, match=r"text_encoder\.json is .*: unknown key 'layers'"):
        encoder_files.read_encoder(forms / "ours")
    path.write_text(json.dumps(values | {"d_ff": 17}))
    with pytest.raises(ValueError, match="does not fit the model"):
        encoder_files.read_encoder(forms / "ours")


def test_a_trained_encoder_starts_from_its_files(forms, params):
    """Of `text.init_from`, beside a network that starts anew; other parts are refused."""
    section = TextConfig(CONFIG, trainable=True, init_from=str(forms / "hf"))
    config = RunConfig(BASE, DataConfig("folder"), 1, 1, text=section)
    mesh = make_mesh(MeshConfig(fsdp=8, data=1))
    weights = read_start(config, make_text_encoder(config), mesh)

    def init(key):
        fresh = {"network": {"kernel": jax.random.bits(key, (8, 8))}}
        fresh["text_encoder"] = t5.init(CONFIG, key)
        return TrainState(jax.numpy.zeros(()), fresh, fresh, None)

    key = jax.random.key(1)
    state = start_state(init, key, mesh, weights)
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree["text_encoder"], params)
        np.testing.assert_allclose(tree["network"]["kernel"], init(key).params["network"]["kernel"])
    with pytest.raises(MismatchError, match="do not fit the config: 1 unused: head/kernel"):
        start_state(init, key, mesh, {"head": {"kernel": np.zeros(2)}})
