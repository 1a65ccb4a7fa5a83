"""The hybrid loss goes on training both halves of a loaded network: all of it, or an adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cascade.stage import Stage, apply_network, init_params
from imagen_jax.diffusion.losses import Loss, diffusion_loss
from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.schedules import DiscreteBeta, training_time
from imagen_jax.diffusion.variational import variational_bound
from imagen_jax.images.pixels import to_float
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.models.lora import LoraConfig, init_lora, merge_lora
from imagen_jax.models.t5 import T5Config
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
from imagen_jax.training.state import LORA, NETWORK, Frozen, init_state
from imagen_jax.training.step import make_train_step
from imagen_jax.typing import TextEmbeddings

WIDTH, BATCH, DRAWS = 8, 8, 64
STAGE = Stage(
    "if",
    8,
    UNetConfig(
        (UNetLevel(16, 1), UNetLevel(32, 1, "self")),
        out_channels=6,
        head_channels=16,
        pooling_heads=2,
        mask_text=False,
    ),
    text_width=WIDTH,
    schedule=DiscreteBeta(),
    loss=Loss(vlb_weight=0.001),
)
ADAPTER = LoraConfig(rank=4)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def images(seed: int) -> dict:
    """Eight images, each of two colours, and random embeddings of their captions."""
    rng = np.random.default_rng(seed)
    image = np.repeat(rng.integers(0, 256, (BATCH, 2, 1, 3), np.uint8), 4, axis=1)
    return {
        "image": jnp.asarray(np.repeat(image, 8, axis=2)),
        "text": jnp.asarray(rng.normal(size=(BATCH, 3, WIDTH)), jnp.float32),
        "mask": jnp.ones((BATCH, 3), bool),
    }


@jax.jit
def both_losses(params, batch):
    """Mean squared error of eps, and the bound in bits, over times and noise that are fixed."""
    repeat = DRAWS // BATCH
    batch = jax.tree.map(lambda x: jnp.repeat(x, repeat, axis=0), batch)
    x0 = to_float(batch["image"])
    t = training_time(
        STAGE.schedule, jax.random.permutation(jax.random.key(7), (jnp.arange(DRAWS) + 0.5) / DRAWS)
    )
    eps = jax.random.normal(jax.random.key(8), x0.shape)
    x_t = add_noise(x0, eps, STAGE.schedule.logsnr(t))
    text = TextEmbeddings(batch["text"], batch["mask"])
    output = apply_network(STAGE, params, x_t, t, text=text)
    simple = diffusion_loss(output, "eps", x0, eps, t, STAGE.schedule, Loss())
    bound = variational_bound(output, "eps", x0, eps, t, STAGE.schedule)
    return simple.mean(), bound.mean() * STAGE.schedule.num_steps


def make_step(stage, optimizer, lora=None):
    config = RunConfig(
        stage,
        DataConfig("memory"),
        BATCH,
        1,
        text=TextConfig(T5Config(8, WIDTH, 1, 8, 1, 8)),  # not used: the captions are embedded
        optimizer=optimizer,
        ema_decay=None,
        label_dropout=0.0,
        lora=lora,
        init_from=None if lora is None else "loaded",
    )
    return jax.jit(make_train_step(config, None), compiler_options=QUICK)


def train(params, batch, steps, frozen=Frozen(), lora=None, rate=2e-3):
    optimizer = OptimizerConfig("adam", rate, warmup_steps=0)
    step = make_step(STAGE, optimizer, lora)
    state = init_state(params, make_optimizer(optimizer), with_ema=False)
    for number in range(steps):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(3), number), frozen)
    assert np.isfinite(metrics["loss"])
    return state.params


@pytest.fixture(scope="module")
def loaded():
    """A network whose variance is trained a little: it stands for one that was read from disk."""
    fresh = {NETWORK: init_params(STAGE, jax.random.key(0))}
    return jax.device_get(train(fresh, images(0), 80)[NETWORK])


def test_full_fine_tuning_lowers_both_losses(loaded):
    batch = images(1)
    before = both_losses(loaded, batch)
    tuned = train({NETWORK: loaded}, batch, 80)
    after = both_losses(tuned[NETWORK], batch)
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]


def test_an_adapter_lowers_both_losses_and_leaves_the_base(loaded):
    batch = images(1)
    before = both_losses(loaded, batch)
    kept = jax.tree.map(np.copy, loaded)
    frozen = Frozen(network=jax.tree.map(jnp.asarray, loaded))
    start = {LORA: init_lora(loaded, ADAPTER, jax.random.key(1))}
    tuned = train(start, batch, 80, frozen, ADAPTER, rate=1e-2)
    assert set(tuned) == {LORA}
    after = both_losses(merge_lora(loaded, tuned[LORA], ADAPTER.scale), batch)
    assert after[0] < 0.95 * before[0]
    assert after[1] < 0.95 * before[1]
    jax.tree.map(np.testing.assert_array_equal, frozen.network, kept)
    size = sum(leaf.size for leaf in jax.tree.leaves(tuned))
    assert size < 0.1 * sum(leaf.size for leaf in jax.tree.leaves(loaded))


def test_without_the_bound_the_variance_is_left_alone(loaded):
    """The other half of the hybrid loss: eps alone gives the variance's channels no gradient."""
    plain = Stage(**{**STAGE.__dict__, "loss": Loss()})
    optimizer = OptimizerConfig("sgd", 1.0, warmup_steps=0)
    state = init_state({NETWORK: loaded}, make_optimizer(optimizer), with_ema=False)
    after, _ = make_step(plain, optimizer)(state, images(1), jax.random.key(3))
    for name in ("kernel", "bias"):
        old, new = loaded["conv_out"][name], after.params[NETWORK]["conv_out"][name]
        np.testing.assert_array_equal(new[..., 3:], old[..., 3:])
        assert np.abs(new[..., :3] - old[..., :3]).max() > 0
