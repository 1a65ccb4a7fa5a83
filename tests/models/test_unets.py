"""The U-Nets and their blocks: properties that hold for any parameters, on microscopic sizes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagen_jax import models
from imagen_jax.models.efficient_unet import EfficientLevel, EfficientUNetConfig
from imagen_jax.models.group_norm import GroupNorm
from imagen_jax.models.image_attention import Attention
from imagen_jax.models.layers import (
    Conv3x3,
    average_pool,
    depth_to_space,
    nearest_upsample,
    space_to_depth,
)
from imagen_jax.models.unet import UNetConfig, UNetLevel
from imagen_jax.text.encoder import null_text
from imagen_jax.typing import TextEmbeddings

SIDE, BATCH, LENGTH, WIDTH, CLASSES = 8, 2, 4, 8, 3
# Every input that a network can have, and each kind of attention, in two levels of 8x8 and 4x4.
CONFIGS = {
    "unet": UNetConfig(
        (UNetLevel(8, 1, "cross"), UNetLevel(16, 1, "self")),
        head_channels=8,
        embedding_width=16,
        pooling_heads=2,
        num_classes=CLASSES,
        low_res_channels=3,
    ),
    "efficient_unet": EfficientUNetConfig(
        (
            EfficientLevel(8, 1, stride=1, attention="cross"),
            EfficientLevel(16, 1, stride=2, attention="self"),
        ),
        num_heads=2,
        embedding_width=16,
        num_classes=CLASSES,
        low_res_channels=3,
    ),
}
KINDS = sorted(CONFIGS)
# One level, and text alone, where a test compiles more than one program.
SMALL = {
    kind: replace(config, levels=config.levels[-1:], num_classes=None, low_res_channels=0)
    for kind, config in CONFIGS.items()
}
# Compiled as a whole, once for each configuration, and in half the usual time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
apply = jax.jit(models.apply, static_argnums=0, compiler_options=QUICK)


def random_params(config, seed: int = 0, **options):
    """Parameters that are nowhere zero: in a fresh network most of it has no influence."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init(config, key, **options), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes)


def init(config, key, resolution=SIDE, text_width=WIDTH):
    return models.init(config, key, resolution=resolution, text_width=text_width)


@pytest.fixture
def inputs(rng) -> dict:
    def images():
        return jnp.asarray(rng.normal(size=(BATCH, SIDE, SIDE, 3)), jnp.float32)

    values = jnp.asarray(rng.normal(size=(BATCH, LENGTH, WIDTH)), jnp.float32)
    return {
        "x": images(),
        "time": jnp.array([700.0, 20.0]),
        "text": TextEmbeddings(values, jnp.arange(LENGTH) < jnp.array([[2], [LENGTH]])),
        "label": jnp.array([0, 2]),
        "low_res": images(),
        "aug_level": jnp.array([100.0, 300.0]),
    }


def call(config, params, inputs):
    names = ["text", *(["label", "low_res", "aug_level"] if config.low_res_channels else [])]
    conditions = {name: inputs[name] for name in names}
    return apply(config, params, inputs["x"], inputs["time"], **conditions)


