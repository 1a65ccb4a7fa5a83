"""Feature networks out of other people's files: every tensor is used, and faults are named."""

import json

import jax
import numpy as np
import pytest
from feature_references import random_state
from refusals import assert_refused
from safetensors.numpy import save_file

from imagen_jax.convert import clip as convert_clip
from imagen_jax.convert import dinov2 as convert_dinov2
from imagen_jax.convert import inception as convert
from imagen_jax.convert.frozen_graph import read_constants
from imagen_jax.models import dinov2, inception
from imagen_jax.storage.layout_files import write_layout


@pytest.fixture(scope="module")
def state():
    return random_state()


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def constant(name: str, array: np.ndarray, as_floats: bool = False) -> bytes:
    """A Const node as TensorFlow writes it."""
    shape = b"".join(field(2, number(1, size)) for size in array.shape)
    tensor = number(1, 1 if array.dtype == np.float32 else 3) + field(2, shape)
    tensor += field(5 if as_floats else 4, array.tobytes())
    dtype = field(5, field(1, b"dtype") + field(2, number(6, 1)))
    value = field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, field(1, name.encode()) + field(2, b"Const") + dtype + value)


def write_graph(path, state: dict[str, np.ndarray]):
    """The graph file of the same weights, with the constants of its own that such a file has."""
    theirs = {path: tensors.names[0] for path, tensors in convert.graph_layout().items()}
    nodes = [
        field(1, field(1, b"DecodeJpeg") + field(2, b"DecodeJpeg") + field(3, b"contents")),
        constant("Mul/y", np.float32(1 / 128)),
        constant("ResizeBilinear/size", np.array([299, 299], np.int32)),
    ]
    for ours, tensors in convert.pytorch_layout().items():
        array = state[tensors.names[0]]
        if tensors.axes is not None:
            array = array.transpose(tensors.axes)
        as_floats = array.ndim == 1 and len(array) < 40
        nodes.append(constant(theirs[ours], np.ascontiguousarray(array), as_floats))
    path.write_bytes(b"".join(nodes) + number(3, 0))
    return path


def test_both_forms_give_the_same_parameters(state, tmp_path):
    params = convert.params_from_pytorch(state)
    fresh = jax.eval_shape(inception.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    graph = convert.params_from_graph(write_graph(tmp_path / "graph.pb", state))
    jax.tree.map(np.testing.assert_array_equal, graph, params)


def test_tensorflow_reads_the_same_graph(state, tmp_path):
    v1 = pytest.importorskip("tensorflow").compat.v1
    from tensorflow.python.framework import tensor_util

    small = {name: array for name, array in state.items() if array.size < 5000}
    graph = v1.GraphDef()
    for name, array in small.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(array))
    node = graph.node.add(name="filled", op="Const")
    node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(1.5, shape=[2, 3]))
    path = tmp_path / "graph.pb"
    path.write_bytes(graph.SerializeToString())
    constants = read_constants(path)
    np.testing.assert_array_equal(constants.pop("filled"), np.full((2, 3), 1.5, np.float32))
    assert set(constants) == set(small)
    for name, array in small.items():
        np.testing.assert_array_equal(constants[name], array)


def test_faults_of_inceptions_tensors_are_named(state, tmp_path):
    wrong = dict(state, extra=np.zeros(3, np.float32))
    del wrong["Mixed_6c.branch7x7_2.bn.running_mean"]
    wrong["Mixed_7a.branch3x3_2.conv.weight"] = np.zeros((320, 192, 5, 5), np.float32)
    faults = (
        r"1 missing: Mixed_6c\.branch7x7_2\.bn\.running_mean; 1 unused: extra; 1 misshapen: "
        r"Mixed_7a\.branch3x3_2\.conv\.weight is \(320, 192, 5, 5\), not \(320, 192, 3, 3\)"
    )
    with pytest.raises(ValueError, match=faults):
        convert.params_from_pytorch(wrong)
    torchvisions = {name: array for name, array in state.items() if not name.startswith("fc.")}
    torchvisions |= {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}
    with pytest.raises(ValueError, match=r"fc\.bias is \(1000,\), not \(1008,\)"):
        convert.params_from_pytorch(torchvisions)
    counters = {"fc.num_batches_tracked": np.asarray(3)}
    convert.params_from_pytorch(state | counters)
    negative = state | {"Conv2d_1a_3x3.bn.running_var": np.full(32, -1, np.float32)}
    with pytest.raises(ValueError, match="Conv2d_1a_3x3 has a negative variance"):
        convert.params_from_pytorch(negative)
    path = tmp_path / "short.pb"
    path.write_bytes(constant("conv/conv2d_params", np.zeros((3, 3, 3, 32), np.float32)))
    with pytest.raises(ValueError, match=r"short\.pb does not fit.*missing.*batchnorm"):
        convert.params_from_graph(path)


