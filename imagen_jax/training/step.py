"""The train step (arXiv 2205.11487, section 2): the same function in training, benchmarks and
planning.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_jax import models
from imagen_jax.cascade.stage import Stage, apply_network, null_label
from imagen_jax.devices.cpu_loops import fast_in_loops
from imagen_jax.devices.sharding import batch_sharding, gather_shards
from imagen_jax.diffusion.augmentation import augment, downsample, sample_levels, upsample
from imagen_jax.diffusion.losses import diffusion_loss
from imagen_jax.diffusion.process import add_noise, convert
from imagen_jax.diffusion.schedules import training_time
from imagen_jax.images.pixels import to_float
from imagen_jax.models.lora import LoraConfig
from imagen_jax.text import encoder as text_encoder
from imagen_jax.training.distillation import make_target, step_times
from imagen_jax.training.run_config import DistillConfig, PriorConfig, RunConfig
from imagen_jax.training.state import (
    NETWORK,
    Frozen,
    TrainState,
    encoder_params,
    network_params,
)
from imagen_jax.training.update import apply_gradient
from imagen_jax.typing import Gather, Images, Keys, Params, TextEmbeddings

TIME_BINS = 10
Batch = dict[str, Array]


def sample_times(key: Keys, batch: int, stage: Stage) -> Float[Array, " batch"]:
    """One t for each example: u in each of `batch` equal parts of [0, 1) (arXiv 2107.00630, I.1),
    made t as the stage says; which example gets which part is random.
    """
    offset_key, order_key = jax.random.split(key)
    offset = jax.random.uniform(offset_key, (), jnp.float32)
    even = (jnp.arange(batch, dtype=jnp.float32) + offset) / batch
    uniform = jax.random.permutation(order_key, even)
    if stage.time_logit_normal is None:
        return uniform**stage.time_power
    mean, deviation = stage.time_logit_normal
    normal = jax.scipy.special.ndtri(jnp.clip(uniform, 1e-6, 1.0 - 1e-6))
    return jax.nn.sigmoid(mean + deviation * normal)


def sample_batch_times(
    key: Keys, batch: int, stage: Stage, prior: PriorConfig | None
) -> Float[Array, " batch"]:
    """`sample_times`; with a prior, for each of the two image sets by itself."""
    if prior is None:
        return sample_times(key, batch, stage)
    (key, prior_key), rows = jax.random.split(key), prior.rows(batch)
    times = sample_times(key, batch - rows, stage)
    return jnp.concatenate([times, sample_times(prior_key, rows, stage)])


def mean_losses(losses: Float[Array, " batch"], prior: PriorConfig | None) -> dict[str, Array]:
    """The loss to minimize; with a prior also the mean of each image set.

    Prior preservation (arXiv 2208.12242, eq. 2): the last rows of each batch are the prior's
    images, and their mean loss counts `prior.weight` times.
    """
    if prior is None:
        return {"loss": losses.mean()}
    rows = prior.rows(len(losses))
    instance, kept = losses[:-rows].mean(), losses[-rows:].mean()
    total = instance + prior.weight * kept
    return {"loss": total, "loss_instance": instance, "loss_prior": kept}


def prior_weights(batch: int, prior: PriorConfig | None) -> Float[Array, " batch"]:
    """The weight of each example's loss in that of `mean_losses`."""
    if prior is None:
        return jnp.full(batch, 1 / batch)
    rows = prior.rows(batch)
    instances = batch - rows
    return jnp.where(jnp.arange(batch) < instances, 1 / instances, prior.weight / rows)


def drop_text(
    text: TextEmbeddings, drop: Array, null: TextEmbeddings | None = None
) -> TextEmbeddings:
    """Null text where `drop` is True: a batch of one, or zeros (section 2.2) when None."""
    if null is None:
        null = text_encoder.null_text(1, *text.values.shape[1:])
    values = jnp.where(drop[:, None, None], null.values, text.values)
    return TextEmbeddings(values, jnp.where(drop[:, None], null.mask, text.mask))