# ------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_network_gives_zeros(kind, inputs):
    """conv_out starts at zero, so that training starts from a prediction without variance."""
    key = jax.random.key(0, impl="rbg")  # a quarter of threefry's time to compile
    out = call(SMALL[kind], init(SMALL[kind], key), inputs)
    assert out.shape == inputs["x"].shape
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_counts_but_padding_does_not(kind, inputs):
    config = CONFIGS[kind]
    params = random_params(config)
    out = call(config, params, inputs)
    assert np.isfinite(out).all()
    values, mask = inputs["text"]
    changes = {
        "x": inputs["x"] + 0.1,
        "time": inputs["time"] + 50,
        "text": TextEmbeddings(values + 0.3 * jnp.sin(jnp.arange(WIDTH)), mask),
        "label": jnp.array([1, 1]),
        "low_res": -inputs["low_res"],
        "aug_level": inputs["aug_level"] + 50,
    }
    for name, changed in changes.items():
        other = call(config, params, {**inputs, name: changed})
        assert (np.abs(out - other).max(axis=(1, 2, 3)) > 1e-4).all(), name
    padded = TextEmbeddings(jnp.where(mask[..., None], values, 1e3), mask)
    np.testing.assert_array_equal(out, call(config, params, {**inputs, "text": padded}))


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_a_batch_do_not_meet(kind, inputs):
    """Changing all of the second example leaves the first one as it was."""
    config = CONFIGS[kind]
    params = random_params(config)
    turned = jax.tree.map(lambda value: value.at[1].set(value[0]), inputs)
    out, other = call(config, params, inputs), call(config, params, turned)
    np.testing.assert_allclose(out[0], other[0], atol=1e-6)
    assert np.abs(out[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_text_is_finite_and_a_text_of_its_own(kind, inputs):
    config = CONFIGS[kind]
    params = random_params(config)
    out = call(config, params, {**inputs, "text": null_text(BATCH, LENGTH, WIDTH)})
    assert np.isfinite(out).all()
    assert np.abs(out - call(config, params, inputs)).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_remat_changes_neither_value_nor_gradient(kind, inputs):
    config = SMALL[kind]
    params = random_params(config)

    def loss(params, config):
        out = models.apply(config, params, inputs["x"], inputs["time"], text=inputs["text"])
        return jnp.square(out).mean()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=QUICK)
    value, grads = gradient(params, config)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    assert largest > 1e-3
    for remat in (True, "products"):
        value_again, grads_again = gradient(params, replace(config, remat=remat))
        np.testing.assert_allclose(value, value_again, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest),
            grads,
            grads_again,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_cast_ahead_are_those_that_the_layers_cast(kind, inputs):
    config = replace(SMALL[kind], dtype="bfloat16")
    params = random_params(config)
    ahead = models.compute_params(config, params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(ahead)}
    assert dtypes == {"bfloat16", "float32"}
    run = jax.jit(
        lambda params: models.apply(
            config, params, inputs["x"], inputs["time"], text=inputs["text"]
        ),
        compiler_options=QUICK,
    )
    np.testing.assert_array_equal(run(params), run(ahead))


def test_a_remat_that_is_none_of_the_known_is_named():
    with pytest.raises(ValueError, match=r"network.remat is 'all'; it can be False, True, 'prod"):
        replace(SMALL[KINDS[0]], remat="all")


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind, inputs):
    config = SMALL[kind]
    params = random_params(config)
    exact = call(config, params, inputs)
    rough = call(replace(config, dtype="bfloat16"), params, inputs)
    assert rough.dtype == jnp.float32
    difference = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_choices_are_named(kind):
    config = CONFIGS[kind]
    wrong = replace(config.levels[0], attention="Self")
    with pytest.raises(ValueError, match=r"levels.attention is 'Self'; it can be None, 'self'"):
        replace(config, levels=(wrong,))
    with pytest.raises(ValueError, match="levels is empty"):
        replace(config, levels=())
    with pytest.raises(ValueError, match="dtype is 'bf16'; it can be 'float32'"):
        replace(config, dtype="bf16")


def test_heads_divide_what_attends():
    with pytest.raises(ValueError, match="num_heads 3 does not divide the 16 channels"):
        replace(CONFIGS["efficient_unet"], num_heads=3)


def test_input_skip_adds_its_share_of_each_input(inputs):
    config = replace(CONFIGS["efficient_unet"], num_classes=None, input_skip=True)
    params = random_params(config)
    params["skip_gains"] = {"kernel": jnp.zeros((16, 2)), "bias": jnp.array([0.5, -2.0])}
    plain = {name: part for name, part in params.items() if name != "skip_gains"}
    names = ("text", "low_res", "aug_level")
    conditions = {name: inputs[name] for name in names}
    out, without = (
        apply(chosen, part, inputs["x"], inputs["time"], **conditions)
        for chosen, part in ((config, params), (replace(config, input_skip=False), plain))
    )
    expected = without + 0.5 * inputs["x"] - 2.0 * inputs["low_res"]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    with pytest.raises(ValueError, match="out_channels 6 and low_res_channels 3 must agree"):
        replace(config, out_channels=6)


def test_patches_are_folded_and_unfolded(rng):
    """The bottom sees SIDE / 4 pixels, the output is whole; upsampling by a 1x1 convolution."""
    config = EfficientUNetConfig(
        (EfficientLevel(8, 1, stride=2),),
        num_heads=1,
        embedding_width=8,
        patch_size=2,
        upsample_kernel=1,
    )
    assert models.reduction(config) == 4
    params = random_params(config, text_width=None)
    assert params["conv_in"]["kernel"].shape == (3, 3, 3 * 2 * 2, 8)
    x = jnp.asarray(rng.normal(size=(BATCH, SIDE, SIDE, 3)), jnp.float32)
    out = apply(config, params, x, jnp.array([1.0, 2.0]))
    assert out.shape == x.shape
    # Each pixel of a patch has weights of its own.
    assert np.std(out[0, :2, :2, 0]) > 1e-3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mid_attention", "both"),
        ("activation", "relu"),
        ("embedding_activation", "relu"),
        ("text_norm", "rms"),
    ],
)
def test_an_unknown_choice_is_named(field, value):
    with pytest.raises(ValueError, match=rf"network\.{field} is '{value}'; it can be "):
        UNetConfig((UNetLevel(8),), **{field: value})
    with pytest.raises(ValueError, match=r"levels\.attention is 'both'"):
        UNetConfig((UNetLevel(8, 1, "both"),))


