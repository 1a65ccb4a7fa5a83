"""Runs that go on from a tiny model with random parameters, as scripts/train.py makes them."""

import jax
import numpy as np
from tiny_cascade import random_params

from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.data import ArraySource
from imagen_jax.devices.hosts import place
from imagen_jax.devices.sharding import MeshConfig, make_mesh, state_shardings
from imagen_jax.pipeline.model_directory import Stored, write_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.checkpoint import Checkpoints
from imagen_jax.training import batches, build
from imagen_jax.training.loop import Run, train
from imagen_jax.training.run_config import read_config
from imagen_jax.training.state import NETWORK, Frozen
from tests.training.test_config import tiny

LORA = {"rank": 2, "alpha": 4.0}


def tiny_model(seed: int = 0) -> Pipeline:
    """The model of tiny_config.py, no parameter of it zero."""
    config = read_config(tiny())
    cascade = build.make_cascade(config, build.make_text_encoder(config))
    params = jax.tree.map(lambda leaf: leaf / 2, random_params(cascade, seed))
    return Pipeline(cascade, params, name="tiny")


def save(pipeline: Pipeline, directory) -> str:
    write_model(directory, pipeline.cascade, pipeline.params, Stored("float32"))
    return str(directory)


def images(count: int = 12, seed: int = 0) -> ArraySource:
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return ArraySource(images, [[(f"no {i}", 1.0)] for i in range(count)])


def lora_config(base: str, **overrides):
    """tiny_config.py with an adapter to the model in the directory `base`."""
    raw = tiny(
        init_from=repr(base),
        text__init_from=repr(base),
        text__trainable="False",
        data__source="memory",
        lora=repr(LORA),
        optimizer__learning_rate="1e-2",
        **overrides,
    )
    return raw


def run(raw, model: Pipeline, workdir, mesh: MeshConfig = MeshConfig(1), devices: int = 1):
    """The state after training by `raw`, from the parameters of `model`."""
    config = read_config(raw)
    encoder = build.make_text_encoder(config)
    mesh = make_mesh(mesh, jax.devices()[:devices])
    train_step, init, shapes = build.make_training(config, encoder, mesh)
    frozen = Frozen(
        None if shapes.network is None else model.params[config.stage.name],
        None if shapes.text_encoder is None else model.params[TEXT_ENCODER],
    )
    weights = None if config.lora else {NETWORK: model.params[config.stage.name]}
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = train(
        config,
        Run(
            train_step,
            init,
            mesh,
            batches.make_batches(config, encoder, images()),
            checkpoints,
            workdir,
            build.describe(config, encoder, raw),
            frozen=jax.tree.map(place, frozen, state_shardings(frozen, mesh)),
            weights=weights,
        ),
    )
    checkpoints.close()
    return state