def test_damaged_graphs_are_refused(tmp_path):
    whole = constant("conv/x", np.arange(6, dtype=np.float32).reshape(2, 3))
    path = tmp_path / "graph.pb"
    for content, said in (
        (b"", "it is empty"),
        (whole[:-3], "is not a whole TensorFlow graph"),
        (b"\xff" * 30, "is not a whole TensorFlow graph"),
        (b"\x0b", "is not a whole TensorFlow graph"),
        (number(1, 7), "is not a"),
        (b"PK\x03\x04 a zip file", "is not a"),
        (field(1, field(1, b"\xff") + field(2, b"Const")), "is not a whole TensorFlow graph"),
        (whole.replace(number(1, 3), number(1, 5)), "of shape [2, 5] has 24 bytes"),
        (
            constant("x", np.zeros(1, np.float32)).replace(
                b"\x12\x02\x08\x01", b"\x12\x02\x08\x00"
            ),
            "of shape [0] has 4 bytes",
        ),
    ):
        path.write_bytes(content)
        assert_refused(read_constants, path, ValueError, said)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_constants(tmp_path / "none.pb")


VALUES = {
    "model_type": "clip",
    "projection_dim": 6,
    "text_config": {
        "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
        "num_hidden_layers": 2, "vocab_size": 20, "max_position_embeddings": 7,
    },
    "vision_config": {
        "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
        "num_hidden_layers": 1, "image_size": 8, "patch_size": 4,
    },
}  # fmt: skip


