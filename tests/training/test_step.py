"""The train step on one tiny batch: it learns, averages, and leaves frozen text as it is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from tiny_cascade import BASE, ENCODER, SR, network

from imagen_jax.cascade.stage import Stage, init_params
from imagen_jax.devices.sharding import MeshConfig, make_mesh, state_shardings
from imagen_jax.diffusion.losses import Loss
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.images.pixels import to_float
from imagen_jax.models import TransformerConfig, t5
from imagen_jax.text import encoder as text_room
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
from imagen_jax.training.state import NETWORK, TEXT_ENCODER, Frozen, init_state, update_ema
from imagen_jax.training.step import TIME_BINS, drop_text, make_train_step, sample_times
from imagen_jax.typing import TextEmbeddings
from tests.training.whole_loss import make_loss

BATCH = 8
# Half the usual time to compile, and a key whose numbers take less of it, too.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ADAM = OptimizerConfig("adam", 3e-3, warmup_steps=0)
LABELLED = Stage("labelled", 4, network(num_classes=3), conditioning="label", prediction="v")
PLAIN = replace(BASE, conditioning=None, text_width=None)


def step_of(stage, encoder=ENCODER, accumulation=1, mesh=None, **keys):
    """The compiled train step of a stage."""
    optimizer, text = replace(ADAM, accumulation=accumulation), TextConfig(ENCODER.config)
    data = DataConfig("memory")
    config = RunConfig(stage, data, BATCH, 1, text=text, optimizer=optimizer, **keys)
    return compiled(make_train_step(config, encoder, mesh))


def fresh_state(stage, key, encoder=None, with_ema=True):
    """A state with random parameters; with an encoder, which is trained too."""
    params = {NETWORK: init_params(stage, jax.random.fold_in(key, 0))}
    if encoder is not None:
        params[TEXT_ENCODER] = t5.init(encoder.config, jax.random.fold_in(key, 1))
    return init_state(params, make_optimizer(ADAM), with_ema=with_ema)


@pytest.fixture(scope="module")
def batch() -> dict:
    """Eight images of one colour each, with prompts and labels; 8x8 for the enlarging stage."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (BATCH, 1, 1, 3), np.uint8)
    ids, mask = text_room.tokenize(ENCODER, [f"colour {i}" for i in range(BATCH)])
    return {
        "image": np.broadcast_to(colours, (BATCH, 4, 4, 3)).copy(),
        "ids": ids,
        "mask": mask,
        "label": np.arange(BATCH, dtype=np.int32) % 3,
    }


def first_key():
    return jax.random.key(1, impl="rbg")


def compiled(function):
    return jax.jit(function, compiler_options=QUICK)


def pick(batch: dict, *names: str) -> dict:
    return {name: jnp.asarray(batch[name]) for name in ("image", *names)}


@pytest.fixture(scope="module")
def trained(batch):
    """States and metrics of 40 steps that all draw the same t, eps and dropout."""
    state = compiled(lambda key: fresh_state(BASE, key, ENCODER))(first_key())
    step = step_of(BASE, ema_decay=0.9)
    states, metrics = [state], []
    for _ in range(40):
        state, values = step(state, pick(batch, "ids", "mask"), jax.random.key(2))
        states.append(state)
        metrics.append(jax.tree.map(np.asarray, values))
    return states, metrics


def test_the_loss_of_one_batch_falls(trained):
    losses = [float(values["loss"]) for values in trained[1]]
    assert losses[-1] < 0.7 * losses[0]
    assert int(trained[0][-1].step) == 40


