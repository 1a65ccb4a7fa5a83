"""Trains a text encoder from scratch to guess the image from the caption, without a U-Net.

    python scripts/pretrain_text.py --config configs/emoji_base32.py --workdir runs/text

Diffusion is a slow teacher of words: only its noisiest steps need them, and every step pays for
the U-Net. This regression is some ten times as fast an image and all of it is about words. It
writes a checkpoint with the encoder, the network's `draft` and fresh parameters for the rest, which
train.py starts from (`--config.init_from`, `--config.text.init_from`). With a pretrained encoder
(T5) there is no need of it.
"""

import sys
import time
from pathlib import Path
from typing import Any

from absl import flags, logging

from imagen_jax.commands.command_line import one_line_errors, run_configured
from imagen_jax.storage.folders import make_folder

CONFIG = flags.DEFINE_string("config", None, "Config of a stage with network.draft.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where to write the checkpoint.", required=True)
STEPS = flags.DEFINE_integer("steps", 10_000, "Optimizer steps.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images a step.", lower_bound=1)
INIT_FROM = flags.DEFINE_string("init_from", None, "Workdir of an earlier run to go on from.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")


def run(argv: list[str], overrides: dict[str, str]) -> None:
    with one_line_errors():
        from imagen_jax.data.loader import TooManyBroken
        from imagen_jax.devices.compilation_cache import use_compilation_cache
        from imagen_jax.storage.checkpoint import CheckpointError
        from imagen_jax.training import build
        from imagen_jax.training.batches import make_batches
        from imagen_jax.training.loop import NonFiniteError

    logging.set_verbosity(logging.WARNING)
    with one_line_errors(ValueError, CheckpointError):
        if len(argv) > 1:
            raise ValueError(f"unknown argument {argv[1]!r}")
        raw, config, encoder = prepare(overrides)
        parameters = start(config, encoder)
        batches = make_batches(config, encoder)(0, None)
        checkpoints = open_workdir()
        build.write_description(workdir(), build.describe(config, encoder, raw), encoder)
    use_compilation_cache()
    with one_line_errors(CheckpointError, NonFiniteError, TooManyBroken):
        parameters, loss = train(config, encoder, parameters, batches)
        save(checkpoints, parameters, build.describe(config, encoder, raw), loss)
    print(f"wrote {workdir()}")


def workdir() -> Path:
    return Path(WORKDIR.value).absolute()


def prepare(overrides: dict[str, str]) -> tuple[Any, Any, Any]:
    """(config as written, typed config, text encoder)."""
    from imagen_jax.training import build
    from imagen_jax.training import config as config_room
    from imagen_jax.training.run_config import read_config

    raw = config_room.load_config(CONFIG.value)
    config_room.apply_overrides(raw, {**overrides, "batch_size": str(BATCH_SIZE.value)})
    config = read_config(raw)
    if not getattr(config.stage.network, "draft", False):
        raise ValueError(f"{CONFIG.value}: stage.network.draft is not True, so nothing to train")
    return raw, config, build.make_text_encoder(config)


def start(config: Any, encoder: Any) -> dict[str, Any]:
    """{"network": ..., "text_encoder": ...} to begin with: fresh, or out of --init_from."""
    import jax
    import jax.numpy as jnp

    from imagen_jax.cascade.stage import init_params
    from imagen_jax.models import t5
    from imagen_jax.storage.checkpoint import Checkpoints, check_weights
    from imagen_jax.training.state import NETWORK, TEXT_ENCODER

    key = jax.random.key(config.seed)
    network = init_params(config.stage, jax.random.fold_in(key, 0))
    words = t5.init(encoder.config, jax.random.fold_in(key, 1))
    if INIT_FROM.value is not None:
        stored = Checkpoints(Path(INIT_FROM.value) / "checkpoints", read_only=True)
        earlier = stored.read_parameters("params")[1]
        wanted = {"draft": network["draft"], TEXT_ENCODER: words}
        earlier = {
            "draft": earlier[NETWORK].get("draft", {}),
            TEXT_ENCODER: earlier.get(TEXT_ENCODER, {}),
        }
        check_weights(wanted, earlier, f"the weights in {INIT_FROM.value}")
        earlier = jax.tree.map(jnp.asarray, earlier)
        network, words = {**network, "draft": earlier["draft"]}, earlier[TEXT_ENCODER]
    return {NETWORK: network, TEXT_ENCODER: words}


