"""Kernels in int8 and int4: the numbers are qwix's, and layers compute with what they stand for."""

import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import BASE, CASCADE, ENCODER, WIDTH, random_conditions, random_params

from imagen_jax import models
from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.cascade.stage import apply_network, init_params
from imagen_jax.compress import quantization
from imagen_jax.compress.kernels import takes
from imagen_jax.compress.quantization import quantize, quantize_kernel, quantized_shapes
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.models.lora import LoraConfig, init_lora, merge_lora
from imagen_jax.models.quantized import dequantize, dequantized, pack, unpack
from imagen_jax.pipeline.conversion import to_text_encoder
from imagen_jax.pipeline.encoder_files import write_encoder
from imagen_jax.pipeline.loading import load_encoder, load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.quantized import SCALES, SCHEMES, schemes_in
from imagen_jax.storage.safetensors import save_params
from imagen_jax.storage.trees import flatten
from imagen_jax.text.encoder import encode_tokens, tokenize
from tests.diffusion.exact_denoisers import slowly_but

qwix = pytest.importorskip("qwix", reason="qwix quantizes")

SHAPES = {
    "dense/kernel": (128, 24),
    "conv/kernel": (3, 3, 10, 12),
    "layers/attention/query/kernel": (3, 64, 16),
}


def relative_error(found, wanted) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def same(one, other) -> bool:
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(
        one[path].dtype == other[path].dtype and np.array_equal(one[path], other[path])
        for path in one
    )


@pytest.fixture
def kernels(rng) -> dict:
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def test_every_int4_is_packed_and_unpacked():
    numbers = np.stack(np.meshgrid(np.arange(-8, 8), np.arange(-8, 8))).reshape(2, -1)
    packed = pack(jnp.asarray(numbers, jnp.int8))
    assert packed.shape == (1, 256)
    assert np.array_equal(unpack(packed), numbers)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_numbers_are_qwix_s(kernels, scheme):
    """A stacked kernel is quantized layer by layer; int4 has a scale for each 64 inputs."""
    bits = jnp.int4 if scheme == "int4" else jnp.int8
    for path, kernel in kernels.items():
        stacked, inputs = path.startswith("layers"), kernel.shape[-2]
        layer = partial(lambda kernel, number: kernel if number is None else kernel[number], kernel)
        found = dequantize(quantize_kernel(path, kernel.shape, scheme, layer))
        axes = (0, kernel.ndim - 1) if stacked else (kernel.ndim - 1,)
        tiles = {kernel.ndim - 2: 64 if inputs % 64 == 0 else inputs} if scheme == "int4" else {}
        theirs = qwix.quantize(jnp.asarray(kernel), bits, channelwise_axes=axes, tiled_axes=tiles)
        assert np.array_equal(found, qwix.dequantize(theirs))
        assert relative_error(found, kernel) < (0.2 if scheme == "int4" else 0.012)


def test_scales_are_those_of_the_shapes_foretold(kernels):
    for scheme in SCHEMES:
        made = quantize({"dense": {"kernel": kernels["dense/kernel"]}}, scheme)
        told = quantized_shapes({"dense": {"kernel": kernels["dense/kernel"]}}, scheme)
        shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(told).items()}
        assert shapes == {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(made).items()}


NETWORKS = {
    "efficient_unet": replace(BASE.network, input_skip=True),
    "unet": models.UNetConfig(
        levels=(models.UNetLevel(8, 1), models.UNetLevel(8, 1, attention="self")),
        head_channels=8,
        pooling_heads=1,
        embedding_width=8,
        mid_attention=None,
    ),
    "transformer": models.TransformerConfig(
        width=16, depth=2, heads=2, patch_size=2, bottleneck=None, class_tokens=0, position_grid=2
    ),
}


def network_call(config, rng):
    """(the network's random parameters, a function of them)."""
    stage = replace(BASE, network=config)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_params(stage, jax.random.key(0))),
    )
    x, t = jnp.asarray(rng.normal(size=(3, 4, 4, 3)), jnp.float32), jnp.array([0.1, 0.5, 0.9])
    text = jax.tree.map(jnp.asarray, random_conditions(3).text)
    return params, jax.jit(lambda params: apply_network(stage, params, x, t, text=text))


