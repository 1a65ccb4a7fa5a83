"""Pruned models: how many weights are zero and which, that they stay so, and blocks left out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_cascade import BASE, CASCADE, SR, random_conditions, random_params, tiny_pipeline

from imagen_jax.cascade.stage import apply_network, init_params
from imagen_jax.commands import prune as command
from imagen_jax.compress.blocks import bridged, check_blocks, drop_blocks, pairs, without
from imagen_jax.compress.kernels import takes
from imagen_jax.compress.pruning import prune, sparsity
from imagen_jax.compress.quantization import SCHEMES
from imagen_jax.models import EfficientLevel, UNetConfig, UNetLevel
from imagen_jax.pipeline.loading import load_model
from imagen_jax.storage.trees import flatten
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.state import init_state
from imagen_jax.training.update import apply_gradient
from tests.diffusion.exact_denoisers import slowly_but

LEVELS = (
    EfficientLevel(8, num_res_blocks=3, stride=1),
    EfficientLevel(16, num_res_blocks=2, stride=2, attention="self"),
)
DEEP = replace(BASE, network=replace(BASE.network, levels=LEVELS, input_skip=True))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.fixture
def tree(rng) -> dict:
    sizes = {"one": 1.0, "two": 3.0}
    kernels = {name: rng.normal(0, std, (40, 30)) for name, std in sizes.items()}
    layers = rng.normal(0, [[[1.0]], [[5.0]]], (2, 20, 10))
    named = {name: {"kernel": kernel, "bias": np.zeros(30)} for name, kernel in kernels.items()}
    return {"conv_out": {"kernel": np.ones((3, 3, 4, 2))}, "layers": {"kernel": layers}, **named}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_least_weights_of_all_are_zero(tree, share):
    before, after = flatten(tree), flatten(prune(tree, share))
    kernels = [path for path, leaf in before.items() if takes(path, leaf.shape)]
    assert kernels == ["layers/kernel", "one/kernel", "two/kernel"]
    zero = np.concatenate([(after[path] == 0).ravel() for path in kernels])
    size = np.concatenate([np.abs(before[path]).ravel() for path in kernels])
    assert zero.sum() == round(share * zero.size)
    assert share == 0 or size[zero].max() <= size[~zero].min()
    for path, leaf in before.items():
        assert np.array_equal(after[path], np.where(after[path] == 0, 0, leaf))
        assert path in kernels or np.array_equal(after[path], leaf)
    assert sparsity(prune(tree, share)) == pytest.approx(share, abs=1e-3)


def test_by_layer_each_has_its_share_of_zeros(tree):
    after = prune(tree, 0.4, "layer")
    for part in (*after["layers"]["kernel"], after["one"]["kernel"], after["two"]["kernel"]):
        assert (part == 0).mean() == pytest.approx(0.4, abs=0.003)


@pytest.mark.parametrize("kind", ["adam", "adamw", "lion", "muon", "adafactor", "sgd"])
def test_zeros_stay_zero_and_the_rest_is_trained(kind, rng):
    """Through momentum, weight decay and both kinds of averages; biases that are zero move."""
    decay = 0.1 if kind != "adam" and kind != "sgd" else 0.0
    config = OptimizerConfig(kind, 1e-2, 0, weight_decay=decay, clip_norm=1.0, keep_zeros=True)
    kernel = rng.normal(size=(12, 16)).astype(np.float32)
    start = prune({"layer": {"kernel": kernel, "bias": np.zeros(16, np.float32)}}, 0.5)
    params = {"network": jax.tree.map(jnp.asarray, start)}
    state, held = init_state(params, make_optimizer(config), widths=(0.05,)), kernel_of(start) == 0
    for _ in range(3):  # odd: lion's steps to and fro would end at zero
        gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
        gradient = optax.tree.cast(gradient, jnp.float32)
        state, _ = apply_gradient(config, state, gradient, 0.9)
    for tree in (state.params, state.ema, state.power_ema["0.05"]):
        found = kernel_of(tree["network"])
        assert (found[held] == 0).all()
        assert (found[~held] != start["layer"]["kernel"][~held]).all()
    assert (state.params["network"]["layer"]["bias"] != 0).all()


def kernel_of(tree) -> np.ndarray:
    return np.asarray(tree["layer"]["kernel"])


def deep_params(rng) -> dict:
    shapes = jax.eval_shape(lambda: init_params(DEEP, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def output_of(stage):
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.array([0.2, 0.8])
    text = jax.tree.map(jnp.asarray, random_conditions(2).text)
    return jax.jit(lambda params: apply_network(stage, params, x, t, text=text))


@pytest.mark.parametrize("pair", slowly_but(pairs(DEEP.network), pairs(DEEP.network)[0]))
def test_a_bridged_pair_of_blocks_is_as_good_as_gone(pair, rng):
    params = deep_params(rng)
    config, small = without(DEEP.network, params, pair)
    stage = replace(DEEP, network=config)
    wanted = jax.eval_shape(lambda: init_params(stage, jax.random.key(0)))
    assert jax.tree.map(np.shape, small) == jax.tree.map(np.shape, wanted)
    found, bridge = output_of(stage)(small), output_of(DEEP)(bridged(DEEP.network, params, pair))
    np.testing.assert_allclose(found, bridge, rtol=1e-4, atol=1e-4)


def test_blocks_that_do_nothing_go_first(rng):
    """Two pairs that are bridges already; what is left gives the whole network's output."""
    params = deep_params(rng)
    for pair in ((0, 2), (0, 0)):
        params = bridged(DEEP.network, params, pair)
    config, small, dropped = drop_blocks(DEEP.network, params, 2, output_of(DEEP))
    assert dropped.keys() == {"down0_block2+up0_block0", "down0_block0+up0_block2"}
    assert [level.num_res_blocks for level in config.levels] == [1, 2]
    found = output_of(replace(DEEP, network=config))(small)
    np.testing.assert_allclose(found, output_of(DEEP)(params), rtol=1e-4, atol=1e-4)