@pytest.mark.parametrize("shape", [None, pytest.param((2, 2, 1), marks=pytest.mark.slow)])
def test_the_loss_of_a_super_resolution_transformer_falls(shape, batch):
    """With text, dropout and micro-batches, through the very same step; on a mesh, too."""
    network = TransformerConfig(
        width=16, depth=4, heads=2, patch_size=4, bottleneck=8, low_res_channels=3, dropout=0.1,
        scan_layers=True,
    )  # fmt: skip
    stage = replace(SR, network=network, prediction="x0")
    large = {**batch, "image": batch["image"].repeat(2, axis=1).repeat(2, axis=2)}
    state = compiled(lambda key: fresh_state(stage, key, ENCODER))(first_key())
    mesh = None if shape is None else make_mesh(MeshConfig(*shape), jax.devices()[:4])
    if mesh is not None:
        state = jax.device_put(state, state_shardings(state, mesh))
    step, losses = step_of(stage, accumulation=2, mesh=mesh), []
    for _ in range(40):
        state, values = step(state, pick(large, "ids", "mask"), jax.random.key(2))
        losses.append(float(values["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_metrics_add_up(trained):
    for values in trained[1][::13]:
        assert values["loss_by_t"].shape == values["count_by_t"].shape == (TIME_BINS,)
        assert values["count_by_t"].sum() == BATCH
        np.testing.assert_allclose(values["loss_by_t"].sum() / BATCH, values["loss"], rtol=1e-5)
        assert values["grad_norm"] > 0


def test_the_average_follows_its_formula(trained):
    """ema + (1 - d)(params - ema), d = min(0.9, (1 + n) / (10 + n)) at update n."""
    states = trained[0]
    for number in (1, 2, 40):
        before, after = states[number - 1], states[number]
        decay = min(0.9, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, before.ema, after.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            after.ema,
            expected,
        )
    one, two = {"w": jnp.float32(1)}, {"w": jnp.float32(2)}
    assert float(update_ema(one, two, jnp.int32(10_000), 0.9)["w"]) == pytest.approx(1.1)


def test_the_text_encoder_is_trained_along(trained):
    first, last = trained[0][0].params, trained[0][-1].params
    assert set(first) == {NETWORK, TEXT_ENCODER}
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, last)
    assert all(change > 0 for change in jax.tree.leaves(moved[TEXT_ENCODER]["layers"]))


def test_frozen_text_gets_no_gradient_and_stays(trained, batch):
    """The same network gradient as with a trained encoder, and nothing else to update."""
    params = trained[0][5].params
    state = init_state({NETWORK: params[NETWORK]}, make_optimizer(ADAM))
    step = step_of(BASE, ema_decay=0.9)
    frozen = Frozen(text_encoder=params[TEXT_ENCODER])
    after, values = step(state, pick(batch, "ids", "mask"), jax.random.key(2), frozen)
    assert set(after.params) == set(after.ema) == {NETWORK}
    np.testing.assert_allclose(values["loss"], trained[1][5]["loss"], rtol=1e-5)
    assert values["grad_norm"] < trained[1][5]["grad_norm"]


def loss_of(stage, params, batch, key, dropout=0.0, frozen=Frozen()):
    loss = make_loss(stage, ENCODER, dropout)
    return float(compiled(loss)(params, batch, key, frozen)[0])


def test_embeddings_made_beforehand_are_the_encoders(trained, batch):
    params, key = trained[0][5].params, jax.random.key(3)
    ids, mask = jnp.asarray(batch["ids"]), jnp.asarray(batch["mask"])
    values = text_room.encode_tokens(ENCODER.config, params[TEXT_ENCODER], ids, mask).values
    network_only = {NETWORK: params[NETWORK]}
    cached = {**pick(batch, "mask"), "text": values}
    expected = loss_of(BASE, params, pick(batch, "ids", "mask"), key)
    assert loss_of(BASE, network_only, cached, key) == pytest.approx(expected, rel=1e-5)


def random_params(stage, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: fresh_state(stage, key).params, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), jnp.float32), shapes)


def test_labels_count_unless_they_are_dropped(batch):
    params, key = random_params(LABELLED), jax.random.key(4)
    with_labels = pick(batch, "label")
    others = {**with_labels, "label": (with_labels["label"] + 1) % 3}
    loss = {
        dropout: [loss_of(LABELLED, params, given, key, dropout) for given in (with_labels, others)]
        for dropout in (0.0, 1.0)
    }
    assert loss[0.0][0] != pytest.approx(loss[0.0][1], rel=1e-4)
    assert loss[1.0][0] == loss[1.0][1]


def test_a_stage_without_conditions_needs_images_alone(batch):
    """The loss of a fresh network, whose output is 0, is that of eps itself: about 1."""
    start = compiled(lambda key: fresh_state(PLAIN, key, with_ema=False))
    state = start(first_key())
    assert state.ema is None
    step = step_of(PLAIN, None, ema_decay=None)
    after, values = step(state, pick(batch), jax.random.key(5))
    assert after.ema is None
    assert float(values["loss"]) == pytest.approx(1.0, abs=0.3)


