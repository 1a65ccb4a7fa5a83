"""Which concepts an image shows, by CLIP: diffusers' StableDiffusionSafetyChecker, computed here.

A concept is found where the cosine of its embedding and the image's, less its threshold, is above
0, rounded to three digits. Where a special one is found, 0.01 is added for those that follow.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.convert.clip import read_clip
from imagen_jax.convert.safety_checker import (
    SafetyChecker,
    is_safety_checker,
    read_safety_checker,
)
from imagen_jax.devices.compile_options import program
from imagen_jax.images.pixels import clip_crop
from imagen_jax.models import clip
from imagen_jax.storage import fingerprints
from imagen_jax.text.clip_tokenizer import tokenize
from imagen_jax.typing import Params

CARE = 0.01  # what a special concept adds
DIGITS = 3


@dataclass(frozen=True)
class Concept:
    """text: what is looked for, or only its name where the weights have its embedding. threshold:
    of the cosine; None: that of the weights.
    """

    text: str
    threshold: float | None = None

    def __post_init__(self):
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(
                f"the threshold of {self.text!r} is {self.threshold}; a cosine is in [-1, 1]"
            )


@dataclass(frozen=True)
class Scores:
    """Of one image: the cosines of the concepts and of the special ones, and which are found."""

    cosines: dict[str, float]
    special: dict[str, float]
    found: tuple[str, ...]
    special_found: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageFilter:
    """CLIP's vision tower and the concepts, by name. adjustment: is added to all; more finds more.
    fingerprint: of the weights and embeddings.
    """

    checker: SafetyChecker
    names: tuple[str, ...]
    special_names: tuple[str, ...]
    adjustment: float
    fingerprint: str

    def scores(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Scores]:
        """Of uint8 images [height, width, 3] of any sizes; CLIP sees their centred squares."""
        return [self._judged(*cosines) for cosines in zip(*self.cosines(images), strict=True)]

    def cosines(self, images: Sequence[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [images, concepts] and [images, special concepts]."""
        checker, found = self.checker, []
        for image in images:  # one by one: one program serves any number
            pixels = clip_crop(image, checker.config.image_size)[None].astype(np.float32) / 255
            found.append(_embed_images(checker.config, checker.params, pixels))
        embeddings = _unit(np.concatenate(found))
        return embeddings @ _unit(checker.concepts).T, embeddings @ _unit(checker.special).T

    def _judged(self, cosines: np.ndarray, special: np.ndarray) -> Scores:
        checker, adjustment, cared = self.checker, self.adjustment, []
        for name, cosine, threshold in zip(
            self.special_names, special, checker.special_thresholds.tolist(), strict=True
        ):
            if round(cosine - threshold + adjustment, DIGITS) > 0:
                cared.append(name)
                adjustment = self.adjustment + CARE
        found = [
            name
            for name, cosine, threshold in zip(
                self.names, cosines, checker.thresholds.tolist(), strict=True
            )
            if round(cosine - threshold + adjustment, DIGITS) > 0
        ]
        told = (
            {name: round(float(cosine), 4) for name, cosine in zip(names, values, strict=True)}
            for names, values in ((self.names, cosines), (self.special_names, special))
        )
        return Scores(*told, tuple(found), tuple(cared))


# Float32 products throughout: on TPUs and GPUs the default drops digits that decisions need.


@program(static_argnums=0)
def _embed_images(config: clip.ClipConfig, params: Params, images: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return clip.embed_images(config, params, images)


@program(static_argnums=0)
def _embed_texts(config: clip.ClipConfig, params: Params, ids: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return clip.embed_texts(config, params, ids)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def read_image_filter(
    directory: str | os.PathLike,
    concepts: Sequence[Concept] | None,
    special: Sequence[Concept] | None,
    adjustment: float = 0.0,
) -> ImageFilter:
    """A filter of a folder in Hugging Face's layout: a safety checker's, whose concepts these name
    and may give other thresholds; or a CLIP model's with its tokenizer, which reads them as texts.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged, or the concepts do not fit.
        ModuleNotFoundError: `tokenizers` is not installed.
    """
    if not Path(directory).is_dir():
        raise FileNotFoundError(
            f"There is no folder {directory}, where a safety checker or a CLIP model should be."
        )
    if is_safety_checker(directory):
        checker = read_safety_checker(directory)
        names, thresholds = _named(directory, "concepts", concepts, checker.thresholds)
        special_names, others = _named(directory, "special", special, checker.special_thresholds)
        embedded = checker.concepts, thresholds, checker.special, others
        config, params = checker.config, checker.params
    else:
        config, params = read_clip(directory)
        given = list(concepts or ()), list(special or ())
        if not given[0]:
            raise ValueError(f"{directory} is a CLIP model: 'concepts' must say what to look for.")
        for concept in (*given[0], *given[1]):
            if concept.threshold is None:
                raise ValueError(f"the concept {concept.text!r} needs a threshold.")
        texts = [concept.text for part in given for concept in part]
        ids = tokenize(directory, config.vocab_size, config.max_length, texts)
        vectors = np.asarray(_embed_texts(config, params, ids))
        levels = np.asarray([each.threshold for part in given for each in part], np.float32)
        count = len(given[0])
        embedded = vectors[:count], levels[:count], vectors[count:], levels[count:]
        names, special_names = texts[:count], texts[count:]
        params = {"vision": params["vision"]}
    for kind, found in (("concepts", names), ("special", special_names)):
        if len(set(found)) < len(found):
            raise ValueError(f"two of the {kind} have the same text.")
    arrays = dict(zip(("concepts", "thresholds", "special", "thresholds of special"), embedded,
                      strict=True))  # fmt: skip
    fingerprint = fingerprints.of_parameters({"clip": params["vision"], "concepts": arrays})
    checker = SafetyChecker(config, jax.device_put(params), *embedded)
    return ImageFilter(checker, tuple(names), tuple(special_names), adjustment, fingerprint)


def _named(
    directory: str | os.PathLike,
    kind: str,
    given: Sequence[Concept] | None,
    thresholds: np.ndarray,
) -> tuple[list[str], np.ndarray]:
    """Names and thresholds of a checker's own concepts."""
    if given is None:
        prefix = "concept" if kind == "concepts" else "special concept"
        return [f"{prefix} {number}" for number in range(len(thresholds))], thresholds
    if len(given) != len(thresholds):
        raise ValueError(f"{directory} has {len(thresholds)} {kind}, and {len(given)} are named.")
    levels = [
        own if each.threshold is None else each.threshold
        for each, own in zip(given, thresholds.tolist(), strict=True)
    ]
    return [each.text for each in given], np.asarray(levels, np.float32)
