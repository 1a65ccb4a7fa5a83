"""The train step (arXiv 2205.11487, section 2): the same function in training, benchmarks and
planning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from imagen_jax import text as text_room
from imagen_jax.diffusion.augmentation import augment, downsample, sample_levels, upsample
from imagen_jax.diffusion.losses import diffusion_loss
from imagen_jax.diffusion.process import add_noise
from imagen_jax.diffusion.schedules import training_time
from imagen_jax.lora import LoraConfig
from imagen_jax.stage import Stage, apply_network, null_label
from imagen_jax.text import TextEncoder
from imagen_jax.training.state import (
    NETWORK,
    Frozen,
    TrainState,
    encoder_params,
    network_params,
    update_ema,
)
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings

TIME_BINS = 10
Batch = dict[str, Array]
TrainStep = Callable[..., tuple[TrainState, dict[str, Array]]]


@dataclass(frozen=True)
class Prior:
    """The last `rows` of each batch are of the prior's pictures, and count `weight` times: prior
    preservation (arXiv 2208.12242, eq. 2).
    """

    rows: int
    weight: float = 1.0


def to_images(pixels: Array) -> Images:
    """uint8 0..255 to float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def sample_times(key: Keys, batch: int, power: float) -> Float[Array, " batch"]:
    """One t an example, one in each of `batch` equal parts of [0, 1) (arXiv 2107.00630, I.1), to
    the `power`.
    """
    offset = jax.random.uniform(key, (), jnp.float32)
    even = (jnp.arange(batch, dtype=jnp.float32) + offset) / batch
    return even**power


def sample_batch_times(
    key: Keys, batch: int, power: float, prior: Prior | None
) -> Float[Array, " batch"]:
    """`sample_times`, each kind of picture spread over the whole of [0, 1) where there are two."""
    if prior is None:
        return sample_times(key, batch, power)
    sizes = batch - prior.rows, prior.rows
    keys = jax.random.split(key)
    parts = [sample_times(k, size, power) for k, size in zip(keys, sizes, strict=True)]
    return jnp.concatenate(parts)


def mean_losses(losses: Float[Array, " batch"], prior: Prior | None) -> dict[str, Array]:
    """The loss to minimize; with a prior also its two parts."""
    if prior is None:
        return {"loss": losses.mean()}
    instance, kept = losses[: -prior.rows].mean(), losses[-prior.rows :].mean()
    total = instance + prior.weight * kept
    return {"loss": total, "loss_instance": instance, "loss_prior": kept}


def drop_text(
    text: TextEmbeddings, drop: Array, null: TextEmbeddings | None = None
) -> TextEmbeddings:
    """Null text where `drop` is True: a batch of one, or zeros (section 2.2) when None."""
    if null is None:
        null = text_room.null_text(*text.values.shape)
    values = jnp.where(drop[:, None, None], null.values, text.values)
    return TextEmbeddings(values, jnp.where(drop[:, None], null.mask, text.mask))


def batch_text(
    encoder: TextEncoder | None, params: Params, batch: Batch, frozen: Frozen | None
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
    text = text_room.encode_tokens(
        encoder.config, weights, batch["ids"], batch["mask"], encoder.padding
    )
    return text, text_room.unconditional(encoder, weights) if encoded_null else None


def make_loss(
    stage: Stage,
    encoder: TextEncoder | None,
    dropout: float,
    gather: Callable[[Params], Params] | None = None,
    lora: LoraConfig | None = None,
    prior: Prior | None = None,
) -> Callable:
    """(params, batch, key, frozen) -> (mean loss, (loss an example, t an example))."""

    def loss(params: Params, batch: Batch, key: Keys, frozen: Frozen | None):
        if lora is not None:
            params = {NETWORK: network_params(params, frozen, lora)}
        params = params if gather is None else gather(params)
        x0 = to_images(batch["image"])
        size = x0.shape[0]
        keys = iter(jax.random.split(key, 6))
        t = training_time(
            stage.schedule, sample_batch_times(next(keys), size, stage.time_power, prior)
        )
        eps = jax.random.normal(next(keys), x0.shape, jnp.float32)
        drop = jax.random.uniform(next(keys), (size,)) < dropout
        conditions = {}
        if stage.low_resolution is not None:
            level = sample_levels(next(keys), size, *stage.aug_levels)
            level = training_time(stage.aug_schedule, level)
            low_res = downsample(x0, stage.low_resolution)
            low_res = upsample(low_res, stage.resolution, stage.upsampling)
            noise = jax.random.normal(next(keys), x0.shape, jnp.float32)
            low_res = augment(low_res, level, noise, stage.aug_schedule)
            conditions = {"low_res": low_res, "aug_level": level}
        if stage.conditioning == "text":
            text, null = batch_text(encoder, params, batch, frozen)
            conditions["text"] = drop_text(text, drop, null)
        elif stage.conditioning == "label":
            conditions["label"] = jnp.where(drop, null_label(stage, size), batch["label"])
        x_t = add_noise(x0, eps, stage.schedule.logsnr(t))
        output = apply_network(stage, params[NETWORK], x_t, t, **conditions)
        losses = diffusion_loss(output, stage.prediction, x0, eps, t, stage.schedule, stage.loss)
        return mean_losses(losses, prior)["loss"], (losses, t)

    return loss


def make_train_step(
    stage: Stage,
    encoder: TextEncoder | None,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None = 0.9999,
    text_dropout: float = 0.1,
    gather: Callable[[Params], Params] | None = None,
    lora: LoraConfig | None = None,
    prior: Prior | None = None,
) -> TrainStep:
    """(state, batch, key, frozen=None) -> (state, metrics), to be jitted with the state donated.

    batch: "image" uint8 [B,H,W,3], and "ids" with "mask", or "text" with "mask", or "label".
    frozen: what is read and not trained. metrics: loss (with a prior its parts, too), grad_norm,
    and loss_by_t, count_by_t: sums of the loss and numbers of examples in ten equal parts of t.
    `gather` says how parameters are laid out while they are used (`sharding.gather_shards`).
    `lora`: the state holds an adapter to a frozen network.
    """
    loss = make_loss(stage, encoder, text_dropout, gather, lora, prior)

    def train_step(
        state: TrainState, batch: Batch, key: Keys, frozen: Frozen | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (mean, (losses, t)), grads = gradient(state.params, batch, key, frozen)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema = None if state.ema is None else update_ema(state.ema, params, step, ema_decay)
        parts = jax.nn.one_hot((t * TIME_BINS).astype(jnp.int32), TIME_BINS)
        metrics = {
            **mean_losses(losses, prior),
            "loss": mean,
            "grad_norm": optax.tree.norm(grads),
            "loss_by_t": losses @ parts,
            "count_by_t": parts.sum(0),
        }
        return TrainState(step, params, ema, opt_state), metrics

    return train_step
