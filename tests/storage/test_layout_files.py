"""Parameters by a layout: read whole or by shards, in every form, and written back."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from imagen_jax.storage.layout import CONVOLUTION, LINEAR, Tensors
from imagen_jax.storage.layout_files import read_layout, save_layout, write_layout
from imagen_jax.storage.safetensors import open_tensors
from imagen_jax.storage.tensor_file import StoredTensor
from imagen_jax.storage.trees import flatten

LAYOUT = {
    "conv/kernel": Tensors(("conv.weight",), CONVOLUTION),
    "conv/bias": Tensors(("conv.bias",)),
    "shortcut/kernel": Tensors(("shortcut.weight",), CONVOLUTION),  # 1x1, ours a matrix
    "qkv/kernel": Tensors(("to_q.weight", "to_k.weight", "to_v.weight"), LINEAR, "concat"),
    "layers/kernel": Tensors(("layer.0.w", "layer.1.w", "layer.2.w", "layer.3.w"), LINEAR, "stack"),
    "scale": Tensors(("scale",)),
}


@pytest.fixture
def tensors(rng) -> dict[str, np.ndarray]:
    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    named = {"conv.weight": normal(16, 8, 3, 3), "conv.bias": normal(16), "scale": normal()}
    named["shortcut.weight"] = normal(16, 8, 1, 1)
    named |= {f"to_{name}.weight": normal(8, 24) for name in "qkv"}
    return named | {f"layer.{i}.w": normal(200, 16) for i in range(4)}


@pytest.fixture
def expected(tensors) -> dict:
    """The layout in plain numpy."""
    return {
        "conv": {
            "kernel": tensors["conv.weight"].transpose(2, 3, 1, 0),
            "bias": tensors["conv.bias"],
        },
        "shortcut": {"kernel": tensors["shortcut.weight"][:, :, 0, 0].T},
        "qkv": {"kernel": np.concatenate([tensors[f"to_{n}.weight"].T for n in "qkv"], axis=-1)},
        "layers": {"kernel": np.stack([tensors[f"layer.{i}.w"].T for i in range(4)])},
        "scale": tensors["scale"],
    }


@pytest.fixture
def saved(tensors, tmp_path) -> dict[str, StoredTensor]:
    save_file(tensors, tmp_path / "model.safetensors")
    return open_tensors(tmp_path, "model")


def assert_equal(tree, reference):
    assert jax.tree.structure(tree) == jax.tree.structure(reference)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, reference))


def test_every_form_of_a_parameter_is_read(saved, expected):
    assert_equal(read_layout(LAYOUT, saved, expected), expected)


def test_arrays_in_memory_are_read_likewise(tensors, expected):
    assert_equal(read_layout(LAYOUT, tensors, expected), expected)


def by_axis(axis: int):
    """Every parameter split along one of its axes, four ways, where four divides it."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

    def sharding(path, shape):
        spec = [None] * len(shape)
        if shape and shape[axis % len(shape)] % 4 == 0:
            spec[axis % len(shape)] = "b"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_shards_make_the_whole(axis, saved, expected):
    placed = read_layout(LAYOUT, saved, expected, sharding=by_axis(axis))
    assert_equal(placed, expected)
    for path, array in flatten(placed).items():
        assert array.sharding == by_axis(axis)(path, array.shape)
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, flatten(expected)[path][shard.index])


class Counted:
    """An array that notes how much of it is read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read_bytes = 0

    def __getitem__(self, index):
        self.read_bytes += self.array[index].nbytes
        return self.array[index]


def test_a_host_reads_its_share_once(tensors, expected):
    """Four of eight devices, as a host of two would have: half of what is split, no part twice."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("copies", "parts"))
    spec = {"qkv/kernel": PartitionSpec(None, "parts"), "layers/kernel": PartitionSpec("parts")}
    files = {name: Counted(array) for name, array in tensors.items()}

    def sharding(path, shape):
        return NamedSharding(mesh, spec.get(path, PartitionSpec()))

    read_layout(LAYOUT, files, expected, sharding=sharding)
    assert {name: file.read_bytes for name, file in files.items()} == {
        name: array.nbytes for name, array in tensors.items()
    }


def test_a_part_of_a_file_is_what_slicing_gives(saved, tensors):
    for name, index in {
        "conv.weight": (slice(4, 9), slice(0, 8), slice(0, 3), slice(0, 3)),
        "to_q.weight": (slice(0, 8), slice(5, 7)),
        "layer.0.w": (slice(3, 3), slice(0, 16)),
        "scale": (),
    }.items():
        np.testing.assert_array_equal(saved[name][index], tensors[name][index])
    with pytest.raises(ValueError, match="steps of 1"):
        saved["conv.bias"][(slice(0, 16, 2),)]


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_numbers_are_cast_once(stored, dtype, tensors, expected, tmp_path):
    kept = {name: array.astype(jnp.dtype(stored)) for name, array in tensors.items()}
    kept["conv.bias"][:3] = [6e-8, -65504.0, 1e-4]  # the least and the greatest of float16
    save_file(kept, tmp_path / "model.safetensors")
    params = read_layout(LAYOUT, open_tensors(tmp_path, "model"), expected, dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype or stored}
    bias = kept["conv.bias"].astype(np.float32)
    np.testing.assert_array_equal(params["conv"]["bias"], bias.astype(jnp.dtype(dtype or stored)))
    wanted = kept["conv.weight"].astype(jnp.dtype(dtype or stored)).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["conv"]["kernel"], wanted)


