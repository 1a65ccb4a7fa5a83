"""Trains a text encoder from scratch to guess the picture from the caption, without a U-Net.

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

CONFIG = flags.DEFINE_string("config", None, "Config of a stage with network.draft.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where to write the checkpoint.", required=True)
STEPS = flags.DEFINE_integer("steps", 10_000, "Optimizer steps.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Pictures a step.", lower_bound=1)
INIT_FROM = flags.DEFINE_string("init_from", None, "Workdir of an earlier run to go on from.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")


def main(overrides: dict[str, str]) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    from imagen_jax import models, text
    from imagen_jax.compilation_cache import use_compilation_cache
    from imagen_jax.models import t5
    from imagen_jax.stage import init_params
    from imagen_jax.training import build
    from imagen_jax.training import config as config_room
    from imagen_jax.training.batches import make_batches
    from imagen_jax.training.checkpoint import Checkpoints, check_weights
    from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
    from imagen_jax.training.state import NETWORK, TEXT_ENCODER, TrainState
    from imagen_jax.training.step import to_images

    logging.set_verbosity(logging.WARNING)
    raw = config_room.load_config(CONFIG.value)
    config_room.apply_overrides(raw, {**overrides, "batch_size": str(BATCH_SIZE.value)})
    config = build.read_config(raw)
    stage, network = config.stage, config.stage.network
    if not getattr(network, "draft", False):
        raise ValueError(f"{CONFIG.value}: stage.network.draft is not True, so nothing to train")
    encoder = build.make_text_encoder(config)
    steps, warmup = STEPS.value, min(200, STEPS.value - 1)
    optimizer = make_optimizer(
        OptimizerConfig("adamw", LEARNING_RATE.value, warmup, steps, b2=0.99, clip_norm=1.0)
    )
    key = jax.random.key(config.seed)
    parameters = init_params(stage, jax.random.fold_in(key, 0))
    trained = {
        "draft": parameters["draft"],
        TEXT_ENCODER: t5.init(encoder.config, jax.random.fold_in(key, 1)),
    }
    if INIT_FROM.value is not None:
        stored = Checkpoints(Path(INIT_FROM.value) / "checkpoints", read_only=True)
        earlier = stored.read_parameters("params")[1]
        earlier = {"draft": earlier[NETWORK]["draft"], TEXT_ENCODER: earlier[TEXT_ENCODER]}
        check_weights(trained, earlier, f"the weights in {INIT_FROM.value}")
        trained = jax.tree.map(jnp.asarray, earlier)
    opt_state = optimizer.init(trained)
    use_compilation_cache()

    @jax.jit
    def step(trained, opt_state, batch):
        def loss(trained):
            embeddings = text.encode_tokens(
                encoder.config, trained[TEXT_ENCODER], batch["ids"], batch["mask"]
            )
            guess = models.draft(network, trained, embeddings, stage.resolution)
            return jnp.mean(jnp.square(guess - to_images(batch["image"])))

        value, grads = jax.value_and_grad(loss)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, value

    stream = make_batches(config, encoder)(0, None)
    began, losses = time.monotonic(), []
    for number in range(1, steps + 1):
        trained, opt_state, value = step(trained, opt_state, next(stream))
        losses.append(value)
        if number % 500 == 0 or number == steps:
            mean = float(jnp.mean(jnp.stack(losses)))
            rate = number / (time.monotonic() - began)
            left = (steps - number) / rate
            print(
                f"step {number:,}/{steps:,} | mean squared error {mean:.4f} | "
                f"{rate * BATCH_SIZE.value:.0f} images/s | {left:.0f} s left",
                flush=True,
            )
            if not mean < float("inf"):
                raise ValueError(f"the loss is {mean}: try a lower --learning_rate")
            losses = []
    parameters = {
        NETWORK: {**parameters, "draft": trained["draft"]},
        TEXT_ENCODER: trained[TEXT_ENCODER],
    }
    workdir = Path(WORKDIR.value).absolute()
    description = build.describe(config, encoder, raw)
    build.write_description(workdir, description, encoder)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1, keep_best=0)
    state = TrainState(jnp.asarray(steps, jnp.int32), parameters, None, ())
    checkpoints.save(steps, state, run=dict(description, step=steps), loss=mean)
    checkpoints.wait()
    checkpoints.close()
    print(f"wrote {workdir}")


if __name__ == "__main__":
    from imagen_jax.training.config import split_overrides

    rest, overrides = split_overrides(sys.argv)
    app.run(lambda argv: main(overrides), argv=rest)
