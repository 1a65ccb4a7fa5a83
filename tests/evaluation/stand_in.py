"""Feature networks that cost nothing: random projections of small images and of letters."""

import hashlib
from dataclasses import dataclass

import numpy as np

from imagen_jax.images.pixels import resize


@dataclass(frozen=True)
class StandIn:
    """Counts the images that it has seen in `seen`."""

    kind: str
    name: str
    fingerprint: str = "0123"
    dim: int = 6
    side: int = 4
    seen: list = None

    def images(self, images):
        if self.seen is not None:
            self.seen.append(len(images))
        small = np.stack([resize(image, 4) for image in images]).reshape(len(images), -1)
        weights = np.random.default_rng(1).normal(size=(small.shape[1], self.dim))
        return (small / 127.5 @ weights).astype(np.float32)

    def texts(self, texts):
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        rows = [np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]
        return np.asarray(rows, np.float32)

    def describe(self):
        names = ("kind", "name", "fingerprint", "dim", "side")
        return {name: getattr(self, name) for name in names}


def inception(**more) -> StandIn:
    return StandIn("inception", "random-inception", **more)


def clip(**more) -> StandIn:
    return StandIn("clip", "tiny-clip", **more)