def test_the_command_writes_a_model(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "tiny", dtype="float32")
    command.main(["--model", f"{tmp_path}/tiny", "--out", f"{tmp_path}/half", "--sparsity", "0.5"])
    assert "base: 50.0% of the kernels' weights are zero" in capsys.readouterr().out
    half = load_model(tmp_path / "half")
    assert sparsity(half.params["base"]) == pytest.approx(0.5, abs=1e-3)
    assert sparsity(half.params["sr"]) == 0


def test_what_cannot_be_pruned_is_refused(tmp_path):
    tree = random_params(CASCADE)["base"]
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), not 50"):
        prune(tree, 50.0)
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        prune(tree, 0.5, "layers")
    with pytest.raises(ValueError, match="no kernel to prune among norm/scale"):
        prune({"norm": {"scale": np.ones(3)}}, 0.5)
    quantized = {"conv1": {"kernel": {SCHEMES[0]: np.ones((2, 2), np.int8), "scales": 1.0}}}
    with pytest.raises(ValueError, match="Pruning needs float weights; these are int8"):
        prune(quantized, 0.5)
    other = UNetConfig(levels=(UNetLevel(8, 1),))
    with pytest.raises(ValueError, match="of an efficient_unet, not of a UNetConfig"):
        check_blocks(other, 1)
    with pytest.raises(ValueError, match="blocks must be from 1 to 0, not 1"):
        check_blocks(SR.network, 1)
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    given = ["--model", f"{tmp_path}/tiny", "--out", f"{tmp_path}/out"]
    for options in (
        [],
        ["--sparsity", "0.5", "--blocks", "1"],
        ["--sparsity", "2"],
        ["--blocks", "1", "--scope", "layer"],
        ["--sparsity", "0.5", "--prompts", "a"],
    ):
        with pytest.raises(SystemExit):
            command.main([*given, *options])
        assert not (tmp_path / "out").exists()
