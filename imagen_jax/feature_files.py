"""Feature networks on disk: a directory of config.json, safetensors and, of CLIP, a tokenizer."""

import os

from jax.sharding import Mesh

from imagen_jax.evaluation.features import FeatureExtractor


def load_extractor(
    directory: str | os.PathLike,
    *,
    resize: str | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 32,
) -> FeatureExtractor:
    """The network in a directory that scripts/convert.py wrote.

    Args:
        resize: of Inception: "legacy_tensorflow" (None), "pytorch_fid" or "clean".
        mesh: whose devices on this host share each batch; None takes all of this host's.
        batch_size: pictures that go through the network at once.

    Raises:
        FileNotFoundError, ValueError: files are missing, damaged or of something else.
    """
    raise NotImplementedError