def write_clip(place, values=VALUES, **changes):
    """A directory as transformers writes one, of random weights; a change of None leaves out."""
    config = convert_clip.config_from_huggingface(VALUES)
    shapes = convert_clip.clip_shapes(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    tensors = write_layout(convert_clip.clip_layout(config), params)
    tensors["logit_scale"] = np.float32(2.6).reshape(())
    tensors["text_model.embeddings.position_ids"] = np.arange(7)[None]
    tensors |= changes
    kept = {
        name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None
    }
    save_file(kept, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(values))
    return params


def test_clip_is_read_as_it_was_written(tmp_path):
    params = write_clip(tmp_path)
    _, read = convert_clip.read_clip(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_faults_of_clips_tensors_are_named(tmp_path):
    write_clip(
        tmp_path,
        **{
            "visual_projection.weight": None,
            "vision_model.head.weight": np.zeros(3),
            "vision_model.embeddings.class_embedding": np.zeros(9),
        },
    )
    faults = (
        r"1 missing: visual_projection\.weight; 1 unused: vision_model\.head\.weight; "
        r"1 misshapen: vision_model\.embeddings\.class_embedding is \(9,\), not \(8,\)"
    )
    with pytest.raises(ValueError, match=faults):
        convert_clip.read_clip(tmp_path)


def test_pickled_weights_alone_are_refused(tmp_path):
    write_clip(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickles \(pytorch_model\.bin\), which are not read"):
        convert_clip.read_clip(tmp_path)


def test_configs_that_are_no_clips_are_refused(tmp_path):
    def changed(section, **values):
        return VALUES | {section: VALUES[section] | values}

    for values, said in (
        (VALUES | {"model_type": "siglip"}, "'siglip'"),
        (changed("vision_config", hidden_act="relu"), "hidden_act is 'relu'"),
        (changed("vision_config", num_channels=4), "num_channels is 4"),
        (changed("vision_config", patch_size=0), "patch_size is 0"),
        (changed("vision_config", image_size=[8, 16]), r"image_size is \[8, 16\]"),
        (changed("text_config", num_attention_heads=3), "does not split into 3 heads"),
        (changed("text_config", num_hidden_layers=10**6), "from 1 to 1024"),
        (changed("text_config", layer_norm_eps=-1.0), "layer_norm_eps is -1.0"),
        (VALUES | {"text_config": [1]}, "text_config is"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=said):
            convert_clip.read_clip(tmp_path)


DINOV2 = {
    "model_type": "dinov2", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
    "mlp_ratio": 3, "image_size": 42,
}  # fmt: skip


def write_dinov2(place, values, **changes):
    """As `write_clip`, of a DINOv2."""
    config = convert_dinov2.config_from_huggingface(values)
    rng, shapes = np.random.default_rng(0), convert_dinov2.dinov2_shapes(config)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    tensors = write_layout(convert_dinov2.dinov2_layout(config), params)
    tensors |= {"embeddings.mask_token": np.zeros((1, 8), np.float32)} | changes
    kept = {name: np.ascontiguousarray(each) for name, each in tensors.items() if each is not None}
    save_file(kept, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(values))
    return config, params


@pytest.mark.parametrize("kind", convert_dinov2.DEFAULTS)
@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2_is_read_as_it_was_written(kind, swiglu, tmp_path):
    values = DINOV2 | {"model_type": kind, "patch_size": 14, "use_swiglu_ffn": swiglu}
    config, params = write_dinov2(tmp_path, values)
    assert config.registers == (4 if "registers" in kind else 0)
    assert config.hidden == (16 if swiglu else 24)
    assert params["position_embedding"].shape == (10, 8)
    found, read = convert_dinov2.read_dinov2(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_published_dinov2s_have_their_sizes():
    """ViT-S, B, L and g of arXiv 2304.07193; the default is FD-DINOv2's network."""
    sizes = ((384, 12, 6, 1536), (768, 12, 12, 3072), (1024, 24, 16, 4096), (1536, 40, 24, 4096))
    for width, layers, heads, hidden in sizes:
        values = {
            "model_type": "dinov2", "hidden_size": width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "image_size": 518, "use_swiglu_ffn": width == 1536,
        }  # fmt: skip
        config = convert_dinov2.config_from_huggingface(values)
        assert config.hidden == hidden
        assert (config == dinov2.Dinov2Config()) == (width == 1024)


def test_faults_of_dinov2s_tensors_are_named(tmp_path):
    write_dinov2(
        tmp_path,
        DINOV2,
        **{
            "layernorm.bias": None,
            "embeddings.register_tokens": np.zeros((1, 4, 8)),
            "encoder.layer.1.layer_scale1.lambda1": np.zeros(9),
        },
    )
    faults = (
        r"1 missing: layernorm\.bias; 1 unused: embeddings\.register_tokens; 1 misshapen: "
        r"encoder\.layer\.1\.layer_scale1\.lambda1 is \(9,\), not \(8,\)"
    )
    with pytest.raises(ValueError, match=faults):
        convert_dinov2.read_dinov2(tmp_path)


def test_configs_that_are_no_dinov2s_are_refused(tmp_path):
    registers = {"model_type": "dinov2_with_registers"}
    for changes, said in (
        ({"model_type": "dinov3_vit"}, "'dinov3_vit', not 'dinov2' or"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"use_swiglu_ffn": 1}, "use_swiglu_ffn is 1"),
        ({"mlp_ratio": 2.5}, r"mlp_ratio is 2\.5"),
        ({"image_size": [42, 56]}, r"image_size is \[42, 56\]"),
        ({"num_attention_heads": 3}, "does not split into 3 heads"),
        (registers | {"num_register_tokens": 0}, "num_register_tokens is 0"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(DINOV2 | changes))
        with pytest.raises(ValueError, match=said):
            convert_dinov2.read_dinov2(tmp_path)
