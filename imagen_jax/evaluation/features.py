"""Feature vectors of images and captions, by frozen networks, on all devices of this host."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from imagen_jax.devices.compile_options import program
from imagen_jax.evaluation.resizing import RESIZES
from imagen_jax.models import clip, dinov2, inception
from imagen_jax.storage import fingerprints
from imagen_jax.storage.codec import require
from imagen_jax.text.clip_tokenizer import tokenize
from imagen_jax.typing import Images, Params, Tokens

Kind = Literal["inception", "clip", "dinov2"]
NetworkConfig = clip.ClipConfig | dinov2.Dinov2Config | None  # None: Inception, without choices
CONFIGS: dict[Kind, type] = {
    "inception": type(None),
    "clip": clip.ClipConfig,
    "dinov2": dinov2.Dinov2Config,
}
# The ways that images come to each network's size; the first is that of the metric's paper.
RESIZES_OF: dict[Kind, tuple[str, ...]] = {
    "inception": ("legacy_tensorflow", "pytorch_fid", "clean"),
    "clip": ("clip",),
    "dinov2": ("dgm_eval", "edm2"),
}
AXIS = "images"  # of the mesh that a batch is split over


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network and its weights, before it is on any device."""

    name: str
    config: NetworkConfig
    params: Params
    directory: Path | None = None  # that has the tokenizer, if there is one

    @property
    def kind(self) -> Kind:
        """Which network it is, a key of CONFIGS."""
        return next(kind for kind, cls in CONFIGS.items() if isinstance(self.config, cls))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with any of the weights, not with the form that they were read from."""
        return fingerprints.of_parameters({self.kind: self.params})


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureExtractor(FeatureNetwork):
    """A network with its weights on devices, and the way that images come to its size.

    `feature_files.load_extractor` makes one. `batch_size` images go through the network at once,
    split over the devices of `mesh`; the last batch is filled up, so that one program serves all.
    """

    resize: str  # one of `resizing.RESIZES`
    mesh: Mesh
    batch_size: int

    @property
    def dim(self) -> int:
        """The number of values of a feature."""
        return inception.POOLED if self.config is None else self.config.embedding_dim

    @property
    def side(self) -> int:
        """The side of the images that the network sees, in pixels."""
        return inception.SIDE if self.config is None else self.config.image_size

    def images(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """float32 [images, dim] of uint8 RGB images [height, width, 3], of any sizes.

        CLIP's are not normalized. Raises ValueError for an image of another type or shape.
        """
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
                raise ValueError(
                    f"Image {index} is {image.dtype} {list(image.shape)}; it must be uint8 "
                    "[height, width, 3]."
                )
        return self._run(image_features, images, self._pixels)

    def _pixels(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """float32 [images, side, side, 3] in the network's range."""
        resize = RESIZES[self.resize]
        pixels = np.stack([resize(one, self.side) for one in images]).astype(np.float32)
        if self.config is not None:
            return pixels / 255
        # TensorFlow's graph subtracts 128 and divides by 128; pytorch-fid maps 255 to 1.
        return pixels / 127.5 - 1 if self.resize == "pytorch_fid" else (pixels - 128) / 128

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dim], not normalized. ValueError for a network that reads no text."""
        if self.kind != "clip" or self.directory is None:
            raise ValueError(f"{self.name} ({self.kind}) reads no text; a CLIP model does.")
        if isinstance(texts, str):
            raise ValueError(f"texts is the string {texts!r}; give a list of strings.")
        ids = tokenize(self.directory, self.config.vocab_size, self.config.max_length, texts)
        return self._run(text_features, ids, np.asarray)

    def describe(self) -> dict[str, Any]:
        """What decides the features, as JSON values for a report."""
        names = ("kind", "name", "fingerprint", "resize", "side", "dim")
        about = {name: getattr(self, name) for name in names}
        # Without CLIP's: the references that there are do not have it.
        return about | ({"config": asdict(self.config)} if self.kind == "dinov2" else {})

    @property
    def identity(self) -> str:
        """`describe` as text: features of another identity do not compare."""
        return json.dumps(self.describe(), sort_keys=True)

    def _run(
        self,
        compute: Callable[[NetworkConfig, Params, jax.Array], jax.Array],
        items: Sequence | np.ndarray,
        prepare: Callable[[Sequence | np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """The features of all items. The next batch is prepared while the devices compute one."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        done = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(items), self.batch_size):
            batch = prepare(items[start : start + self.batch_size])
            padding = np.repeat(batch[:1], self.batch_size - len(batch), axis=0)
            placed = jax.device_put(np.concatenate([batch, padding]), sharding)
            done.append(compute(self.config, self.params, placed))
            done[-2] = np.asarray(done[-2])  # waits for the batch before
        return np.concatenate(done)[: len(items)]


def make_extractor(
    network: FeatureNetwork,
    *,
    resize: str | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 32,
) -> FeatureExtractor:
    """A network with its parameters on this host's devices of `mesh` (None: on all).

    Args:
        resize: one of the network's in `RESIZES_OF`; None is the first of them.
        batch_size: images that go through the network at once, rounded up to equal shares for the
            devices.

    Raises:
        ValueError: the network has no such resize, or the batch size is not positive.
    """
    known = RESIZES_OF[network.kind]
    resize = known[0] if resize is None else resize
    require(
        (resize in known, f"{network.name} has no resize {resize!r}; it has {', '.join(known)}."),
        (batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1."),
    )
    devices = jax.devices() if mesh is None else mesh.devices.flat
    local = [device for device in devices if device.process_index == jax.process_index()]
    mesh = Mesh(np.array(local), (AXIS,))
    return FeatureExtractor(
        network.name,
        network.config,
        jax.device_put(network.params, NamedSharding(mesh, PartitionSpec())),
        network.directory,
        resize=resize,
        mesh=mesh,
        batch_size=-(-batch_size // len(local)) * len(local),
    )


# Float32 products throughout: on TPUs and GPUs the default drops digits that the metrics need.


@program(static_argnums=0)
def image_features(
    config: NetworkConfig, params: Params, images: Images
) -> Float[Array, "batch dim"]:
    """Features of images at the network's size: Inception's in [-1, 1], others' in [0, 1]."""
    with jax.default_matmul_precision("highest"):
        if config is None:
            return inception.apply(params, images).pooled
        network = clip if isinstance(config, clip.ClipConfig) else dinov2
        return network.embed_images(config, params, images)


@program(static_argnums=0)
def text_features(
    config: clip.ClipConfig, params: Params, ids: Tokens
) -> Float[Array, "batch dim"]:
    """Features of token ids."""
    with jax.default_matmul_precision("highest"):
        return clip.embed_texts(config, params, ids)