class RandomInputs(NamedTuple):
    """What is random in a step, one row an example. level, noise: of the low-resolution input.
    dropout: the network's keys, where it drops anything. s: in a distillation, where the step from
    t leads to.
    """

    t: Float[Array, " batch"]
    eps: Images
    drop: Bool[Array, " batch"]
    level: Float[Array, " batch"] | None = None
    noise: Images | None = None
    dropout: Keys | None = None
    s: Float[Array, " batch"] | None = None


def random_inputs(
    stage: Stage, key: Keys, shape: tuple[int, ...], dropout: float, prior: PriorConfig | None
) -> RandomInputs:
    """What is random in a step on images of this shape."""
    time_key, eps_key, drop_key, level_key, noise_key, dropout_key = jax.random.split(key, 6)
    times = sample_batch_times(time_key, shape[0], stage, prior)
    inputs = RandomInputs(
        t=training_time(stage.schedule, times),
        eps=jax.random.normal(eps_key, shape, jnp.float32),
        drop=jax.random.uniform(drop_key, shape[:1]) < dropout,
    )
    if getattr(stage.network, "dropout", 0):
        inputs = inputs._replace(dropout=jax.random.split(dropout_key, shape[0]))
    if stage.low_resolution is None:
        return inputs
    levels = sample_levels(level_key, shape[0], *stage.aug_levels)
    return inputs._replace(
        level=training_time(stage.aug_schedule, levels),
        noise=jax.random.normal(noise_key, shape, jnp.float32),
    )


def batch_text(
    encoder: text_encoder.TextEncoder | None,
    params: Params,
    batch: Batch,
    frozen: Frozen,
    gather: Gather | None = None,
) -> tuple[TextEmbeddings, TextEmbeddings | None]:
    """The texts of a batch, and the null text where it is not zeros."""
    encoded_null = encoder is not None and encoder.null == "empty"
    if "text" in batch:
        if encoded_null:
            raise ValueError(
                "The null text is the encoded empty prompt: train on captions, not on embeddings."
            )
        return TextEmbeddings(batch["text"].astype(jnp.float32), batch["mask"]), None
    weights = encoder_params(params, frozen)
    text = text_encoder.encode_tokens(
        encoder.config, weights, batch["ids"], batch["mask"], encoder.padding, gather
    )
    return text, text_encoder.unconditional(encoder, weights, gather) if encoded_null else None


