"""Feature networks that cost nothing: random projections of small images and of letters."""

import hashlib

import numpy as np

from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.images.pixels import resize
from imagen_jax.models.dinov2 import Dinov2Config


class StandIn(FeatureExtractor):
    """Counts the images that it has seen in `seen`."""

    kind = dim = side = None  # properties of a real network

    def __init__(self, kind, name, fingerprint="0123", dim=6, side=4, seen=None):
        vars(self).update(
            kind=kind,
            config=Dinov2Config(),
            name=name,
            fingerprint=fingerprint,
            resize=None,
            dim=dim,
            side=side,
            seen=seen,
        )

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


def inception(**more) -> StandIn:
    return StandIn("inception", "random-inception", **more)


def clip(**more) -> StandIn:
    return StandIn("clip", "tiny-clip", **more)


def dinov2(**more) -> StandIn:
    return StandIn("dinov2", "dinov2-large", **more)
