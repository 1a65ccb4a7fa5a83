"""Training a text encoder from scratch to guess the image from the caption, without a U-Net.

Diffusion teaches words slowly: only its noisiest steps need them, and every step pays for the
U-Net. This regression is about ten times as fast per image, and all of it is about words.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagen_jax import models
from imagen_jax.images.pixels import to_float
from imagen_jax.storage.checkpoint import Checkpoints, check_weights
from imagen_jax.storage.codec import Section
from imagen_jax.storage.folders import make_folder
from imagen_jax.text import encoder as text
from imagen_jax.training import build
from imagen_jax.training.feed import Batches
from imagen_jax.training.loop import NonFiniteError
from imagen_jax.training.metrics import Progress, progress_line
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.run_config import RunConfig, read_config
from imagen_jax.training.start import read_raw
from imagen_jax.training.state import NETWORK, TEXT_ENCODER, TrainState
from imagen_jax.typing import Params

REPORT_EVERY = 500


def read_pretraining(path: str, overrides: dict[str, str]) -> tuple[Section, RunConfig]:
    """(config as written, typed config with a text encoder that is trained).

    Raises:
        ValueError: a key is unknown or has a bad value, or the network has no draft.
    """
    raw = read_raw(path, overrides)
    config = read_config(raw)
    if not getattr(config.stage.network, "draft", False):
        raise ValueError(f"{path}: stage.network.draft is not True, so nothing to train")
    return raw, replace(config, text=replace(config.text, trainable=True))


def start_parameters(config: RunConfig, encoder: text.TextEncoder, workdir: str | None) -> Params:
    """Fresh parameters; with a `workdir` of an earlier run, its draft and text encoder.

    Raises:
        ValueError: the workdir holds no checkpoint, or its parameters do not fit the config.
    """
    params = build.init_parameters(config, encoder, jax.random.key(config.seed))
    if workdir is None:
        return params
    stored = Checkpoints(Path(workdir) / "checkpoints", read_only=True)
    earlier = stored.read_parameters("params")[1]
    found = {
        "draft": earlier[NETWORK].get("draft", {}),
        TEXT_ENCODER: earlier.get(TEXT_ENCODER, {}),
    }
    check_weights(_trained(params), found, f"the weights in {workdir}")
    return _with_trained(params, jax.tree.map(jnp.asarray, found))


def _trained(params: Params) -> Params:
    return {"draft": params[NETWORK]["draft"], TEXT_ENCODER: params[TEXT_ENCODER]}


def _with_trained(params: Params, trained: Params) -> Params:
    network = {**params[NETWORK], "draft": trained["draft"]}
    return {NETWORK: network, TEXT_ENCODER: trained[TEXT_ENCODER]}


def open_workdir(workdir: Path) -> Checkpoints:
    """The checkpoints of a workdir, which must have none yet: the best of them would be kept.

    Raises:
        ValueError: the workdir has a checkpoint, or cannot be written.
    """
    make_folder(workdir, "--workdir")
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1, keep_best=0)
    if steps := checkpoints.steps():
        raise ValueError(
            f"--workdir {workdir} has a checkpoint already (step {steps[-1]}); give a new one, and "
            f"--init_from={workdir} to continue from it"
        )
    return checkpoints


def pretrain(
    config: RunConfig,
    encoder: text.TextEncoder,
    params: Params,
    batches: Batches,
    *,
    num_steps: int,
    learning_rate: float,
    say: Callable[[str], None] = print,
) -> tuple[Params, float]:
    """The parameters after `num_steps` steps, and the mean loss since the last report but one.

    The loss is the mean squared error of the guessed image.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    warmup = min(200, num_steps - 1)
    optimizer = make_optimizer(
        OptimizerConfig("adamw", learning_rate, warmup, num_steps, b2=0.99, clip_norm=1.0)
    )

    def loss_of(trained: Params, batch: dict[str, Any]) -> jax.Array:
        embeddings = text.encode_tokens(
            encoder.config, trained[TEXT_ENCODER], batch["ids"], batch["mask"]
        )
        guess = models.draft(config.stage.network, trained, embeddings, config.stage.resolution)
        return jnp.mean(jnp.square(guess - to_float(batch["image"])))

    @jax.jit
    def update(trained: Params, opt_state: Any, batch: dict[str, Any]):
        loss, grads = jax.value_and_grad(loss_of)(trained, batch)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, loss

    trained, losses = _trained(params), []
    opt_state, stream = optimizer.init(trained), batches(0, None)
    progress = Progress(num_steps, config.batch_size)
    progress.start(0)
    for step in range(1, num_steps + 1):
        trained, opt_state, loss = update(trained, opt_state, next(stream))
        losses.append(loss)
        if step % REPORT_EVERY == 0 or step == num_steps:
            mean = float(jnp.mean(jnp.stack(losses)))
            say(progress_line(step, num_steps, {"loss": mean}, progress.report(step)))
            if not math.isfinite(mean):
                raise NonFiniteError(f"the loss is {mean}: try a lower --learning_rate")
            losses = []
    return _with_trained(params, trained), mean


def save(checkpoints: Checkpoints, params: Params, description: Any, step: int, loss: float):
    """Writes the one checkpoint of a pretraining, without average and optimizer state."""
    state = TrainState(jnp.asarray(step, jnp.int32), params, None, ())
    checkpoints.save(step, state, run=dict(description, step=step), loss=loss)
    checkpoints.close()