def test_integers_stay_integers(tmp_path):
    save_file({"w": np.arange(4)}, tmp_path / "m.safetensors")
    params = read_layout(
        {"w": Tensors(("w",))}, open_tensors(tmp_path, "m"), {"w": np.zeros(4)}, dtype="bfloat16"
    )
    assert params["w"].dtype == np.int64


def test_misfits_are_listed_together(tensors, expected):
    del tensors["to_k.weight"]
    tensors["ghost"] = np.zeros(3)
    tensors["decoder.ghost"] = np.zeros(3)
    tensors["layer.2.w"] = np.zeros((200, 17), np.float32)
    tensors["conv.weight"] = np.zeros((16, 8, 3, 4), np.float32)
    tensors["shortcut.weight"] = np.zeros((16, 8), np.float32)
    with pytest.raises(ValueError, match=r"^unet does not fit the model\.") as error:
        read_layout(LAYOUT, tensors, expected, where="unet", ignored=("decoder.",))
    message = str(error.value)
    assert "1 missing: to_k.weight" in message
    assert "1 unused: ghost;" in message
    assert "3 misshapen" in message
    assert "conv.weight is (16, 8, 3, 4), not (16, 8, 3, 3)" in message
    assert "layer.2.w is (200, 17), not (200, 16)" in message
    assert "shortcut.weight is (16, 8), not (16, 8, 1, 1)" in message


def test_unequal_parts_are_no_concatenation(tensors, expected):
    """The sum of the widths is right: only the parts tell."""
    tensors["to_q.weight"] = np.zeros((10, 24), np.float32)
    tensors["to_k.weight"] = np.zeros((6, 24), np.float32)
    with pytest.raises(ValueError, match=r"to_q\.weight is \(10, 24\), not \(8, 24\)"):
        read_layout(LAYOUT, tensors, expected)


def test_a_layout_for_another_model_is_refused(tensors, expected):
    del expected["scale"]
    with pytest.raises(ValueError, match="disagree about the parameters scale"):
        read_layout(LAYOUT, tensors, expected)


def test_writing_is_the_inverse(tensors, expected):
    for params in (expected, jax.tree.map(jnp.asarray, expected)):
        written = write_layout(LAYOUT, params)
        assert set(written) == set(tensors)
        for name, array in written.items():
            np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_saved_folders_are_huggingfaces(max_shard_bytes, tensors, expected, tmp_path):
    stem = "diffusion_pytorch_model"
    paths = save_layout(tmp_path, stem, LAYOUT, expected, max_shard_bytes=max_shard_bytes)
    names = [path.name for path in paths]
    if max_shard_bytes == 10**9:
        assert names == [f"{stem}.safetensors"]
        assert json.loads(paths[0].read_bytes()[8:].split(b"}")[0] + b"}}")["__metadata__"] == {
            "format": "pt"
        }
    else:
        assert names[-1] == f"{stem}.safetensors.index.json"
        assert names[0] == f"{stem}-00001-of-{len(names) - 1:05d}.safetensors"
    merged = {}
    for path in paths:
        if path.suffix == ".safetensors":
            merged |= load_file(path)
    assert set(merged) == set(tensors)
    assert all(np.array_equal(merged[name], tensors[name]) for name in tensors)
    assert_equal(read_layout(LAYOUT, open_tensors(tmp_path, stem), expected), expected)


def test_diffusers_and_transformers_variants_are_found(tensors, expected, tmp_path):
    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    first = dict(list(halves.items())[:5])
    rest = {name: array for name, array in halves.items() if name not in first}
    for directory, index in {
        "now": "model.safetensors.index.fp16.json",
        "formerly": "model.safetensors.fp16.index.json",
    }.items():
        folder = tmp_path / directory
        folder.mkdir()
        shards = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]
        save_file(first, folder / shards[0])
        save_file(rest, folder / shards[1])
        places = dict.fromkeys(first, shards[0]) | dict.fromkeys(rest, shards[1])
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        params = read_layout(LAYOUT, open_tensors(folder, "model", "fp16"), expected)
        np.testing.assert_array_equal(
            params["conv"]["bias"], halves["conv.bias"].astype(np.float32)
        )
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            open_tensors(folder, "model")


def test_float8_is_read(tmp_path):
    bits = np.arange(0, 120, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    header = {"w": {"dtype": "F8_E4M3", "shape": [120], "data_offsets": [0, 120]}}
    content = json.dumps(header).encode()
    file = len(content).to_bytes(8, "little") + content + bits.tobytes()
    (tmp_path / "m.safetensors").write_bytes(file)
    params = read_layout({"w": Tensors(("w",))}, open_tensors(tmp_path, "m"), {"w": np.zeros(120)})
    np.testing.assert_array_equal(params["w"], bits.astype(np.float32))
