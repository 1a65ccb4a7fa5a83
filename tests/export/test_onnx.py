"""ONNX files give what the package gives, in ONNX Runtime and in OpenVINO."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import (
    distance,
    first_row,
    if_stages,
    of_network,
    run_part,
    sampled,
    tiny,
)

REASON = "ONNX is in the extra 'export'"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

from imagen_jax.export import onnx_file, onnx_graph, onnx_images, small_weights  # noqa: E402
from imagen_jax.export.examples import example_inputs  # noqa: E402
from imagen_jax.export.parts import make_part, part_names  # noqa: E402
from imagen_jax.models import (  # noqa: E402
    EfficientLevel,
    EfficientUNetConfig,
    TransformerConfig,
    UNetConfig,
    UNetLevel,
)
from imagen_jax.models.t5 import T5_V1_1  # noqa: E402
from imagen_jax.pipeline.pipeline import Pipeline  # noqa: E402
from imagen_jax.storage.json_file import read_object  # noqa: E402

PARTS = ["text_encoder", "base_steps", "cascade"]  # of the tiny cascade


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def session_of(part) -> onnxruntime.InferenceSession:
    model = onnx_file.to_onnx(part.function, part.inputs, part.outputs)
    onnx.checker.check_model(model, full_check=True)
    return session(model.SerializeToString())


def check(pipeline, name: str, steps: int = 3, within: float = 2e-5) -> None:
    """A part in ONNX Runtime against jax, for batches of three and of one."""
    part = make_part(pipeline, name)
    file, given = session_of(part), example_inputs(part, 3, steps)
    wanted = run_part(part, given)
    rows = file.run(None, first_row(part, given))
    for output, one, row, other in zip(
        part.outputs, file.run(None, given), rows, wanted, strict=True
    ):
        assert distance(one, other) < within, output
        assert distance(row, other[:1] if other.ndim else other) < within, output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx")
    onnx_file.export_onnx(tiny(), path, PARTS)
    return path


def test_files_say_what_they_take(folder: Path):
    pipeline = tiny()
    assert sorted(path.stem for path in folder.glob("*.onnx")) == sorted(PARTS)
    description = read_object(folder / "export.json", "an export")
    assert description["stages"][0]["times"] == [1.0, 0.75, 0.5, 0.25, 0.0]
    for name in PARTS:
        part, file = make_part(pipeline, name), session(folder / f"{name}.onnx")
        for arrays, own in (("inputs", file.get_inputs()), ("outputs", file.get_outputs())):
            entries = {entry["name"]: entry for entry in description["parts"][name][arrays]}
            assert {each.name: each.shape for each in own} == {
                key: entry["shape"] for key, entry in entries.items()
            }
        assert [e["name"] for e in description["parts"][name]["inputs"]] == list(part.inputs)
        metadata = file.get_modelmeta().custom_metadata_map
        assert (metadata["opset"], metadata["dtype"]) == (str(onnx_file.OPSET), "float32")


@pytest.mark.parametrize("negative", [True, False])
def test_a_cascade_in_one_file_gives_the_packages_images(folder: Path, negative: bool):
    pipeline = tiny()
    given = example_inputs(make_part(pipeline, "cascade"), 4, 4)
    given["negative_mask"] &= negative
    (images,) = session(folder / "cascade.onnx").run(None, given)
    assert distance(images, sampled(pipeline, given)) < 1e-5


def test_one_step_at_a_time_is_the_loop():
    part = make_part(tiny(sampler="unipc", threshold="static"), "base_steps")
    given = example_inputs(part, 2, 4)
    file = session_of(part)
    whole = file.run(None, given)
    for step in range(4):
        given |= {"start": np.int32(step), "stop": np.int32(step + 1)}
        given = {name: np.asarray(value) for name, value in given.items()}
        after = dict(zip(part.outputs, file.run(None, given), strict=True))
        given |= {name.removeprefix("next_"): value for name, value in after.items()}
    for name, value in zip(part.outputs, whole, strict=True):
        assert distance(after[name], value) < 1e-6


def test_noise_of_one_step_is_given_alone():
    part = make_part(tiny(), "base_steps")  # ddpm
    given = example_inputs(part, 2, 4)
    file = session_of(part)
    whole, noise = file.run(None, given), given["step_noise"]
    for step in range(4):
        start, stop = np.asarray(step, np.int32), np.asarray(step + 1, np.int32)
        given |= {"start": start, "stop": stop, "step_noise": noise[step : step + 1]}
        given["x"] = file.run(["next_x"], given)[0]
    assert distance(given["x"], whole[0]) < 1e-6


def test_one_step_of_heun_with_churn_is_that_of_the_loop():
    part = make_part(tiny(sampler="heun", churn=0.5, guidance=1.0), "base_steps")
    given = example_inputs(part, 2, 4)
    whole, noise = run_part(part, given), given["step_noise"]
    for step in range(4):
        start, stop = np.asarray(step, np.int32), np.asarray(step + 1, np.int32)
        given |= {"start": start, "stop": stop, "step_noise": noise[step : step + 1]}
        given["x"] = run_part(part, given)[part.outputs.index("next_x")]
    assert distance(given["x"], whole[0]) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "dpmpp_3m", "threshold": "none"},
        pytest.param({"sampler": "heun", "churn": 2.0}, marks=pytest.mark.slow),
        pytest.param(
            {"sampler": "dpmpp_2m_sde", "guidance_kind": "apg", "guidance_norm": 3.0},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"sampler": "ddim", "eta": 0.5, "guidance_interval": (0.2, 0.7)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"sampler": "euler", "guidance_kind": "cfg_zero", "guidance_rescale": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda changes: changes["sampler"],
)
def test_samplers_and_guidance(changes: dict):
    check(tiny(**changes), "base_steps")


EFFICIENT = EfficientUNetConfig(
    (EfficientLevel(8, 1, 1), EfficientLevel(16, 1, 2, "self")),
    patch_size=2, num_heads=2, upsample_kernel=1, input_skip=True, low_res_channels=3,
)  # fmt: skip
NETWORKS = {
    "efficient_unet": EFFICIENT,
    "convolutions_that_enlarge": replace(EFFICIENT, upsample_kernel=3, low_res_channels=0),
    "draft": replace(EFFICIENT, draft=True, low_res_channels=0),
    "unet_of_classes": UNetConfig((UNetLevel(8, 1), UNetLevel(16, 1, "self")), num_classes=5),
    "transformer": TransformerConfig(width=16, depth=2, heads=2, patch_size=4, mlp_multiple=8),
}


QUICK = ("efficient_unet", "transformer")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_networks(name: str):
    check(of_network(NETWORKS[name]), "only_network")


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder",
        "II_network",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("I_network", "I_steps", "II_steps", "cascade")
        ),
    ],
)
def test_deepfloyd_if_with_t5(name: str):
    """Learned variance, dynamic thresholding, group norms of the text, its padding read."""
    check(if_stages(), name, within=1e-4)


def test_float16(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(small_weights, "LEAST_HALF", 32)
    pipeline = of_network(replace(EFFICIENT, low_res_channels=0))
    for dtype in ("float32", "float16"):
        onnx_file.export_onnx(pipeline, tmp_path / dtype, ["text_encoder", "only_network"], dtype)
    for name in ("text_encoder", "only_network"):
        part = make_part(pipeline, name)
        given = example_inputs(part, 2, 3)
        one, other = (
            session(tmp_path / dtype / f"{name}.onnx").run(None, given)[0]
            for dtype in ("float16", "float32")
        )
        assert 1e-5 < distance(one, other) < 2e-2
    sizes = [(tmp_path / d / "only_network.onnx").stat().st_size for d in ("float16", "float32")]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_large_weights_lie_in_a_file_beside(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    part = make_part(tiny(), "base_steps")  # whose weights lie in a loop
    onnx_file.export_onnx(tiny(), tmp_path, ["base_steps"])
    assert (tmp_path / "base_steps.onnx.data").stat().st_size > 1000
    given, small = example_inputs(part, 2, 3), session_of(part)
    large = session(tmp_path / "base_steps.onnx")
    for one, other in zip(large.run(None, given), small.run(None, given), strict=True):
        assert distance(one, other) < 1e-6


OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}  # or it takes bfloat16 where the CPU has it


@pytest.mark.parametrize("name", ["text_encoder", "base_steps"])
def test_openvino(name: str):
    openvino = pytest.importorskip("openvino", reason=REASON)
    part = make_part(tiny(sampler="dpmpp_2m"), name)
    given = example_inputs(part, 2, 4)
    model = onnx_file.to_onnx(part.function, part.inputs, part.outputs).SerializeToString()
    core = openvino.Core()
    found = core.compile_model(core.read_model(model), "CPU", OPENVINO)(given)
    for output, other in zip(part.outputs, run_part(part, given), strict=True):
        assert distance(found[output], other) < 1e-4


def test_script_beside_the_files_needs_neither_jax_nor_this_package(folder: Path, tmp_path: Path):
    blocked = "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("jax", "flax", "imagen_jax", "onnx")
    )
    arguments = ["a cat", "红心", "--out", str(tmp_path)]
    code = f"import runpy, sys\n{blocked}sys.argv[1:] = {arguments!r}\n"
    code += f"runpy.run_path({str(folder / 'onnx_images.py')!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True)
    from PIL import Image

    images = [np.asarray(Image.open(tmp_path / f"0000{i}.png")) for i in range(2)]
    assert [image.shape for image in images] == [(8, 8, 3)] * 2
    assert not np.array_equal(*images)


X = np.array([-8.5, -2.5, -1.0, 0.0, 0.5, 1.5, 6.0], np.float32)


def in_onnx(function) -> np.ndarray:
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    model = onnx_file.to_onnx(lambda x: (function(x),), {"x": shape}, ("y",))
    return session(model.SerializeToString()).run(None, {"x": X})[0]


def bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.int32)


@pytest.mark.parametrize("function", [jnp.signbit, jnp.round, lambda x: bits(x) >> 31])
def test_signs_and_rounding(function):
    np.testing.assert_array_equal(in_onnx(function), function(X))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.astype(jnp.int32) >> 2,
        lambda x: bits(x) >> 2,
        lambda x: bits(x) & 1,
        lambda x: jax.lax.round(x, jax.lax.RoundingMethod.AWAY_FROM_ZERO),
    ],
)
def test_what_onnx_would_compute_otherwise_is_refused(function):
    with pytest.raises(NotImplementedError):
        in_onnx(function)


def test_sizes_are_read_as_jax_writes_them():
    sizes = onnx_graph.Sizes(("a", "b"))
    a, b = jax.export.symbolic_shape("a, b")
    larger = jax.core.max_dim(a, b)
    for dim, value in ((2 * a * a - b + 1, 95), (a * a // b, 12), (a % b, 3), (larger, 7)):
        assert sizes.at(dim, (7, 4)) == value
    with pytest.raises(NotImplementedError):
        sizes.at("a.__class__", (7, 4))


def test_the_script_refuses_guidance_that_a_model_has_not():
    cascade = {"inputs": [{"name": "ids"}]}
    given = {"text": None, "parts": {"cascade": cascade}, "stages": [{"name": "base"}]}
    for options, said in ((("blue", None), "--negative_prompt"), ((None, 2.0), "--guidance")):
        with pytest.raises(SystemExit, match=said):
            onnx_images.inputs(given, None, ["red"], options[0], 0, None, options[1])


def test_what_cannot_be_exported_is_said_before_work(tmp_path: Path):
    def refused(expected: str, pipeline=None, **given):
        with pytest.raises(ValueError, match=expected):
            onnx_file.export_onnx(pipeline or tiny(), tmp_path / "new", **given)
        assert not (tmp_path / "new").exists()

    refused("opset 12 is too low; an export needs 18", opset=12)
    refused("opset 99 is unknown to onnx", opset=99)
    refused("no part 'base' in the model, only text_encoder, base_network", parts=["base"])
    refused("dtype 'int4' cannot be exported", dtype="int4")
    refused("needs a second network", tiny(guidance_kind="auto"))
    dynamic = {"kernel": {"int8_dynamic": np.ones((2, 2), np.int8), "scales": np.ones((1, 2))}}
    stored = tiny()
    stored = Pipeline(stored.cascade, {**stored.params, "sr": {"conv": dynamic}}, name="tiny")
    refused("^sr is quantized to int8_dynamic, which has no ONNX form", stored)
    classes = of_network(NETWORKS["unet_of_classes"])
    refused(
        "has no text encoder to export; its parts are only_network", classes, parts=["text_encoder"]
    )


def test_a_flow_map_in_few_steps():
    """A distilled network, which is told where a step leads to."""
    network = replace(EFFICIENT, low_res_channels=0, target_time=True)
    check(of_network(network), "cascade", steps=2)


def test_classes_need_no_text():
    check(of_network(NETWORKS["unet_of_classes"]), "cascade")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_shipped_model(tmp_path: Path, engine: str):
    from imagen_jax import load_model

    pipeline = load_model("icons")
    onnx_file.export_onnx(pipeline, tmp_path)
    for name in part_names(pipeline.cascade):
        part = make_part(pipeline, name)
        given = example_inputs(part, 2, 4)
        if engine == "onnxruntime":
            found = session(tmp_path / f"{name}.onnx").run(None, given)
        else:
            openvino = pytest.importorskip("openvino", reason=REASON)
            model = openvino.Core().compile_model(tmp_path / f"{name}.onnx", "CPU", OPENVINO)
            found = [model(given)[output] for output in part.outputs]
        wanted = run_part(part, given)
        if name == "cascade":
            assert distance(found[0], sampled(pipeline, given)) < 1e-4
        for one, other in zip(found, wanted, strict=True):
            assert distance(one, other) < 1e-4


@pytest.mark.slow
def test_the_shape_of_t5_small():
    pipeline = tiny()
    config = replace(T5_V1_1["small"], num_layers=8)
    encoder = replace(pipeline.cascade.encoder, config=config, max_length=64)
    stage = replace(pipeline.cascade.stages[0], text_width=512)
    from imagen_jax.cascade.cascade import Cascade
    from imagen_jax.models import t5

    cascade = Cascade((stage,), pipeline.cascade.sampling[:1], encoder)
    params = {"text_encoder": t5.init(config, jax.random.key(0))}
    check(Pipeline(cascade, params), "text_encoder", within=1e-5)
