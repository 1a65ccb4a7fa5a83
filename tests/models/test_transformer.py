"""The transformer: the whole against PyTorch written from the paper's equations, and properties
that hold for any parameters.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import models
from imagen_jax.devices.sharding import (
    MeshConfig,
    batch_sharding,
    gather_shards,
    make_mesh,
    state_shardings,
)
from imagen_jax.models import TransformerConfig
from imagen_jax.models.positions import grid_positions
from imagen_jax.models.transformer import size
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.text.encoder import null_text
from imagen_jax.training import flops
from imagen_jax.typing import TextEmbeddings

ROWS, COLUMNS, PATCH, BATCH, LENGTH, TEXT, CLASSES = 2, 3, 4, 2, 4, 24, 3
# In a loop, which compiles in half the time.
TINY = TransformerConfig(
    width=32, depth=3, heads=2, mlp_multiple=8, patch_size=PATCH, bottleneck=12, scan_layers=True
)
CONFIGS = {
    "text": TINY,
    "text as tokens": replace(TINY, conditioning="tokens", condition_tokens=2),
    "label": replace(TINY, num_classes=CLASSES, class_tokens=5, class_start=1, low_res_channels=3),
    "label as tokens": replace(
        TINY,
        num_classes=CLASSES,
        class_tokens=5,
        class_start=1,
        low_res_channels=3,
        conditioning="tokens",
        bottleneck=None,
    ),
}
KINDS = sorted(CONFIGS)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
apply = jax.jit(models.apply, static_argnums=0, compiler_options=QUICK)


def random_params(config, seed: int = 0):
    """Parameters that are nowhere zero: in a fresh network most of it has no influence."""
    rng = np.random.default_rng(seed)
    text_width = None if config.num_classes else TEXT
    shapes = jax.eval_shape(
        lambda key: models.init(config, key, resolution=8, text_width=text_width),
        jax.random.key(0),
    )
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, x.shape[-2] ** -0.5 if x.ndim > 1 else 0.5, x.shape),
                              jnp.float32),
        shapes,
    )  # fmt: skip


def inputs_of(config, rng, rows=ROWS, columns=COLUMNS) -> dict:
    def images():
        shape = (BATCH, rows * PATCH, columns * PATCH, 3)
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    values = jnp.asarray(rng.normal(size=(BATCH, LENGTH, TEXT)), jnp.float32)
    inputs = {"x": images(), "time": jnp.array([700.0, 20.0])}
    if config.num_classes:
        inputs["label"] = jnp.array([0, CLASSES])
    else:
        inputs["text"] = TextEmbeddings(values, jnp.arange(LENGTH) < jnp.array([[2], [LENGTH]]))
    if config.low_res_channels:
        inputs |= {"low_res": images(), "aug_level": jnp.array([100.0, 300.0])}
    return inputs


def call(config, params, inputs):
    conditions = {name: value for name, value in inputs.items() if name not in ("x", "time")}
    return apply(config, params, inputs["x"], inputs["time"], **conditions)


def error(out, expected) -> float:
    """Relative L2."""
    out, expected = np.asarray(out, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(out - expected) / np.linalg.norm(expected)


def in_torch(config, params, inputs):
    """The output of the reference; skips the test where there is no PyTorch."""
    reference = pytest.importorskip("tests.models.transformer_in_torch").Reference
    return reference(config, params)(inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_equations_in_pytorch(kind, rng):
    """Labels and text, adaLN and tokens, class tokens that join late, a low-resolution input."""
    config = CONFIGS[kind]
    params, inputs = random_params(config), inputs_of(config, rng)
    out = call(config, params, inputs)
    assert error(out, in_torch(config, params, inputs)) < 1e-5


# ------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("name", "patch_size", "millions"),
    [("B", 16, 131), ("B", 32, 133), ("L", 16, 459), ("H", 16, 953), ("G", 16, 2007)],
)
def test_published_numbers_of_parameters(name, patch_size, millions):
    """arXiv 2511.13720, tables 5, 7 and 8 (there "2B")."""
    config = size(name, patch_size=patch_size, num_classes=1000, scan_layers=True)
    shapes = jax.eval_shape(
        lambda key: models.init(config, key, resolution=16 * patch_size), jax.random.key(0)
    )
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_counts(kind, rng):
    config = CONFIGS[kind]
    params, inputs = random_params(config), inputs_of(config, rng)
    out = call(config, params, inputs)
    changes = {
        "x": lambda x: x + 0.1,
        "time": lambda time: time + 50,
        "text": lambda text: text._replace(values=text.values[..., ::-1]),
        "label": lambda label: (label + 1) % CLASSES,
        "low_res": lambda image: -image,
        "aug_level": lambda level: level + 50,
    }
    for name, value in inputs.items():
        other = call(config, params, {**inputs, name: changes[name](value)})
        assert (np.abs(out - other).max(axis=(1, 2, 3)) > 1e-3).all(), name


def test_another_size_and_aspect_ratio(rng):
    """The same parameters make any image; a patch has the same position whatever the size."""
    params = random_params(TINY)
    inputs = inputs_of(TINY, rng, 5, 1)
    out = call(TINY, params, inputs)
    assert out.shape == (BATCH, 5 * PATCH, PATCH, 3)
    assert error(out, in_torch(TINY, params, inputs)) < 1e-5


def test_a_grid_keeps_positions_within_those_of_training():
    """At twice the side patches lie half as far apart; at the same area nothing changes."""
    np.testing.assert_allclose(grid_positions(4, 6), grid_positions(4, 6, None))
    np.testing.assert_allclose(grid_positions(8, 8, 4), grid_positions(8, 8) / 2)
    np.testing.assert_allclose(grid_positions(2, 8, 4), grid_positions(2, 8))


def test_padding_does_not_matter_wherever_it_is(rng):
    params, inputs = random_params(TINY), inputs_of(TINY, rng)
    values, mask = inputs["text"]
    out = call(TINY, params, inputs)
    padded = TextEmbeddings(jnp.where(mask[..., None], values, 1e3), mask)
    np.testing.assert_array_equal(out, call(TINY, params, {**inputs, "text": padded}))
    turned = TextEmbeddings(padded.values[:, ::-1], mask[:, ::-1])
    assert error(call(TINY, params, {**inputs, "text": turned}), out) < 1e-5
    null = call(TINY, params, {**inputs, "text": null_text(BATCH, LENGTH, TEXT)})
    assert np.isfinite(null).all()
    assert error(null, out) > 1e-3


def test_examples_of_a_batch_do_not_meet(rng):
    params, inputs = random_params(TINY), inputs_of(TINY, rng)
    turned = jax.tree.map(lambda value: value.at[1].set(value[0]), inputs)
    out, other = call(TINY, params, inputs), call(TINY, params, turned)
    np.testing.assert_allclose(out[0], other[0], atol=1e-5)
    assert np.abs(out[1] - other[1]).max() > 1e-2


@pytest.mark.parametrize("kind", ["text", "text as tokens"])
def test_a_fresh_network_gives_zeros_and_its_layers_do_nothing(kind, rng):
    config = CONFIGS[kind]
    inputs = inputs_of(config, rng)
    params = models.init(config, jax.random.key(0, impl="rbg"), resolution=8, text_width=TEXT)
    np.testing.assert_array_equal(call(config, params, inputs), 0)
    params["patch_out"]["kernel"] = rng.normal(size=params["patch_out"]["kernel"].shape)
    out = call(config, params, inputs)
    params["layers"] = jax.tree.map(
        lambda x: x if x.ndim < 3 or not x.any() else x + 1.0, params["layers"]
    )
    assert np.abs(out).max() > 1e-3
    np.testing.assert_array_equal(out, call(config, params, inputs))


def gradient(config, params, inputs, mesh=None):
    def loss(params, inputs):
        gather = None if mesh is None else functools.partial(gather_shards, mesh=mesh)
        conditions = {name: value for name, value in inputs.items() if name not in ("x", "time")}
        out = models.apply(
            config,
            models.TrainingParams(params, gather),
            inputs["x"],
            inputs["time"],
            **conditions,
        )
        return jnp.square(out).mean()

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params, inputs)


@pytest.mark.slow
def test_loops_and_rematerialization_change_neither_value_nor_gradient(rng):
    config = replace(TINY, depth=2)
    params, inputs = random_params(config), inputs_of(config, rng)
    value, grads = gradient(config, params, inputs)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-6
    for scan, remat in ((False, True), (True, "products")):
        other = replace(config, scan_layers=scan, remat=remat)
        value_again, grads_again = gradient(other, params, inputs)
        np.testing.assert_allclose(value, value_again, rtol=1e-5)
        for path, leaf in flatten(grads).items():
            assert error(flatten(grads_again)[path], leaf) < 1e-4, path


def test_bfloat16_is_near_float32_and_kernels_can_be_cast_ahead(rng):
    config = replace(TINY, dtype="bfloat16")
    params, inputs = random_params(config), inputs_of(config, rng)
    ahead = models.compute_params(config, params)
    assert ahead["layers"]["mlp"]["gate"]["kernel"].dtype == jnp.bfloat16
    assert ahead["patch_out"]["kernel"].dtype == jnp.float32
    out = call(config, params, inputs)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, call(config, ahead, inputs))
    assert 1e-4 < error(out, call(TINY, params, inputs)) < 0.05


@pytest.mark.slow
def test_dropout_in_the_middle_half_of_the_layers(rng):
    """With one key an example, whatever the batch it is in."""
    config = replace(TINY, depth=4, dropout=0.3)
    params, inputs = random_params(config), inputs_of(config, rng)
    keys = jax.random.split(jax.random.key(1), BATCH)
    quiet = call(config, params, inputs)

    def dropped(params, keys, inputs):
        return call(config, models.TrainingParams(params, dropout=keys), inputs)

    out = dropped(params, keys, inputs)
    assert error(out, quiet) > 1e-2
    turned = jax.tree.map(lambda value: value[::-1], inputs)
    np.testing.assert_allclose(dropped(params, keys[::-1], turned)[::-1], out, atol=1e-4)
    # Layers 1 and 2 of 4 drop: without their branches nothing is left to chance.
    layers = flatten(params["layers"])
    for name in ("attention/out", "mlp/out"):
        for part in ("kernel", "bias"):
            layers[f"{name}/{part}"] = layers[f"{name}/{part}"].at[1:3].set(0.0)
    silent = {**params, "layers": unflatten(layers)}
    np.testing.assert_array_equal(dropped(silent, keys, inputs), call(config, silent, inputs))


@pytest.mark.slow
def test_devices_share_the_work(rng):
    """The value and gradient of one device, with each layer's parameters gathered in the loop."""
    config = replace(TINY, depth=2)
    params, inputs = random_params(config), inputs_of(config, rng)
    inputs = jax.tree.map(lambda x: jnp.concatenate([x] * 4), inputs)
    value, grads = gradient(config, params, inputs)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    shardings = state_shardings(params, mesh)
    specs = {path: tuple(leaf.spec) for path, leaf in flatten(shardings["layers"]).items()}
    for name in ("attention/query", "attention/value", "mlp/gate", "mlp/up", "modulation"):
        assert specs[f"{name}/kernel"] == (None, "fsdp", "tensor"), name
    for name in ("attention/out", "mlp/out"):
        assert specs[f"{name}/kernel"] == (None, "tensor", "fsdp"), name
    assert all(not spec for path, spec in specs.items() if not path.endswith("kernel"))
    placed = jax.device_put(params, shardings)
    rows = jax.device_put(inputs, batch_sharding(mesh))
    value_again, grads_again = gradient(config, placed, rows, mesh)
    np.testing.assert_allclose(value, value_again, rtol=1e-5)
    for path, leaf in flatten(grads).items():
        assert error(flatten(grads_again)[path], leaf) < 1e-4, path