@pytest.mark.parametrize("kind", slowly_but(NETWORKS, "efficient_unet"))
def test_a_network_computes_with_what_its_numbers_stand_for(kind, rng):
    params, call = network_call(NETWORKS[kind], rng)
    for scheme in ("int8", "int4"):
        small = quantize(params, scheme)
        kernels = [path for path, leaf in flatten(params).items() if takes(path, leaf.shape)]
        assert len(kernels) >= 4
        assert {f"{path}/{SCALES}" for path in kernels} <= flatten(small).keys()
        assert relative_error(call(small), call(dequantized(small))) < 1e-5
    dynamic = quantize(params, "int8_dynamic")
    assert 1e-6 < relative_error(call(dynamic), call(dequantized(quantize(params, "int8")))) < 0.1


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_dynamic_products_are_those_of_the_rounded_activations(kind, rng):
    """As floats of the same numbers: what stands before and after the product in int8 is scales."""
    from flax import linen as nn

    from imagen_jax.models.layers import Conv3x3
    from imagen_jax.models.quantized import quantized_layers

    module = nn.Dense(12) if kind == "dense" else Conv3x3(12, jnp.dtype("float32"))
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 10)), jnp.float32)
    params = module.init(jax.random.key(int(rng.integers(100))), x)["params"]
    axes = (0, 1, 2) if kind == "dense" else (0,)
    rounded = qwix.dequantize(qwix.quantize(x, jnp.int8, channelwise_axes=axes))
    small = quantize({"layer": params}, "int8_dynamic")["layer"]
    with quantized_layers(small):
        found = module.apply({"params": small}, x)
    wanted = module.apply({"params": dequantized(small)}, rounded)
    assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_encoder_computes_with_what_its_numbers_stand_for(scheme):
    params = random_params(CASCADE)[TEXT_ENCODER]
    ids, mask = map(jnp.asarray, tokenize(ENCODER, ["a cat", "红苹果"]))
    small = quantize(params, scheme)
    found = encode_tokens(ENCODER.config, small, ids, mask).values
    wanted = encode_tokens(ENCODER.config, dequantized(small), ids, mask).values
    assert relative_error(found, wanted) < (0.05 if scheme == "int8_dynamic" else 1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    Pipeline(CASCADE, random_params(CASCADE), name="tiny").save_pretrained(path, dtype="float32")
    return path


def parts(model) -> dict:
    return {name: model.params[name] for name in model.params}


@pytest.mark.parametrize("scheme", slowly_but(SCHEMES, "int4"))
def test_a_model_is_quantized_on_load_and_on_disk_alike(folder, tmp_path, scheme):
    """Read from floats, a layer at a time, from the tree, and from files: always the same."""
    loaded = load_model(folder, quantize=scheme)
    told = {name: loaded.params.shapes(name) for name in loaded.params}
    of_networks = "int8" if scheme == "int4" else scheme
    for name, params in random_params(CASCADE).items():
        of_part = scheme if name == TEXT_ENCODER else of_networks
        assert same(loaded.params[name], quantize(params, of_part))
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), told[name])
        assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded.params[name])
    load_model(folder).save_pretrained(tmp_path / "small", dtype="float32", quantize=scheme)
    stored = load_model(tmp_path / "small")
    assert same(parts(stored), parts(loaded))
    stored.save_pretrained(tmp_path / "again", dtype="float32")
    assert same(parts(load_model(tmp_path / "again")), parts(loaded))
    assert loaded.fingerprint != load_model(folder).fingerprint != stored.fingerprint


def test_scales_stay_float32_whatever_the_rest_is_saved_in(folder, tmp_path):
    load_model(folder).save_pretrained(tmp_path / "small", quantize="int8")
    small = load_model(tmp_path / "small", dtype="bfloat16")
    exact = quantize(random_params(CASCADE)["base"], "int8")
    for path, leaf in flatten(small.params["base"]).items():
        kernel = path.endswith((f"/{SCALES}", "/int8"))
        assert leaf.dtype == (flatten(exact)[path].dtype if kernel else jnp.bfloat16)
        assert not kernel or np.array_equal(leaf, flatten(exact)[path])


def test_a_stored_model_is_read_and_run_without_qwix(folder, tmp_path, monkeypatch):
    load_model(folder).save_pretrained(tmp_path / "small", quantize="int8")
    monkeypatch.setitem(sys.modules, "qwix", None)
    assert schemes_in(load_model(tmp_path / "small").params["base"]) == {"int8"}
    with pytest.raises(ImportError, match=r"pip install 'imagen_jax\[quantize\]'"):
        load_model(folder, quantize="int8")


