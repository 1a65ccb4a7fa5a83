"""The T5 encoder against transformers on random weights, and the properties it has by design."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.convert.t5 import config_from_huggingface, params_from_huggingface
from imagen_jax.models import t5

# Compiled as a whole: operation by operation, XLA takes several times as long.
encode = jax.jit(t5.encode, static_argnums=0)
init = jax.jit(t5.init, static_argnums=0)

TINY = t5.T5Config(vocab_size=50, d_model=24, num_heads=3, head_dim=8, num_layers=3, d_ff=32)


def relative_error(value, reference) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def random_batch(rng, config: t5.T5Config, batch: int, length: int):
    """Ids of random prompts, each padded to `length` but the first."""
    lengths = rng.integers(1, length + 1, batch)
    lengths[0] = length
    mask = np.arange(length)[None, :] < lengths[:, None]
    ids = np.where(mask, rng.integers(1, config.vocab_size, (batch, length)), 0)
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask)


def huggingface_encoder(family: str, seed: int):
    """A random tiny encoder of transformers in eval mode; the sizes depend on the seed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classes = {
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
        "byt5": (transformers.T5Config, transformers.T5EncoderModel),
        "mt5": (transformers.MT5Config, transformers.MT5EncoderModel),
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
    }
    make_config, make_model = classes[family]
    config = make_config(
        vocab_size={"t5": 60, "byt5": 384, "mt5": 80, "umt5": 90}[family],
        d_model=int(rng.choice([16, 24, 40])),
        num_heads=int(rng.choice([2, 3, 5])),
        d_kv=int(rng.choice([4, 8, 12])),
        num_layers=int(rng.choice([1, 2, 4])),
        d_ff=int(rng.choice([20, 48])),
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=int(rng.choice([8, 16, 32])),
        relative_attention_max_distance=int(rng.choice([20, 64, 128])),
        initializer_factor=1.0,
    )
    model = make_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # 1 at initialization: a scale left out would go unnoticed
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return torch, model


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("family", ["t5", "mt5", "byt5", "umt5"])
def test_matches_transformers(family, seed):
    torch, model = huggingface_encoder(family, seed)
    config = config_from_huggingface(model.config.to_dict())
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = params_from_huggingface(config, tensors)
    rng = np.random.default_rng(100 + seed)
    ids, mask = random_batch(rng, config, batch=3, length=int(rng.choice([9, 40, 150])))

    ours = np.asarray(encode(config, params, ids, mask))
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(np.asarray(ids, np.int64)),
            attention_mask=torch.tensor(np.asarray(mask, np.int64)),
        ).last_hidden_state.numpy()

    valid = np.asarray(mask)
    assert config.bias_in_every_layer == (family == "umt5")
    assert relative_error(ours[valid], theirs[valid]) < 1e-5
    assert not ours[~valid].any()


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 20), (8, 64), (64, 500)])
def test_buckets_match_transformers(num_buckets, max_distance):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance = np.arange(-1500, 1501)
    theirs = modeling.T5Attention._relative_position_bucket(
        torch.tensor(distance), True, num_buckets, max_distance
    )
    ours = t5.relative_position_buckets(distance, num_buckets, max_distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_buckets_are_symmetric_and_monotonic():
    distance = np.arange(1, 400)
    ahead = t5.relative_position_buckets(distance, 32, 128)
    behind = t5.relative_position_buckets(-distance, 32, 128)
    np.testing.assert_array_equal(ahead, behind + 16)
    assert (np.diff(behind) >= 0).all()
    assert (behind[distance >= 128] == 15).all()
    assert set(behind) | set(ahead) | {0} == set(range(32)) - {16}


@pytest.mark.parametrize("bias_in_every_layer", [False, True])
def test_padding_cannot_influence_tokens(bias_in_every_layer, key, rng):
    config = t5.T5Config(
        vocab_size=50,
        d_model=24,
        num_heads=3,
        head_dim=8,
        num_layers=2,
        d_ff=32,
        bias_in_every_layer=bias_in_every_layer,
    )
    params = init(config, key)
    ids, mask = random_batch(rng, config, batch=4, length=12)
    expected = encode(config, params, ids, mask)
    other = jnp.where(mask, ids, jnp.asarray(rng.integers(1, 50, ids.shape), jnp.int32))
    np.testing.assert_array_equal(encode(config, params, other, mask), expected)

    longer = [jnp.pad(array, ((0, 0), (0, 5))) for array in (ids, mask)]
    padded = encode(config, params, *longer)
    np.testing.assert_allclose(padded[:, :12], expected, atol=1e-5)
    assert not padded[:, 12:].any()


def test_tokens_influence_every_token_before_and_after(key):
    params = init(TINY, key)
    ids = jnp.arange(1, 9, dtype=jnp.int32)[None]
    mask = jnp.ones_like(ids, bool)
    changed = encode(TINY, params, ids.at[0, 4].set(40), mask)
    difference = jnp.abs(changed - encode(TINY, params, ids, mask)).max(-1)[0]
    assert (difference > 1e-4).all()


def test_order_matters(key):
    params = init(TINY, key)
    ids = jnp.arange(1, 9, dtype=jnp.int32)[None]
    mask = jnp.ones_like(ids, bool)
    forward = encode(TINY, params, ids, mask)
    backward = encode(TINY, params, ids[:, ::-1], mask)[:, ::-1]
    assert relative_error(backward, forward) > 1e-2


def test_bfloat16_is_near_float32_and_gives_float32(key, rng):
    params = init(TINY, key)
    batch = random_batch(rng, TINY, batch=2, length=10)
    half = t5.T5Config(**{**vars(TINY), "dtype": "bfloat16"})
    exact, rounded = encode(TINY, params, *batch), encode(half, params, *batch)
    assert rounded.dtype == jnp.float32
    assert 0 < relative_error(rounded, exact) < 0.02


def test_rematerialized_gradients_are_equal(key, rng):
    params = init(TINY, key)
    batch = random_batch(rng, TINY, batch=2, length=10)

    def gradient(config):
        grad = jax.jit(jax.grad(lambda params: jnp.sum(t5.encode(config, params, *batch) ** 3)))
        return grad(params)

    remat = t5.T5Config(**{**vars(TINY), "remat": True})
    for ours, theirs in zip(
        jax.tree.leaves(gradient(TINY)), jax.tree.leaves(gradient(remat)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_initial_scales(key):
    small = t5.T5Config(vocab_size=2000, d_model=64, num_layers=1, embedding_init_scale=0.05)
    params = init(small, key)
    assert np.std(params["token_embedding"]) == pytest.approx(0.05, rel=0.02)
    values = encode(small, params, jnp.arange(32)[None], jnp.ones((1, 32), bool))
    assert float(jnp.sqrt(jnp.mean(values**2))) == pytest.approx(1.0, rel=0.01)


def test_the_papers_encoder_has_4_6_billion_parameters():
    config = t5.T5_V1_1["xxl"]
    shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    count = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes))
    assert 4.6e9 < count < 4.8e9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("activation", "tanh"),
        ("dtype", "float16"),
        ("num_buckets", 6),
        ("max_distance", 8),
        ("embedding_init_scale", 0.0),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        t5.T5Config(**{field: value})
