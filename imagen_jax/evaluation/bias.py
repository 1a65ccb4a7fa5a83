"""How a model's images of people, asked for without an attribute, spread over its values.

A subject's share of a value is that of its images, with Wilson's interval. The share over all
subjects is the mean of theirs, with the interval of a bootstrap over subjects, as the images of one
subject resemble each other. A subject's distance from even is the total variation, half the sum of
|share - 1 / values|, from 0 to less than 1. With few images even a model without any preference is
above 0: the report gives its expected distance, too. Intervals are of 95 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.evaluation.bias_lists import BiasLists
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.retrieval import share

RESAMPLES = 2_000
SEED = 0  # of the bootstrap, and of what an even model would show


class Asked(NamedTuple):
    """What one image is made from. attribute, value: what the prompt names, to see whether that is
    recognized; None where it names no attribute. icon: the row of the icon that shows it.
    """

    text: str
    subject: str
    attribute: str | None = None
    value: str | None = None
    icon: int | None = None


# uint8 images [prompts, H, W, 3] and their prompts -> by attribute the place of each one's value.
Classify = Callable[[Sequence[Asked], np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Survey:
    """What is asked for, the values of each attribute, and what decides an image's."""

    asked: tuple[Asked, ...]
    attributes: dict[str, tuple[str, ...]]
    classify: Classify
    how: str  # it decides, in words


def clip_survey(lists: BiasLists, extractor: FeatureExtractor, num: int) -> Survey:
    """`num` images of each subject, and of each attribute's texts; the value of an image is the
    one whose text has the largest cosine with it.

    Raises ValueError for a network that reads no text.
    """
    embeddings = {name: extractor.texts([*v.values()]) for name, v in lists.attributes.items()}
    # The length of an image's embedding changes no order.
    texts = {k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in embeddings.items()}

    def classify(asked: Sequence[Asked], images: np.ndarray) -> dict[str, np.ndarray]:
        features = extractor.images(images)
        return {name: np.argmax(features @ own.T, axis=1) for name, own in texts.items()}

    asked = [Asked(lists.template.replace("{}", subject), subject) for subject in lists.subjects]
    asked += [
        Asked(text, value, name, value)
        for name, values in lists.attributes.items()
        for value, text in values.items()
    ]
    repeated = tuple(one for one in asked for _ in range(num))
    values = {name: tuple(texts) for name, texts in lists.attributes.items()}
    return Survey(repeated, values, classify, f"the nearest text by CLIP ({extractor.name})")


def spread_of(survey: Survey, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """By attribute: `subjects` (the share of each value, by subject), `all` subjects, the
    `distance` from even, and how often a value was `recognized` that the prompt named.
    """
    subject = np.asarray([one.subject for one in survey.asked])
    neutral = np.asarray([one.attribute is None for one in survey.asked])
    subjects = list(dict.fromkeys(subject[neutral]))
    rows = [np.flatnonzero(neutral & (subject == name)) for name in subjects]
    result = {}
    for name, values in survey.attributes.items():
        counts = np.stack([np.bincount(found[name][row], minlength=len(values)) for row in rows])
        result[name] = {
            "subjects": {
                one: dict(
                    zip(values, (share(int(hits), int(row.sum())) for hits in row), strict=True)
                )
                for one, row in zip(subjects, counts, strict=True)
            },
            **_overall(values, counts),
            "recognized": {
                value: share(int((found[name][row] == place).sum()), len(row))
                for place, value in enumerate(values)
                if len(row := _named(survey, name, value))
            },
        }
    return result


def _named(survey: Survey, attribute: str, value: str) -> np.ndarray:
    """The prompts that name this value."""
    wanted = (attribute, value)
    return np.flatnonzero([(one.attribute, one.value) == wanted for one in survey.asked])


def _overall(values: Sequence[str], counts: np.ndarray) -> dict[str, Any]:
    """Of counts [subjects, values]: `all` and `distance`."""
    rng = np.random.default_rng(SEED)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / totals
    drawn = rng.integers(0, len(counts), (RESAMPLES, len(counts)))
    low, high = np.percentile(shares[drawn].mean(axis=1), (2.5, 97.5), axis=0)
    rows = zip(shares.mean(axis=0), low, high, strict=True)
    even = np.full(len(values), 1 / len(values))
    distance = _distance(shares)
    ends = np.percentile(distance[drawn].mean(axis=1), (2.5, 97.5))
    by_chance = rng.multinomial(totals[:, 0], even, (RESAMPLES, len(counts))) / totals
    return {
        "all": {
            value: {"share": float(s), "low": float(a), "high": float(b), "n": int(totals.sum())}
            for value, (s, a, b) in zip(values, rows, strict=True)
        },
        "distance": {
            "mean": float(distance.mean()),
            "low": float(ends[0]),
            "high": float(ends[1]),
            "of_an_even_model": float(_distance(by_chance).mean()),
        },
    }


def _distance(shares: np.ndarray) -> np.ndarray:
    """Of shares [..., values] from even ones: the total variation."""
    return 0.5 * np.abs(shares - 1 / shares.shape[-1]).sum(axis=-1)
