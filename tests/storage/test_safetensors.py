"""Trees of parameters to safetensors and back; every kind of misfit is named."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.storage import safetensors as files
from imagen_jax.storage.layout_files import read_params
from imagen_jax.storage.safetensors import open_tensors, save_params
from imagen_jax.storage.trees import unflatten


def load_params(directory, name, shapes=None, dtype="float32") -> dict:
    """`read_params`; without `shapes`, whatever the files have."""
    shapes = unflatten(open_tensors(directory, name)) if shapes is None else shapes
    return read_params(directory, name, shapes, dtype=dtype)


@pytest.fixture
def params(rng) -> dict:
    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "stem": {"kernel": normal(3, 3, 8, 40), "bias": normal(40)},
        "blocks": {"0": {"kernel": normal(40, 60)}, "1": {"kernel": normal(60, 40)}},
        "scale": np.float32(3.5),
        "count": np.arange(5, dtype=np.int32),
    }


def assert_equal(tree, reference):
    assert jax.tree.structure(tree) == jax.tree.structure(reference)
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("metadata", ["null", "{}", '{"steps": 7, "format": "pt"}'])
def test_odd_metadata_of_others(tmp_path, metadata):
    tensors = '"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    header = f'{{"__metadata__": {metadata}, {tensors}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\7")
    assert load_params(tmp_path, "a")["a"].tolist() == [7]


@pytest.mark.parametrize("max_shard_bytes", [files.SHARD_BYTES, 14_000, 1])
def test_round_trip(params, tmp_path, max_shard_bytes):
    paths = save_params(tmp_path, "base", params, None, max_shard_bytes)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert_equal(load_params(tmp_path, "base", jax.eval_shape(lambda: params)), params)


def test_arrays_on_a_device_are_saved(params, tmp_path):
    save_params(tmp_path, "base", jax.tree.map(jnp.asarray, params), dtype=None)
    assert_equal(load_params(tmp_path, "base"), params)


def test_bfloat16_on_disk(params, tmp_path):
    save_params(tmp_path, "base", params)
    stored = load_file(tmp_path / "base.safetensors")
    assert {name: array.dtype.name for name, array in stored.items()} == {
        "stem/kernel": "bfloat16",
        "stem/bias": "bfloat16",
        "blocks/0/kernel": "bfloat16",
        "blocks/1/kernel": "bfloat16",
        "scale": "bfloat16",
        "count": "int32",
    }
    rounded = jax.tree.map(
        lambda x: x if x.dtype == np.int32 else np.asarray(x, jnp.bfloat16), params
    )
    assert_equal(load_params(tmp_path, "base", dtype=None), rounded)
    read = load_params(tmp_path, "base", dtype="float32")
    assert read["stem"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(read["stem"]["kernel"], params["stem"]["kernel"], rtol=2**-8)


def test_shards_are_huggingfaces(params, tmp_path):
    limit = 14_000
    save_params(tmp_path, "base", params, "float32", limit)
    index = json.loads((tmp_path / "base.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    count = len(names)
    assert count > 1
    assert names == [f"base-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert all((tmp_path / name).stat().st_size <= limit for name in names)
    leaves = jax.tree.leaves(params)
    assert index["metadata"]["total_size"] == sum(np.asarray(leaf).nbytes for leaf in leaves)
    for tensor, name in index["weight_map"].items():
        assert tensor in load_file(tmp_path / name)


def test_equal_trees_give_equal_files(params, tmp_path):
    backward = dict(reversed(params.items()))
    for name, tree in (("a", params), ("b", backward)):
        save_params(tmp_path / name, "base", tree, max_shard_bytes=14_000)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(("before", "after"), [(14_000, 2**20), (2**20, 14_000), (8_000, 14_000)])
def test_a_new_save_replaces_the_old_one_alone(params, tmp_path, before, after):
    old = jax.tree.map(np.zeros_like, params)
    save_params(tmp_path, "base", old, None, before)
    save_params(tmp_path, "base_other", old, None, before)
    save_params(tmp_path, "base", params, None, after)
    assert_equal(load_params(tmp_path, "base"), params)
    assert_equal(load_params(tmp_path, "base_other"), old)
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    expected = save_params(tmp_path / "fresh", "base", params, None, after)
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith("base_other")}
    assert kept == {path.name for path in expected} | {"fresh"}


@pytest.mark.parametrize("failing_write", [1, 3])
def test_a_full_disk_leaves_the_earlier_save_whole(params, tmp_path, monkeypatch, failing_write):
    old = jax.tree.map(np.zeros_like, params)
    save_params(tmp_path, "base", old, None, 14_000)
    before = sorted(tmp_path.iterdir())
    calls = []

    def save_until_full(arrays, path, metadata):
        calls.append(path)
        if len(calls) == failing_write:
            path.write_bytes(b"half of a fi")
            raise OSError(28, "No space left on device")
        save_file(arrays, path, metadata)

    monkeypatch.setattr(files, "save_file", save_until_full)
    with pytest.raises(OSError, match="No space"):
        save_params(tmp_path, "base", params, None, 14_000)
    assert sorted(tmp_path.iterdir()) == before
    assert_equal(load_params(tmp_path, "base"), old)


def test_misfits_are_named(params, tmp_path):
    save_params(tmp_path, "base", params)
    shapes = jax.eval_shape(lambda: params)
    shapes["stem"]["kernel"] = jax.ShapeDtypeStruct((3, 3, 8, 41), jnp.float32)
    shapes["head"] = {"kernel": shapes["blocks"]["1"].pop("kernel")}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_params(tmp_path, "base", shapes)
    message = str(error.value)
    assert "1 missing: head/kernel" in message
    assert "1 unused: blocks/1/kernel" in message
    assert "stem/kernel is (3, 3, 8, 40), not (3, 3, 8, 41)" in message


def test_many_misfits_are_counted(tmp_path):
    save_params(tmp_path, "base", {f"w{i:02d}": np.zeros(2) for i in range(30)})
    with pytest.raises(ValueError, match=r"29 unused: w01, .* and 21 more"):
        load_params(tmp_path, "base", {"w00": np.zeros(2)})


@pytest.mark.parametrize("cut", [4, 100, -10])
def test_a_truncated_file_is_named(params, tmp_path, cut):
    (path,) = save_params(tmp_path, "base", params)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"base\.safetensors is not a whole"):
        load_params(tmp_path, "base")


def test_missing_files_are_named(params, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"base\.safetensors"):
        load_params(tmp_path, "base")
    paths = save_params(tmp_path, "base", params, None, 14_000)
    os.remove(paths[0])
    with pytest.raises(ValueError, match=r"shard .*base-00001-of.* is missing"):
        load_params(tmp_path, "base")


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/x", "a\\b", "..", "", 3, None])
def test_an_index_cannot_leave_its_directory(tmp_path, shard):
    save_params(tmp_path, "secret", {"w": np.zeros(2)})
    inner = tmp_path / "model"
    inner.mkdir()
    index = {"weight_map": {"w": shard}}
    (inner / "base.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="plain file name"):
        load_params(inner, "base")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', "\x00"])
def test_a_broken_index_is_named(tmp_path, content):
    (tmp_path / "base.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"base\.safetensors\.index\.json is not an index"):
        load_params(tmp_path, "base")


def test_an_index_must_agree_with_its_shards(params, tmp_path):
    paths = save_params(tmp_path, "base", params, None, 14_000)
    index = json.loads(paths[-1].read_text())
    index["weight_map"]["ghost"] = paths[0].name
    del index["weight_map"]["scale"]
    paths[-1].write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"disagree about ghost in .*scale in"):
        load_params(tmp_path, "base")


def test_trees_that_have_no_file_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a/b'"):
        save_params(tmp_path, "base", {"a/b": np.zeros(2)})
    with pytest.raises(ValueError, match="no parameters"):
        save_params(tmp_path, "base", {})
    with pytest.raises(ValueError, match="plain file name"):
        save_params(tmp_path, "../base", {"a": np.zeros(2)})
    with pytest.raises(ValueError, match="plain file name"):
        load_params(tmp_path, "../base")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_parameter_cannot_be_a_parent(names):
    with pytest.raises(ValueError, match="Parameter 'a"):
        unflatten(dict.fromkeys(names, 1))