def open_workdir() -> Any:
    """The checkpoints of --workdir, which must be new: their weights would be the ones kept."""
    from imagen_jax.storage.checkpoint import Checkpoints

    make_folder(workdir(), "--workdir")
    checkpoints = Checkpoints(workdir() / "checkpoints", keep=1, keep_best=0)
    if steps := checkpoints.steps():
        raise ValueError(
            f"--workdir {WORKDIR.value} has a checkpoint already (step {steps[-1]}); give a new "
            f"one, and --init_from={WORKDIR.value} to go on from it"
        )
    return checkpoints


def make_step(config: Any, encoder: Any, optimizer: Any) -> Any:
    """(trained, optimizer state, batch) -> the same after a step, and the mean squared error."""
    import jax
    import jax.numpy as jnp
    import optax

    from imagen_jax import models
    from imagen_jax.images.pixels import to_float
    from imagen_jax.text import encoder as text
    from imagen_jax.training.state import TEXT_ENCODER

    @jax.jit
    def step(trained, opt_state, batch):
        def loss(trained):
            embeddings = text.encode_tokens(
                encoder.config, trained[TEXT_ENCODER], batch["ids"], batch["mask"]
            )
            guess = models.draft(config.stage.network, trained, embeddings, config.stage.resolution)
            return jnp.mean(jnp.square(guess - to_float(batch["image"])))

        value, grads = jax.value_and_grad(loss)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, value

    return step


def train(
    config: Any, encoder: Any, parameters: dict[str, Any], batches: Any
) -> tuple[dict[str, Any], float]:
    """The parameters after all steps, and the mean error of the last of them."""
    import jax.numpy as jnp

    from imagen_jax.training.loop import NonFiniteError
    from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
    from imagen_jax.training.state import NETWORK, TEXT_ENCODER

    steps, warmup = STEPS.value, min(200, STEPS.value - 1)
    optimizer = make_optimizer(
        OptimizerConfig("adamw", LEARNING_RATE.value, warmup, steps, b2=0.99, clip_norm=1.0)
    )
    step = make_step(config, encoder, optimizer)
    trained = {"draft": parameters[NETWORK]["draft"], TEXT_ENCODER: parameters[TEXT_ENCODER]}
    opt_state = optimizer.init(trained)
    began, losses = time.monotonic(), []
    for number in range(1, steps + 1):
        trained, opt_state, value = step(trained, opt_state, next(batches))
        losses.append(value)
        if number % 500 == 0 or number == steps:
            mean = float(jnp.mean(jnp.stack(losses)))
            rate = number / (time.monotonic() - began)
            print(
                f"step {number:,}/{steps:,} | mean squared error {mean:.4f} | "
                f"{rate * BATCH_SIZE.value:.0f} images/s | {(steps - number) / rate:.0f} s left",
                flush=True,
            )
            if not mean < float("inf"):
                raise NonFiniteError(f"the loss is {mean}: try a lower --learning_rate")
            losses = []
    network = {**parameters[NETWORK], "draft": trained["draft"]}
    return {NETWORK: network, TEXT_ENCODER: trained[TEXT_ENCODER]}, mean


def save(checkpoints: Any, parameters: dict[str, Any], description: Any, loss: float) -> None:
    import jax.numpy as jnp

    from imagen_jax.training.state import TrainState

    state = TrainState(jnp.asarray(STEPS.value, jnp.int32), parameters, None, ())
    checkpoints.save(STEPS.value, state, run=dict(description, step=STEPS.value), loss=loss)
    checkpoints.wait()
    checkpoints.close()


def main() -> None:
    run_configured(run, sys.argv)
