"""Training a text encoder from scratch to guess the image from the caption, without a U-Net.

Diffusion teaches words slowly: only its noisiest steps need them, and every step pays for the
U-Net. This regression is about ten times as fast per image, and all of it is about words.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagen_jax import models
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.images.pixels import to_float
from imagen_jax.storage.checkpoint import Checkpoints, check_weights
from imagen_jax.storage.folders import CHECKPOINTS, saved_steps, user_path
from imagen_jax.text import encoder as text
from imagen_jax.training import build, start
from imagen_jax.training.loop import Run
from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.run_config import CheckpointConfig, RunConfig, read_config
from imagen_jax.training.state import NETWORK, TEXT_ENCODER, Frozen, TrainState
from imagen_jax.typing import Params

REPORT_EVERY = 500


def read_plan(
    path: str | Path, overrides: dict[str, str], num_steps: int, learning_rate: float
) -> start.Plan:
    """A run that trains the text encoder of a config, and the network's draft.

    A network that is to have no draft is given one for this run.

    Raises:
        ValueError: a key is unknown or has a bad value, or the network is of a kind without draft.
    """
    raw = start.read_raw(path, overrides)
    config = read_config(raw)
    if not hasattr(config.stage.network, "draft"):
        raise ValueError(
            f"{path}: only an efficient_unet has the draft that the encoder is trained with"
        )
    config = replace(
        config,
        stage=replace(config.stage, network=replace(config.stage.network, draft=True)),
        num_steps=num_steps,
        optimizer=OptimizerConfig(
            "adamw", learning_rate, min(200, num_steps - 1), num_steps, b2=0.99, clip_norm=1.0
        ),
        ema_decay=None,
        log_every=REPORT_EVERY,
        checkpoint=CheckpointConfig(num_steps, keep=1, keep_best=0),
        text=replace(config.text, trainable=True, init_from=None),
        init_from=None,
        lora=None,
        sample=None,
        evaluate=None,
    )
    encoder = build.make_text_encoder(config)
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    return start.Plan(raw, config, encoder, mesh, *make_training(config, encoder), Frozen())


def make_training(config: RunConfig, encoder: text.TextEncoder) -> tuple[Callable, Callable]:
    """(train_step, init), as of `build.make_training`: the loss is the mean squared error of the
    guessed image; of the network only the draft is trained.
    """
    optimizer = make_optimizer(config.optimizer)

    def loss_of(trained: Params, batch: dict[str, Any]) -> jax.Array:
        embeddings = text.encode_tokens(
            encoder.config, trained[TEXT_ENCODER], batch["ids"], batch["mask"]
        )
        guess = models.draft(config.stage.network, trained, embeddings, config.stage.resolution)
        return jnp.mean(jnp.square(guess - to_float(batch["image"])))

    def train_step(state: TrainState, batch: dict[str, Any], key: Any, frozen: Frozen):
        trained = trained_of(state.params)
        loss, grads = jax.value_and_grad(loss_of)(trained, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params = with_trained(state.params, optax.apply_updates(trained, updates))
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, None, opt_state), metrics

    def init(key: Any) -> TrainState:
        params = build.init_parameters(config, encoder, key)
        opt_state = optimizer.init(trained_of(params))
        return TrainState(jnp.zeros((), jnp.int32), params, None, opt_state)

    return train_step, init


def trained_of(params: Params) -> Params:
    """The parameters that are trained here."""
    return {"draft": params[NETWORK].get("draft", {}), TEXT_ENCODER: params.get(TEXT_ENCODER, {})}


def with_trained(params: Params, trained: Params) -> Params:
    """`params` with those that are trained here replaced."""
    network = {**params[NETWORK], "draft": trained["draft"]}
    return {NETWORK: network, TEXT_ENCODER: trained[TEXT_ENCODER]}


def open_run(plan: start.Plan, workdir: Path, init_from: str | None) -> Run:
    """As `start.open_run`. `init_from`: a workdir whose draft and text encoder to start from.

    Raises:
        ValueError: as there; or the workdir has a checkpoint already, which would be mixed up with
            the new one.
    """
    if saved := saved_steps(workdir / CHECKPOINTS):
        raise ValueError(
            f"--workdir {workdir} has a checkpoint already (step {max(saved)}); give a "
            f"new one, and --init_from={workdir} to continue from it"
        )
    weights = None
    if init_from is not None:
        weights = plan.init(jax.random.key(plan.config.seed)).params
        earlier = Checkpoints(user_path(init_from) / CHECKPOINTS, read_only=True)
        found = trained_of(earlier.read_parameters("params")[1])
        check_weights(trained_of(weights), found, f"the weights in {init_from}")
        weights = with_trained(weights, found)
    return replace(start.open_run(plan, workdir), weights=weights, reference=None)