def test_an_enlarging_stage_sees_its_low_resolution(batch):
    """Text made beforehand: 8x8 images, of which the network is given 4x4 ones with noise."""
    params, key = random_params(SR), jax.random.key(6)
    image = jnp.asarray(np.repeat(np.repeat(batch["image"], 2, axis=1), 2, axis=2))
    text = jnp.ones((BATCH, 3, SR.text_width))
    given = {"image": image, "text": text, "mask": jnp.ones((BATCH, 3), bool)}
    value, (losses, t) = compiled(make_loss(SR, None, 0.1))(params, given, key, Frozen())
    assert losses.shape == t.shape == (BATCH,)
    assert np.isfinite(losses).all()
    assert float(value) == pytest.approx(float(losses.mean()), rel=1e-6)


def test_crops_are_enlarged_as_much_as_whole_images(batch):
    """8x8 crops of 16x16 images, from 8x8 ones: the loss of whole 8x8 images, from 4x4 ones."""
    params, key = random_params(SR), jax.random.key(6)
    cropped = replace(SR, resolution=16, low_resolution=8, crop=8)
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8))
    text = jnp.ones((BATCH, 3, SR.text_width))
    given = {"image": image, "text": text, "mask": jnp.ones((BATCH, 3), bool)}
    expected = loss_of(SR, params, given, key)
    assert loss_of(cropped, params, given, key) == pytest.approx(expected, rel=1e-6)


def gradients_of_the_output(vlb_weight: float, batch: dict) -> np.ndarray:
    """Of the last layer's bias, whose last three entries give the learned variance."""
    stage = replace(
        PLAIN,
        network=replace(PLAIN.network, out_channels=6),
        schedule=DiscreteBeta(),
        loss=Loss(vlb_weight=vlb_weight),
    )
    loss = make_loss(stage, None, 0.0)
    params = random_params(stage)
    gradient = jax.grad(lambda params: loss(params, pick(batch), jax.random.key(7), Frozen())[0])
    biases = jax.tree.leaves_with_path(compiled(gradient)(params))
    found = [leaf for _, leaf in biases if leaf.shape == (6,)]
    assert len(found) == 1
    return np.asarray(found[0])


def test_the_hybrid_loss_trains_the_variance(batch):
    plain, hybrid = (gradients_of_the_output(weight, batch) for weight in (0.0, 0.001))
    np.testing.assert_array_equal(plain[3:], 0.0)
    assert np.abs(hybrid[3:]).min() > 0
    # The mean learns from the squared error alone.
    np.testing.assert_allclose(hybrid[:3], plain[:3], rtol=1e-4)


def test_times_are_spread_evenly(key):
    times = np.asarray(sample_times(key, 64, BASE))
    np.testing.assert_array_equal(np.sort((times * 64).astype(int)), np.arange(64))
    powered = replace(BASE, time_power=0.5)
    np.testing.assert_allclose(sample_times(key, 64, powered), np.sqrt(times), rtol=1e-5)


def test_logit_normal_times(key):
    stage = replace(BASE, time_logit_normal=(0.8, 0.5))
    logits = scipy.special.logit(np.asarray(sample_times(key, 4096, stage), np.float64))
    assert scipy.stats.kstest(logits, "norm", (0.8, 0.5)).statistic < 1e-3


def test_which_example_gets_which_time_is_chance(key):
    """A host that reads the same rows of every batch must see all times."""
    first = [int(sample_times(k, 8, BASE)[0] * 8) for k in jax.random.split(key, 64)]
    assert len(set(first)) == 8


def test_a_batch_in_micro_batches_is_updated_as_a_whole(trained, batch):
    state, given = trained[0][0], pick(batch, "ids", "mask")
    whole, parts = (
        step_of(BASE, ema_decay=0.9, accumulation=count)(state, given, jax.random.key(8))
        for count in (1, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole[1], parts[1])
    assert int(parts[0].step) == int(state.step) + 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        whole[0].params[NETWORK],
        parts[0].params[NETWORK],
    )


def test_dropped_text_is_the_null_text(rng):
    values = jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32)
    text = TextEmbeddings(values, jnp.ones((3, 4), bool))
    dropped = drop_text(text, jnp.array([True, False, True]))
    null = text_room.null_text(3, 4, 2)
    for row, expected in enumerate((null, text, null)):
        np.testing.assert_array_equal(dropped.values[row], expected.values[row])
        np.testing.assert_array_equal(dropped.mask[row], expected.mask[row])


def test_bytes_become_the_whole_range():
    pixels = jnp.array([[[[0, 255, 51]]]], jnp.uint8)
    np.testing.assert_allclose(to_float(pixels)[0, 0, 0], [-1, 1, -0.6], atol=1e-6)
