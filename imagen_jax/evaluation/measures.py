"""From features to figures: FID, KID, CMMD, CLIP score and R-precision, each by each network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen_jax.evaluation import retrieval
from imagen_jax.evaluation.clip_score import caption_ranks, cosines, distinct_captions
from imagen_jax.evaluation.extraction import Extractor
from imagen_jax.evaluation.kernel_distance import KID_SEED, cmmd, kernel_distance
from imagen_jax.evaluation.reference import Reference, statistics_of
from imagen_jax.evaluation.statistics import Statistics, frechet_distance

# The kind of network that a metric reads.
KINDS = {
    "fid": "inception",
    "kid": "inception",
    "cmmd": "clip",
    "clip": "clip",
    "r_precision": "clip",
}
OF_REFERENCE = ("fid", "kid", "cmmd")
OF_CAPTIONS = ("clip", "r_precision")
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEGATIVES, NEGATIVES_SEED = 99, 0


@dataclass(frozen=True, eq=False)
class Truth:
    """What does not change from one point of a sweep to the next: references and captions.

    statistics: by name of network, of the reference. texts: features of the distinct captions by
    network, and `row` of each image's own in them.
    """

    reference: Reference | None
    statistics: Mapping[str, Statistics]
    texts: Mapping[str, np.ndarray]
    row: np.ndarray | None


def check_extractors(metrics: Sequence[str], extractors: Sequence[Extractor]) -> None:
    """ValueError where a metric has no network of its kind, or a network no metric."""
    kinds = {extractor.kind for extractor in extractors}
    for metric in metrics:
        if metric in KINDS and KINDS[metric] not in kinds:
            raise ValueError(
                f"{metric} needs a network of kind {KINDS[metric]}: give its converted weights "
                "with --features DIR (scripts/convert.py makes them of the public files)."
            )
    unused = [e.name for e in extractors if e.kind not in {KINDS.get(m) for m in metrics}]
    if unused:
        raise ValueError(f"No metric of {', '.join(metrics)} reads the features of {unused[0]}.")


def check_inputs(
    metrics: Sequence[str],
    extractors: Sequence[Extractor],
    reference: Reference | None,
    captions: Sequence[str] | None,
) -> None:
    """ValueError where the reference or the captions are missing, or the reference is by others."""
    for metric in metrics:
        if metric in OF_REFERENCE and reference is None:
            raise ValueError(f"{metric} needs --reference FILE, which --make_reference makes.")
        if metric in OF_CAPTIONS and captions is None:
            raise ValueError(f"{metric} needs the captions of the images: give --prompts.")
    for extractor in extractors:
        if any(metric in OF_REFERENCE for metric in metrics_of(metrics, extractor)):
            reference.of(extractor)


def prepare_truth(
    metrics: Sequence[str],
    extractors: Sequence[Extractor],
    reference: Reference | None,
    captions: Sequence[str] | None,
) -> Truth:
    """Statistics of the reference, and features of the captions, as far as the metrics read them.

    Raises ValueError as `check_inputs` does.
    """
    check_inputs(metrics, extractors, reference, captions)
    statistics, texts, row = {}, {}, None
    for extractor in extractors:
        if "fid" in metrics_of(metrics, extractor):
            statistics[extractor.name] = statistics_of(reference.of(extractor))
        if any(metric in OF_CAPTIONS for metric in metrics_of(metrics, extractor)):
            distinct, row = np.unique(np.asarray(captions), return_inverse=True)
            texts[extractor.name] = np.asarray(extractor.texts([str(x) for x in distinct]))
    return Truth(reference, statistics, texts, row)


def metrics_of(metrics: Sequence[str], extractor: Extractor) -> list[str]:
    """Those of the metrics that read this network's features."""
    return [metric for metric in metrics if KINDS.get(metric) == extractor.kind]


def measure(
    metrics: Sequence[str],
    extractors: Sequence[Extractor],
    features: Mapping[str, np.ndarray],
    truth: Truth,
    rows: np.ndarray,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{metric: {network: {"value": ..., "pictures": ..., ...}}}.

    Args:
        features: of the images, by network.
        rows: which of the captions each image belongs to (broken images are left out).
    """
    values: dict[str, dict[str, dict[str, Any]]] = {}
    for extractor in extractors:
        name = extractor.name
        for metric in metrics_of(metrics, extractor):
            found = {"pictures": len(features[name])}
            if metric in OF_REFERENCE:
                found["references"] = truth.reference.count
                found |= _distance(metric, features[name], truth, extractor)
            else:
                found |= _alignment(metric, features[name], truth.texts[name][truth.row[rows]])
            values.setdefault(metric, {})[name] = found
    return values


def _distance(
    metric: str, features: np.ndarray, truth: Truth, extractor: Extractor
) -> dict[str, Any]:
    if len(features) < 2:
        raise ValueError(f"{metric} needs 2 images or more, not {len(features)}.")
    if metric == "fid":
        generated = statistics_of(features)
        return {"value": frechet_distance(generated, truth.statistics[extractor.name])}
    true = truth.reference.of(extractor)
    if metric == "cmmd":
        return {"value": cmmd(features, true)}
    size = min(KID_SUBSET_SIZE, len(features), len(true))
    mean, deviation = kernel_distance(features, true, subsets=KID_SUBSETS, subset_size=size)
    return {
        "value": mean,
        "deviation": deviation,
        "subsets": KID_SUBSETS,
        "subset_size": size,
        "seed": KID_SEED,
    }


def _alignment(metric: str, images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    if metric == "clip":
        each = cosines(images, texts)
        error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
        return {"value": float(each.mean()), "standard_error": error, "scale": "cosine, -1 to 1"}
    captions = len(distinct_captions(texts)[0])
    if captions < 2:
        raise ValueError("r_precision needs 2 captions or more: others to compare with.")
    negatives = min(NEGATIVES, captions - 1)
    ranks = caption_ranks(images, texts, negatives=negatives, seed=NEGATIVES_SEED)
    scores = retrieval.scores(ranks)
    return {
        "value": scores["top1"],
        "top5": scores["top5"],
        "negatives": negatives,
        "seed": NEGATIVES_SEED,
    }
