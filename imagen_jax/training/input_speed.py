"""How fast a run's input is without its network: from a set in memory through loader and feed."""

import time

import jax
import numpy as np

from imagen_jax.data import ArraySource
from imagen_jax.devices.sharding import make_mesh
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.batches import make_batches
from imagen_jax.training.feed import Feed
from imagen_jax.training.run_config import RunConfig

FORMS = ("face {}, {} style", "红心{}，{}风格")
STYLES = ("flat", "3d", "outline", "classic")


def captioned_noise(count: int, side: int) -> ArraySource:
    """uint8 noise [count, side, side, 3]; each image has a weight, and a caption for each style and
    language, as icons have.
    """
    rng = np.random.default_rng(0)
    forms = [form.format("{}", style) for form in FORMS for style in STYLES]
    return ArraySource(
        rng.integers(0, 256, (count, side, side, 3), np.uint8),
        [[(form.format(number), 1.0) for form in forms] for number in range(count)],
        extra={"weight": rng.uniform(0.2, 1.0, count)},
    )


def input_speed(
    config: RunConfig,
    encoder: TextEncoder | None,
    source: ArraySource,
    steps: int = 100,
    warm_up: int = 20,
) -> dict[str, float]:
    """images_per_second, by the clock, and images_per_processor_second, over all threads, of the
    batches that the trainer would get from this set, on its devices.
    """
    mesh = make_mesh(config.mesh)
    feed = Feed(make_batches(config, encoder, source, mesh=mesh), 0, None, (), mesh)
    for _ in range(warm_up):
        feed.next()
    jax.block_until_ready(feed.batch)
    began, worked = time.perf_counter(), time.process_time()
    for _ in range(steps):
        jax.block_until_ready(feed.next())
    images = steps * config.batch_size
    return {
        "images_per_second": images / (time.perf_counter() - began),
        "images_per_processor_second": images / (time.process_time() - worked),
    }