def count(config, resolution: int, text_width: int | None) -> float:
    """Billions of parameters."""
    shapes = jax.eval_shape(
        lambda key: init(config, key, resolution, text_width), jax.random.key(0)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9


def test_the_papers_base_model_has_about_two_billion_parameters():
    """arXiv 2205.11487, section F.1: width 512 times 1, 2, 3, 4, attention at 32, 16 and 8.

    What reads T5-XXL's 4096 channels (keys, values, pooling) comes on top of 2.1 billion.
    """
    levels = [UNetLevel(512)] + [UNetLevel(512 * factor, 3, "self") for factor in (2, 3, 4)]
    config = UNetConfig(tuple(levels), dtype="bfloat16")
    assert 2.0 < count(config, 64, None) < 2.2
    assert count(config, 64, 4096) < 2.5


def test_the_papers_super_resolution_model_has_about_six_hundred_million_parameters():
    """Section F.2, 64 -> 256: 128/256/512/1024 channels, 2/4/8/8 blocks, attention in the last.

    0.56 billion, and on top of them 0.1 for what reads T5-XXL's 4096 channels.
    """
    sizes = ((128, 2, None), (256, 4, None), (512, 8, None), (1024, 8, "self"))
    levels = [EfficientLevel(channels, blocks, 2, kind) for channels, blocks, kind in sizes]
    config = EfficientUNetConfig(tuple(levels), low_res_channels=3)
    assert 0.5 < count(config, 256, None) < 0.6
    assert count(config, 256, 4096) < 0.7


# --------------------------------------------------------------------------------- the blocks


def test_space_to_depth_and_back(rng):
    x = jnp.asarray(rng.normal(size=(2, 6, 9, 5)), jnp.float32)
    folded = space_to_depth(x, 3)
    assert folded.shape == (2, 2, 3, 45)
    np.testing.assert_array_equal(folded[1, 1, 2].reshape(3, 3, 5), x[1, 3:6, 6:9])
    np.testing.assert_array_equal(depth_to_space(folded, 3), x)


def test_pooling_undoes_nearest_upsampling(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32)
    large = nearest_upsample(x)
    np.testing.assert_array_equal(large[:, ::2, 1::2], x)
    np.testing.assert_allclose(average_pool(large), x, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (2, 7), (1, 1), (5, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv3x3_is_the_convolution_on_small_and_on_large_maps(shape, stride, rng):
    """Maps of up to 16 pixels go through a matrix product over patches."""
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    module = Conv3x3(6, jnp.dtype(jnp.float32), stride)
    kernel = rng.normal(size=(3, 3, 3, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    expected = nn.Conv(6, (3, 3), stride, padding="SAME").apply(
        {"params": {"kernel": kernel, "bias": bias}}, x
    )
    out = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (12, 4), (7, 1)])
def test_group_norm_equals_flax_and_is_modulated_after(channels, groups, rng):
    """32 groups, or the most that divide the channels and 32."""
    x = (3 * rng.normal(size=(2, 4, 3, channels)) + 1).astype(np.float32)
    params = {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "bias")}
    reference = jax.jit(nn.GroupNorm(groups, epsilon=1e-5).apply)({"params": params}, x)
    out = jax.jit(GroupNorm().apply)({"params": params}, x)
    np.testing.assert_allclose(out, reference, atol=1e-4)
    modulation = rng.normal(size=(2, 2 * channels)).astype(np.float32)
    scale, shift = np.split(modulation[:, None, None], 2, axis=-1)
    out = jax.jit(GroupNorm().apply)({"params": params}, x, modulation)
    np.testing.assert_allclose(out, reference * (1 + scale) + shift, atol=1e-3)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_attention_is_softmax_over_text_and_image_together(kind, rng, inputs):
    """arXiv 2205.11487, F.1: text keys and values beside the image's own; F.3: text alone."""
    heads, hidden, channels = 2, 8, 6
    module = Attention(kind, heads, hidden, jnp.dtype(jnp.float32))
    x = jnp.asarray(rng.normal(size=(BATCH, 2, 3, channels)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, inputs["text"])
    variables = jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)
    out = jax.jit(module.apply)(variables, x, inputs["text"])

    params = variables["params"]
    pixels = jax.jit(GroupNorm().apply)({"params": params["norm"]}, x)
    pixels = np.asarray(pixels).reshape(BATCH, 6, channels)
    text = jax.jit(nn.LayerNorm().apply)({"params": params["text_norm"]}, inputs["text"].values)
    text = np.asarray(text)

    def dense(name, values):
        return values @ params[name]["kernel"] + params[name]["bias"]

    query, text_kv = dense("query", pixels), dense("text_key_value", text)
    attended = np.zeros((BATCH, 6, hidden))
    for b in range(BATCH):
        sources = [text_kv[b][np.asarray(inputs["text"].mask[b])]]
        if kind == "self":
            sources.append(dense("key_value", pixels)[b])
        key, value = np.split(np.concatenate(sources), 2, axis=-1)
        for head in range(heads):
            part = slice(head * hidden // heads, (head + 1) * hidden // heads)
            logits = query[b][:, part] @ key[:, part].T / np.sqrt(hidden // heads)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            attended[b][:, part] = weights @ value[:, part]
    expected = np.asarray(x) + dense("out", attended).reshape(x.shape)
    np.testing.assert_allclose(out, expected, atol=1e-4)
