"""A program, of one of several processes: batches of a set on their devices are those sent.

python tests/training/hosts_on_device.py --address=HOST:PORT --processes=2 --process=0
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from imagen_jax.benchmark.input import captioned_noise
from imagen_jax.devices.hosts import Launch, join_hosts
from imagen_jax.devices.sharding import make_mesh
from imagen_jax.training import batches, build
from imagen_jax.training.config import apply_overrides, load_config
from imagen_jax.training.feed import Feed
from imagen_jax.training.run_config import read_config

SET = {"data.source": "memory", "data.flip": "True", "data.weights": "True"}


def feed(on_device: bool) -> Feed:
    raw = load_config(Path(__file__).parent / "tiny_config.py")
    apply_overrides(raw, {**SET, "data.on_device": str(on_device)})
    config = read_config(raw)
    encoder, mesh = build.make_text_encoder(config), make_mesh(config.mesh)
    stream = batches.make_batches(config, encoder, captioned_noise(23, 8), mesh=mesh)
    return Feed(stream, 0, None, (), mesh)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in (("address", str), ("processes", int), ("process", int)):
        parser.add_argument(f"--{name}", type=kind)
    given = parser.parse_args()
    join_hosts(Launch(given.address, given.processes, given.process, 10, 60))
    sent, kept = feed(False), feed(True)
    for _ in range(3):
        assert sent.batch.keys() == kept.batch.keys()
        for name, values in sent.batch.items():
            assert values.sharding == kept.batch[name].sharding
            pairs = zip(values.addressable_shards, kept.batch[name].addressable_shards, strict=True)
            assert all(np.array_equal(left.data, right.data) for left, right in pairs)
        sent.next(), kept.next()
    print("the same on", jax.process_count(), "hosts")
