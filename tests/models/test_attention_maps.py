"""Maps of attention to the text: against diffusers, against what each network's own attention does,
and that a network that is not asked computes nothing of them.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagen_jax import models
from imagen_jax.convert.diffusers_unet import config_from_diffusers
from imagen_jax.models import (
    EfficientLevel,
    EfficientUNetConfig,
    PRXConfig,
    TransformerConfig,
    UNetConfig,
    UNetLevel,
    WatchedParams,
    attention_maps,
)
from imagen_jax.models.attention_maps import COLLECTION
from imagen_jax.pipeline.explain import mean_of_layers
from imagen_jax.storage.trees import flatten
from imagen_jax.typing import TextEmbeddings
from tests.convert.test_diffusers_unet import (
    BATCH,
    QUICK,
    REASON,
    apply,
    params_of,
    random_inputs,
    random_values,
    reference,
    relative_error,
)

TOKENS, WIDTH = 5, 16
NETWORKS = {
    "unet": UNetConfig(
        (UNetLevel(16, 1, "self"), UNetLevel(16, 1, "cross")),
        head_channels=8, norm_groups=8, pooling_heads=2,
    ),
    "efficient_unet": EfficientUNetConfig(
        (EfficientLevel(32, 1, 1, "cross"), EfficientLevel(32, 1, 2, "self")),
        num_heads=4, patch_size=2,
    ),
    "transformer": TransformerConfig(
        width=32, depth=2, heads=2, patch_size=4, bottleneck=8, conditioning="tokens"
    ),
    "prx": PRXConfig(width=32, depth=2, heads=4, patch_size=4, bottleneck=8),
}  # fmt: skip


def random_network(name: str, seed: int):
    """(config, random parameters, inputs of 8x12 pixels and text of 3 and of 5 tokens)."""
    config, rng = NETWORKS[name], np.random.default_rng(seed)
    init = lambda key: models.init(config, key, resolution=8, text_width=WIDTH)  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), shapes)
    x = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(2, TOKENS, WIDTH)), jnp.float32)
    mask = jnp.arange(TOKENS) < jnp.array([[3], [TOKENS]])
    return config, params, (x, jnp.array([100.0, 700.0])), TextEmbeddings(values, mask)


# -------------------------------------------------------------------------------- diffusers


def their_maps(network, inputs, levels: int) -> dict[str, np.ndarray]:
    """By our layers' names, [batch, queries, tokens]: what `get_attention_scores` gives there."""
    import torch
    from diffusers.models.attention_processor import AttnAddedKVProcessor

    network.set_attn_processor(AttnAddedKVProcessor())
    tokens, found = inputs["text"].shape[1], {}

    def watch(name, layer):
        scores = layer.get_attention_scores

        def watched(*arguments):
            weights = scores(*arguments)
            # Text comes first there; heads are beside the batch.
            by_head = weights.reshape(BATCH, layer.heads, *weights.shape[1:])
            found[name] = by_head[..., :tokens].mean(1).numpy()
            return weights

        layer.get_attention_scores = watched

    for part, blocks in (("down", network.down_blocks), ("up", network.up_blocks)):
        for i, block in enumerate(blocks):
            level = i if part == "down" else levels - 1 - i
            for j, layer in enumerate(getattr(block, "attentions", None) or []):
                watch(f"{part}{level}_attention{j}", layer)
    watch("mid_attention", network.mid_block.attentions[0])
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    labels = tensors["aug_level"] if network.config.class_embed_type else None
    with torch.no_grad():
        x = tensors["x"].permute(0, 3, 1, 2)
        network(x, tensors["time"], tensors["text"], class_labels=labels)
    return found


@pytest.mark.parametrize(("stage", "seed"), [pytest.param(1, 25, marks=pytest.mark.slow), (2, 30)])
def test_maps_of_deepfloyd_if_are_those_of_diffusers(stage, seed):
    torch = pytest.importorskip("torch", reason=REASON)
    values = random_values(stage, seed)
    network, config = reference(values, seed), config_from_diffusers(values)
    params = params_of(config, {k: v.numpy() for k, v in network.state_dict().items()})
    step = models.reduction(config)
    height, width = 2 * step, 3 * step
    inputs = random_inputs(values, height, width, seed)
    expected = their_maps(network, inputs, len(config.levels))

    text = jnp.asarray(inputs["text"])
    given = {"text": TextEmbeddings(text, jnp.ones(text.shape[:2], bool))}
    x, low_res = np.split(inputs["x"], [config.in_channels], axis=-1)
    if config.low_res_channels:
        level = jnp.asarray(inputs["aug_level"], jnp.float32)
        given |= {"low_res": jnp.asarray(low_res), "aug_level": level}
    time = jnp.asarray(inputs["time"], jnp.float32)
    found = apply(config, WatchedParams(params), jnp.asarray(x), time, **given)
    assert found.keys() == expected.keys()
    assert len(found) > 1
    upsampled = []
    for name, theirs in expected.items():
        rows, columns = found[name].shape[1:3]
        assert rows * width == columns * height
        theirs = theirs.reshape(BATCH, rows, columns, -1)
        assert relative_error(np.asarray(found[name]), theirs) < 1e-5
        upsampled.append(torch.from_numpy(theirs).permute(0, 3, 1, 2))

    finest = max(tuple(layer.shape[-2:]) for layer in upsampled)
    resize = torch.nn.functional.interpolate
    summed = sum(resize(layer, finest, mode="bilinear") for layer in upsampled) / len(upsampled)
    ours = mean_of_layers({name: jnp.moveaxis(layer, -1, 1) for name, layer in found.items()})
    assert relative_error(np.asarray(ours), summed.numpy()) < 1e-5


