"""The safety checker of Stable Diffusion, as diffusers saves it: a CLIP vision tower, and concepts
as embeddings with a threshold each.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from imagen_jax.convert.clip import UNUSED, clip_layout, clip_shapes, config_from_huggingface
from imagen_jax.convert.fields import read_config
from imagen_jax.models.clip import ClipConfig
from imagen_jax.storage.layout import Tensors
from imagen_jax.storage.layout_files import read_layout
from imagen_jax.storage.safetensors import open_model
from imagen_jax.typing import Params

# Ours -> theirs.
CONCEPTS = {
    "concepts": "concept_embeds",
    "thresholds": "concept_embeds_weights",
    "special": "special_care_embeds",
    "special_thresholds": "special_care_embeds_weights",
}
PREFIX = "vision_model."  # which releases before transformers 5 have twice
MOST_CONCEPTS = 100_000


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """params: {"vision": ...}. concepts [number, embedding_dim] and thresholds [number], of the
    cosine; special: those that make the others stricter where they are found.
    """

    config: ClipConfig
    params: Params
    concepts: np.ndarray
    thresholds: np.ndarray
    special: np.ndarray
    special_thresholds: np.ndarray


def is_safety_checker(directory: str | os.PathLike) -> bool:
    """Whether a folder of transformers' has concepts among its weights; errors of `open_model`."""
    return CONCEPTS["concepts"] in open_model(directory)


def read_safety_checker(directory: str | os.PathLike) -> SafetyChecker:
    """From config.json and model.safetensors.

    Raises:
        FileNotFoundError: the folder lacks one of them.
        ValueError: they are damaged, pickled, or do not fit each other; the message names the
            tensors.
    """
    config = read_config(directory, "a safety checker", config_from_huggingface)
    files: Mapping[str, Any] = open_model(directory)
    twice = any(name.startswith(2 * PREFIX) for name in files)
    if twice:
        files = {
            name.removeprefix(PREFIX if name.startswith(2 * PREFIX) else ""): tensor
            for name, tensor in files.items()
        }
    layout = {k: v for k, v in clip_layout(config).items() if k.startswith("vision/")}
    layout |= {f"vision/{ours}": Tensors((theirs,)) for ours, theirs in CONCEPTS.items()}
    shapes = {**clip_shapes(config)["vision"], **_shapes(files, config.embedding_dim)}
    where = os.fspath(directory)
    params = read_layout(layout, files, {"vision": shapes}, where=where, ignored=UNUSED)["vision"]
    concepts = {ours: np.asarray(params.pop(ours)) for ours in CONCEPTS}
    return SafetyChecker(config, {"vision": params}, **concepts)


def _shapes(files: Mapping[str, Any], width: int) -> Params:
    """Of the concepts: how many there are, only the file knows."""
    shapes = {}
    for name in ("concepts", "special"):
        found = files.get(CONCEPTS[name])
        count = 0 if found is None or len(found.shape) != 2 else found.shape[0]
        count = min(count, MOST_CONCEPTS)
        shapes[name] = jax.ShapeDtypeStruct((count, width), np.float32)
        thresholds = "thresholds" if name == "concepts" else "special_thresholds"
        shapes[thresholds] = jax.ShapeDtypeStruct((count,), np.float32)
    return shapes
