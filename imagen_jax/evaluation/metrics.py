"""From features to figures: Fréchet and kernel distances (FID and KID, and the same by DINOv2),
CMMD, CLIP score and R-precision, each by each network.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.evaluation import distances
from imagen_jax.evaluation.distances import Statistics, statistics_of
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.reference import Reference

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEGATIVES, NEGATIVES_SEED = 99, 0


class Targets(NamedTuple):
    """What features of images by one network are compared with, as far as the metrics need it.

    references: [references, dim]. statistics: of the references. captions: [images, dim], the
    caption of each image.
    """

    references: np.ndarray | None = None
    statistics: Statistics | None = None
    captions: np.ndarray | None = None


def frechet(images: np.ndarray, targets: Targets) -> dict[str, Any]:
    """The Fréchet distance of features [n, dim] from the reference's (arXiv 1706.08500)."""
    return {"value": distances.frechet_distance(statistics_of(images), targets.statistics)}


def kernel(images: np.ndarray, targets: Targets) -> dict[str, Any]:
    """The kernel distance of features [n, dim] from the reference's (KID, arXiv 1801.01401)."""
    size = min(KID_SUBSET_SIZE, len(images), len(targets.references))
    mean, deviation = distances.kernel_distance(
        images, targets.references, subsets=KID_SUBSETS, subset_size=size
    )
    return {
        "value": mean,
        "deviation": deviation,
        "subsets": KID_SUBSETS,
        "subset_size": size,
        "seed": distances.KID_SEED,
    }


def cmmd(images: np.ndarray, targets: Targets) -> dict[str, Any]:
    """CMMD of CLIP's features [n, dim] from the reference's (arXiv 2401.09603)."""
    return {"value": distances.cmmd(images, targets.references)}


def clip_score(images: np.ndarray, targets: Targets) -> dict[str, Any]:
    """The mean cosine of each image and its own caption, in [-1, 1]: no factor, no clipping.

    Figures of different CLIP models cannot be compared: the report has the model's name.
    """
    each = distances.cosines(images, targets.captions)
    error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
    return {"value": float(each.mean()), "standard_error": error, "scale": "cosine, -1 to 1"}


def r_precision(images: np.ndarray, targets: Targets) -> dict[str, Any]:
    """How often CLIP finds an image's caption among others; ValueError below two captions."""
    captions = len(distances.distinct_captions(targets.captions)[0])
    if captions < 2:
        raise ValueError("r_precision needs 2 captions or more: others to compare with.")
    negatives = min(NEGATIVES, captions - 1)
    ranks = distances.caption_ranks(
        images, targets.captions, negatives=negatives, seed=NEGATIVES_SEED
    )
    return {
        "value": float((ranks == 1).mean()),
        "top5": float((ranks <= 5).mean()),
        "negatives": negatives,
        "seed": NEGATIVES_SEED,
    }


class Metric(NamedTuple):
    """A function of features [images, dim], and what it needs.

    network: the kind of network that makes the features. target: what they are compared with,
    "reference" or "captions".
    """

    compute: Callable[[np.ndarray, Targets], dict[str, Any]]
    network: str
    target: str


METRICS = {
    "fid": Metric(frechet, "inception", "reference"),
    "kid": Metric(kernel, "inception", "reference"),
    "fd_dinov2": Metric(frechet, "dinov2", "reference"),
    "kd_dinov2": Metric(kernel, "dinov2", "reference"),
    "cmmd": Metric(cmmd, "clip", "reference"),
    "clip": Metric(clip_score, "clip", "captions"),
    "r_precision": Metric(r_precision, "clip", "captions"),
}
DISTANCES = tuple(name for name, metric in METRICS.items() if metric.target == "reference")
# Each with the distance of the same network that is not biased by the number of images.
FRECHET = {"fid": "kid", "fd_dinov2": "kd_dinov2"}


def metrics_of(metrics: Sequence[str], extractor: FeatureExtractor) -> list[str]:
    """Those of the metrics that read this network's features."""
    return [m for m in metrics if m in METRICS and METRICS[m].network == extractor.kind]


def compute_targets(
    metrics: Sequence[str],
    extractors: Sequence[FeatureExtractor],
    reference: Reference | None,
    captions: Sequence[str] | None,
) -> dict[str, Targets]:
    """What the metrics compare with, by name of network: once for all points of a curve.

    Raises ValueError where the reference has no features by one of the networks.
    """
    targets = {}
    for extractor in extractors:
        wanted = metrics_of(metrics, extractor)
        needs = {METRICS[metric].target for metric in wanted}
        references = reference.of(extractor) if "reference" in needs else None
        if references is not None:
            warn_of_one(references, f"references have the same features by {extractor.name}")
        texts, gaussian = None, FRECHET.keys() & set(wanted)
        statistics = statistics_of(references) if gaussian else None
        if "captions" in needs:
            distinct, row = np.unique(np.asarray(captions), return_inverse=True)
            texts = np.asarray(extractor.texts([str(text) for text in distinct]))[row]
        targets[extractor.name] = Targets(references, statistics, texts)
    return targets


def warn_of_one(features: np.ndarray, what: str) -> None:
    """Warns where all images are one image: of one colour, or copies."""
    if len(features) > 1 and np.allclose(features, features[0]):
        warnings.warn(f"all {len(features)} {what}: are they one image?", stacklevel=3)


class Measured(NamedTuple):
    """values: {metric: {network: {"value": ..., "pictures": ..., ...}}}. failures: why others are
    not there, by metric and network.
    """

    values: dict[str, dict[str, dict[str, Any]]]
    failures: dict[str, str]


def measure(
    metrics: Sequence[str],
    extractors: Sequence[FeatureExtractor],
    features: Mapping[str, np.ndarray],
    targets: Mapping[str, Targets],
    rows: Sequence[int] | None = None,
) -> Measured:
    """Every figure of these features; one that cannot be had does not cost the others.

    Args:
        features: [images, dim] by network.
        rows: of the images among those that have captions, where broken ones were left out.
    """
    found = Measured({}, {})
    for extractor in extractors:
        images, target = features[extractor.name], targets[extractor.name]
        warn_of_one(images, f"images have the same features by {extractor.name}")
        if rows is not None and target.captions is not None:
            target = target._replace(captions=target.captions[np.asarray(rows)])
        for name in metrics_of(metrics, extractor):
            try:
                figure = _figure(name, images, target)
            except (ValueError, MemoryError) as error:
                found.failures[f"{name}, {extractor.name}"] = str(error) or "not enough memory"
            else:
                found.values.setdefault(name, {})[extractor.name] = figure
    return found


def _figure(name: str, images: np.ndarray, target: Targets) -> dict[str, Any]:
    counts = {"pictures": len(images)}
    if name in DISTANCES:
        if len(images) < 2:
            raise ValueError(f"it needs 2 images or more, not {len(images)}.")
        counts["references"] = len(target.references)
    figure = METRICS[name].compute(images, target)
    if not np.isfinite(figure["value"]):
        raise ValueError(f"the figure is {figure['value']}.")
    return counts | figure