# ------------------------------------------------------------------- every network's own attention


def probe(weights: jax.Array):
    """In each attention, the values of pixels become 0 and those of text token j weights[:, j]: by
    its own softmax the result is then the map's product with the weights, in every channel.
    """

    def replaced(run, arguments, options, context):
        out = run(*arguments, **options)
        module = context.module
        if context.method_name != "__call__" or not isinstance(out, jax.Array):
            return out
        ends = {"value": 0, "text_value": 0, "key_value": 1 / 2, "text_key_value": 1 / 2,
                "query_key_value": 2 / 3}  # fmt: skip
        if module.name in ends and out.ndim == 3:
            begin = round(ends[module.name] * out.shape[-1])
            values = jnp.zeros_like(out[..., begin:])
            if module.name.startswith("text"):
                values += weights[..., None]
            elif "SelfAttention" in type(module.parent).__name__:  # one sequence, the text last
                values = values.at[:, -TOKENS:].set(weights[..., None])
            out = jnp.concatenate([out[..., :begin], values], -1)
        if module.name == "out" and out.ndim == 3:
            mean = arguments[0].mean(-1)
            module.sow(COLLECTION, "seen", mean, init_fn=lambda: None, reduce_fn=lambda _, x: x)
        return out

    return nn.intercept_methods(replaced)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_is_what_the_networks_own_attention_weighs_the_text_by(name):
    config, params, (x, time), text = random_network(name, seed=1)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, TOKENS)), jnp.float32)
    module = models.MODULES[type(config)](config)

    def run(params):
        with probe(weights):
            given = x, time, text, None, None, None
            return module.apply({"params": params}, *given, mutable=[COLLECTION])[1][COLLECTION]

    kept = flatten(dict(jax.jit(run, compiler_options=QUICK)(params)))
    maps = {path.removesuffix("/text"): m for path, m in kept.items() if path.endswith("/text")}
    assert maps
    for path, values in maps.items():
        own = kept[f"{path}/out/seen"]
        product = jnp.einsum("...bqt,bt->...bq", values, weights)
        assert relative_error(np.asarray(product), np.asarray(own)) < 1e-5, path
        assert np.ptp(np.asarray(values)) > 1e-3  # it says something
        total = np.asarray(values.sum(-1))
        assert ((total > 0) & (total < 1 + 1e-5)).all()
        assert not np.asarray(values[..., 0, :, 3:]).any()  # padding


@pytest.mark.slow
def test_maps_are_as_fine_as_their_layers():
    sizes = {
        "unet": {"down0_attention0": (8, 12), "down1_attention0": (4, 6), "mid_attention": (4, 6)},
        "efficient_unet": {"down0_attention": (4, 6), "up1_attention": (2, 3)},
        "transformer": {"layers/attention/0": (2, 3), "layers/attention/1": (2, 3)},
        "prx": {"layers/attention/0": (2, 3), "layers/attention/1": (2, 3)},
    }
    for name, expected in sizes.items():
        config, params, (x, time), text = random_network(name, seed=3)
        watched = WatchedParams(params)
        found = jax.eval_shape(lambda p: models.apply(config, p, x, time, text=text), watched)  # noqa: B023
        shapes = {layer: maps.shape for layer, maps in found.items()}
        assert shapes.items() >= {k: (2, *size, TOKENS) for k, size in expected.items()}.items()


@pytest.mark.slow
def test_the_form_for_gpus_has_the_same_maps():
    config, params, (x, time), text = random_network("efficient_unet", seed=4)
    ours, other = (
        apply(replace(config, fused=fused), WatchedParams(params), x, time, text=text)
        for fused in (False, True)
    )
    for layer, maps in ours.items():
        assert relative_error(np.asarray(other[layer]), np.asarray(maps)) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_a_map_is_computed_where_none_is_asked_for(name, monkeypatch):
    config, params, (x, time), text = random_network(name, seed=5)

    def run(params):
        return jax.make_jaxpr(lambda p: models.apply(config, p, x, time, text=text))(params)

    asked = []
    keep = attention_maps.keep_map
    for module in ("image_attention", "transformer", "prx"):
        monkeypatch.setattr(
            f"imagen_jax.models.{module}.keep_map",
            lambda *arguments: asked.append(1) or keep(*arguments),
        )
    plain = run(params)
    assert not asked
    assert len(plain.jaxpr.outvars) == 1  # the image alone
    run(WatchedParams(params))
    assert asked
