"""Feature vectors of pictures and captions, by frozen networks, on all devices of this host."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.evaluation.resizing import RESIZES
from imagen_jax.typing import Params

KINDS = ("inception", "clip")


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A network with its weights and the way that pictures come to its size.

    Made by `feature_files.load_extractor`. `resize` is one of `resizing.RESIZES`; `batch_size`
    pictures go through the network at once, split over the devices of `mesh`.
    """

    kind: str  # "inception" or "clip"
    name: str
    fingerprint: str
    dim: int
    side: int
    resize: str
    params: Params
    image_features: Callable[[Params, jax.Array], jax.Array]
    text_features: Callable[[Params, jax.Array], jax.Array] | None
    tokenize: Callable[[Sequence[str]], np.ndarray] | None
    mesh: Mesh
    batch_size: int = 32

    def images(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """float32 [pictures, dim] of uint8 RGB pictures [height, width, 3], of any sizes.

        Raises ValueError for a picture of another type or shape, before anything is computed.
        """
        raise NotImplementedError

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dim]. ValueError for a network that reads no text."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What decides the features, as JSON values for a report."""
        return {
            "kind": self.kind,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "resize": self.resize,
            "side": self.side,
        }