def test_flops_are_those_of_its_matrices(rng):
    """2 x tokens x each matrix, and 4 x tokens^2 x width for attention; a loop counts as often."""
    config = replace(TINY, class_tokens=5, class_start=1, num_classes=CLASSES)
    width, patch = config.width, PATCH**2 * 3
    params, inputs = random_params(config), inputs_of(config, rng)
    inputs = jax.tree.map(lambda x: x[:1], inputs)

    def forward(params):
        return models.apply(config, params, inputs["x"], inputs["time"], label=inputs["label"])

    counted = flops.count(forward, params)
    patches = ROWS * COLUMNS
    tokens = [patches + config.class_tokens * (i >= 1) for i in range(config.depth)]
    matrices = 4 * width**2 + 3 * width * config.mlp_width
    dense = sum(tokens) * matrices + config.depth * 6 * width**2 + 2 * width**2
    dense += (256 + width) * width  # time
    dense += patches * (patch * config.bottleneck + config.bottleneck * width + width * patch)
    assert counted["dense"] == 2 * dense
    assert counted["attention"] == 4 * width * sum(n**2 for n in tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 36}, r"network\.width 36 must be a multiple of 4 x 2 \(heads\)"),
        ({"num_classes": 3}, r"network\.class_start 4 must be below network\.depth 3"),
        ({"conditioning": "film"}, r"network\.conditioning is 'film'; it can be 'adaln', 'tokens'"),
        ({"dropout": 1.0}, r"network\.dropout is 1\.0"),
        ({"depth": 0}, r"TransformerConfig\.depth is 0; it must be a whole number from 1"),
        ({"remat": "all"}, r"network\.remat is 'all'"),
        (
            {"conditioning": "tokens", "class_tokens": 0, "num_classes": 3},
            "conditioning 'tokens' has no other way for a label",
        ),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **fields)
    with pytest.raises(ValueError, match="size is 'XXL'; it can be 'S', 'B'"):
        size("XXL")
