"""ONNX models whose weights are stored in int8 and float16."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from imagen_jax.export.small_weights import LEAST, quantized, with_small_weights  # noqa: E402


def network(weights: dict[str, np.ndarray]):
    """A dense layer, a convolution and a bias, the bias added in a branch's own graph."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 256, 8, 8])
    vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, 256])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")]
    bias = numpy_helper.from_array(weights.pop("bias"), "bias")
    add, keep = (
        helper.make_node("Add", ["summed", "bias"], ["a"]),
        helper.make_node("Identity", ["summed"], ["b"]),
    )
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["vector", "dense"], ["row"]),
        helper.make_node("ReduceMean", ["seen"], ["mean"], keepdims=0),
        helper.make_node("Add", ["row", "mean"], ["summed"]),
        helper.make_node(
            "If",
            ["yes"],
            ["result"],
            then_branch=helper.make_graph([add], "then", [], [inner[0]], [bias]),
            else_branch=helper.make_graph([keep], "else", [], [inner[1]]),
        ),
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    stored.append(numpy_helper.from_array(np.array(True), "yes"))
    graph = helper.make_graph(nodes, "network", [image, vector], [result], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, inputs)[0]


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Channels of very different sizes, one of them empty."""
    sizes = {"kernel": (64, 256, 3, 3), "dense": (256, 2048), "bias": (2048,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    arrays["kernel"] *= np.exp(rng.normal(0, 2, (64, 1, 1, 1))).astype(np.float32)
    arrays["dense"] *= np.exp(rng.normal(0, 2, (1, 2048))).astype(np.float32)
    arrays["dense"][:, 7] = 0.0
    return arrays


def test_a_model_with_int8_weights_gives_nearly_the_same():
    rng = np.random.default_rng()
    model = network(weights(rng))
    small = with_small_weights(model, "int8")
    inputs = {
        "image": rng.normal(size=(1, 256, 8, 8)).astype(np.float32),
        "vector": rng.normal(size=(1, 256)).astype(np.float32),
    }
    wanted, found = run(model, inputs), run(small, inputs)
    assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.02
    assert small.ByteSize() < 0.27 * model.ByteSize()
    assert run(model, inputs).tobytes() == wanted.tobytes()  # it has not changed


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((64, 32, 3, 3), (64, 1, 1, 1)),
        ((256, 300), (1, 300)),
        ((300, 256), (300, 1)),
        ((2, 200, 256), (2, 1, 256)),
    ],
)
def test_what_was_int8_becomes_the_same_numbers(shape: tuple, scales: tuple):
    rng = np.random.default_rng()
    numbers = rng.integers(-128, 128, shape).astype(np.int8)
    # Each channel has its scale's largest number, as one that was scaled by it has.
    first = tuple(slice(0, 1) if size == 1 else slice(None) for size in scales)
    numbers[first] = rng.choice([-128, 127], scales)
    scale = np.exp(rng.normal(0, 2, scales)).astype(np.float32)
    found, found_scale = quantized(numbers * scale)
    np.testing.assert_allclose(found_scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(found, numbers)


def test_small_and_infinite_arrays_stay():
    rng = np.random.default_rng()
    arrays = weights(rng)
    arrays["kernel"][0, 0, 0, 0] = np.inf
    arrays["dense"] = arrays["dense"][:, : LEAST // 256 - 1]
    arrays["bias"] = arrays["bias"][: LEAST // 256 - 1]
    graph = with_small_weights(network(dict(arrays)), "int8").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["kernel"] == TensorProto.FLOAT
    assert kinds["dense_float16"] == TensorProto.FLOAT16
    halves = with_small_weights(network(dict(arrays)), "float16").graph
    assert {tensor.name for tensor in halves.initializer} == {"kernel", "dense_float16", "yes"}