def make_losses(
    stage: Stage,
    encoder: text_encoder.TextEncoder | None,
    mesh: jax.sharding.Mesh | None = None,
    lora: LoraConfig | None = None,
    distill: DistillConfig | None = None,
) -> Callable:
    """(params, batch, random, frozen) -> the loss of each example."""
    target = None if distill is None else make_target(distill, stage)
    gather = None if mesh is None else partial(gather_shards, mesh=mesh)
    attention = models.fused_attention(mesh)

    def losses(params: Params, batch: Batch, random: RandomInputs, frozen: Frozen):
        if lora is not None:
            params = {NETWORK: network_params(params, frozen, lora)}
        network = models.compute_params(stage.network, params[NETWORK])
        if mesh is not None:
            # Random numbers have no sharding yet: XLA would split them along the pixels.
            batch, random = jax.lax.with_sharding_constraint((batch, random), batch_sharding(mesh))
        x0 = to_float(batch["image"])
        conditions, null = {}, None
        if stage.low_resolution is not None:
            side = x0.shape[1]
            low_res = downsample(x0, side * stage.low_resolution // stage.resolution)
            low_res = upsample(low_res, side, stage.upsampling)
            low_res = augment(low_res, random.level, random.noise, stage.aug_schedule)
            conditions = {"low_res": low_res, "aug_level": random.level}
        if stage.conditioning == "text":
            text, null = batch_text(encoder, params, batch, frozen, gather)
            conditions["text"] = drop_text(text, random.drop, null)
        elif stage.conditioning == "label":
            label = jnp.where(random.drop, null_label(stage, x0.shape[0]), batch["label"])
            conditions["label"] = label
        t, eps = random.t, random.eps
        x_t = add_noise(x0, eps, stage.schedule.logsnr(t), stage.schedule)
        network = models.TrainingParams(network, gather, random.dropout, attention)
        if target is not None:
            x0 = target(network, frozen.teacher, x_t, (t, random.s), conditions, null)
            eps = convert(x0, x_t, stage.schedule.logsnr(t), "x0", "eps", stage.schedule)
        s = random.s if stage.is_flow_map else None
        output = apply_network(stage, network, x_t, t, s, **conditions)
        return diffusion_loss(output, stage.prediction, x0, eps, t, stage.schedule, stage.loss)

    return losses


def split_rows(tree: Any, count: int) -> Any:
    """Each [batch, ...] as `count` micro-batches, [count, batch / count, ...]: micro-batch i has
    every count-th row from i on, so that each row stays on its device.
    """
    return jax.tree.map(
        lambda rows: jnp.swapaxes(rows.reshape(-1, count, *rows.shape[1:]), 0, 1), tree
    )


def accumulated(gradient: Callable, count: int, platform: str) -> Callable:
    """The same (gradient, loss of each example) of a batch, by way of `count` micro-batches: of
    (params, rows, frozen), where weights make the gradient a sum over rows.
    """
    compute = fast_in_loops(gradient) if platform == "cpu" else gradient

    def whole(params: Params, rows: tuple, frozen: Frozen):
        def add(summed, micro_batch):
            grads, losses = compute(params, micro_batch, frozen)
            return jax.tree.map(jnp.add, summed, grads), losses

        zero = jax.tree.map(jnp.zeros_like, params)
        grads, losses = jax.lax.scan(add, zero, split_rows(rows, count))
        return grads, jnp.swapaxes(losses, 0, 1).reshape(-1)

    return whole


def make_train_step(
    config: RunConfig,
    encoder: text_encoder.TextEncoder | None,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """(state, batch, key, frozen) -> (state, metrics), to be jitted with the state donated.

    batch: "image" uint8 [B,H,W,3], and "ids" with "mask", or "text" with "mask", or "label".
    frozen: what is read and not trained; beside an adapter, the network. metrics: loss (with a
    prior that of each image set, too), grad_norm, and loss_by_t, count_by_t: sums of the loss and
    numbers of examples in ten equal parts of t. With `optimizer.accumulation` the batch goes
    through the network in that many micro-batches, one after the other, to save memory; the update
    is that of the whole batch. `mesh`: where it runs, None on one device.
    """
    stage, prior, accumulation = config.stage, config.data.prior, config.optimizer.accumulation
    dropout = config.label_dropout if encoder is None else config.text.dropout
    example_losses = make_losses(stage, encoder, mesh, config.lora, config.distill)

    def weighted_loss(params: Params, rows: tuple, frozen: Frozen):
        batch, random, weights = rows
        losses = example_losses(params, batch, random, frozen)
        return losses @ weights, losses

    gradient = jax.grad(weighted_loss, has_aux=True)
    if accumulation > 1:
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        gradient = accumulated(gradient, accumulation, platform)

    def train_step(
        state: TrainState, batch: Batch, key: Keys, frozen: Frozen = Frozen()
    ) -> tuple[TrainState, dict[str, Any]]:
        random = random_inputs(stage, key, batch["image"].shape, dropout, prior)
        if config.distill is not None:
            t, s = step_times(config.distill, key, random.t, state.step / config.num_steps)
            random = random._replace(t=t, s=s)
        rows = batch, random, prior_weights(len(batch["image"]), prior)
        grads, losses = gradient(state.params, rows, frozen)
        state, norm = apply_gradient(config.optimizer, state, grads, config.ema_decay, mesh)
        bins = jax.nn.one_hot((random.t * TIME_BINS).astype(jnp.int32), TIME_BINS)
        metrics = {
            **mean_losses(losses, prior),
            "grad_norm": norm,
            "loss_by_t": losses @ bins,
            "count_by_t": bins.sum(0),
        }
        return state, metrics

    return train_step