def test_int8_becomes_dynamic_and_nothing_else(folder, tmp_path):
    load_model(folder).save_pretrained(tmp_path / "small", dtype="float32", quantize="int8")
    dynamic = load_model(tmp_path / "small", quantize="int8_dynamic").params["base"]
    assert same(dynamic, quantize(random_params(CASCADE)["base"], "int8_dynamic"))
    with pytest.raises(ValueError, match="are int8 already, not int4"):
        load_model(tmp_path / "small", quantize="int4").params[TEXT_ENCODER]


def test_an_encoder_by_itself_is_quantized_while_it_is_read(tmp_path, monkeypatch):
    params, config = random_params(CASCADE)[TEXT_ENCODER], ENCODER.config
    stacked = replace(config, num_layers=2)
    params["layers"] = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf + 1]), params["layers"])
    write_encoder(tmp_path, stacked, params)
    sizes, layer = [], quantization._quantize_layer
    spy = lambda kernel, scheme: sizes.append(kernel.size) or layer(kernel, scheme)  # noqa: E731
    monkeypatch.setattr(quantization, "_quantize_layer", spy)
    found = load_encoder(tmp_path, quantize="int4")[1]
    assert sizes == [WIDTH * 8] * 14  # seven kernels of each of two layers
    assert same(found, quantize(params, "int4"))
    to_text_encoder(str(tmp_path), tmp_path / "small", "float32", quantize="int4")
    assert same(load_encoder(tmp_path / "small")[1], found)
    with pytest.raises(ValueError, match="are int4 already, not int8"):
        to_text_encoder(str(tmp_path / "small"), tmp_path / "other", "float32", quantize="int8")


def test_quantized_parameters_lie_on_a_mesh_as_floats_do(folder):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spread, whole = (load_model(folder, mesh=each, quantize="int8") for each in (mesh, None))
    kernel = spread.params["base"]["up0_block0"]["conv1"]["kernel"]
    floats = load_model(folder, mesh=mesh).params["base"]["up0_block0"]["conv1"]["kernel"]
    assert kernel["int8"].sharding == floats.sharding
    text, x = jax.tree.map(jnp.asarray, random_conditions(2).text), jnp.ones((2, 4, 4, 3))
    call = jax.jit(lambda params: apply_network(BASE, params, x, jnp.array([0.3, 0.6]), text=text))
    assert relative_error(call(spread.params["base"]), call(whole.params["base"])) < 1e-5


def test_images_of_a_stored_model(folder, tmp_path):
    load_model(folder).save_pretrained(tmp_path / "small", dtype="float32", quantize="int8")
    pair = load_model(folder, quantize="int8"), load_model(tmp_path / "small")
    options = {"num_images": 2, "seed": 3, "progress": False}
    assert np.array_equal(*(np.asarray(m.generate_images("a cat", **options)) for m in pair))


def test_what_cannot_be_quantized_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'int8'"):
        load_model("no such model", quantize="int88")
    with pytest.raises(ValueError, match="wi/kernel has 7 inputs, an odd number"):
        quantize({"wi": {"kernel": np.ones((7, 4), np.float32)}}, "int4")
    with pytest.raises(ValueError, match="no kernel to quantize among conv_out/kernel"):
        quantize({"conv_out": {"kernel": np.ones((3, 3, 4, 4), np.float32)}}, "int8")
    with pytest.raises(TypeError, match="it is called quantize here"):
        load_model(folder, load_in_8bit=True)
    small = quantize(random_params(CASCADE)["base"], "int8")
    adapter = init_lora(random_params(CASCADE)["base"], LoraConfig(2), jax.random.key(0))
    with pytest.raises(ValueError, match="An adapter needs float weights; these are int8"):
        merge_lora(small, adapter)
    small["down0_block0"]["conv1"]["kernel"][SCALES] = np.ones((1, 1, 1, 3), np.float32)
    Pipeline(CASCADE, random_params(CASCADE)).save_pretrained(tmp_path)
    save_params(tmp_path, "base", small)
    with pytest.raises(ValueError, match=r"scales is of shape .*, which does not fit a kernel"):
        load_model(tmp_path).params["base"]
