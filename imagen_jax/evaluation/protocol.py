"""Why a figure does not compare with published ones: every departure from the metric's protocol.

The protocol of FID-30K on COCO: 30,000 captions drawn from val2014, an image each at 256 pixels,
against all 40,504 images of val2014, centre-cropped to 256.
"""

from collections.abc import Mapping
from typing import Any

from imagen_jax.data.coco import VAL2014_IMAGES
from imagen_jax.evaluation.features import FeatureExtractor
from imagen_jax.evaluation.html_report import NAMES
from imagen_jax.evaluation.image_folder import Preprocessing
from imagen_jax.evaluation.inputs import EvaluationRun
from imagen_jax.evaluation.metrics import KID_SUBSET_SIZE, METRICS, NEGATIVES
from imagen_jax.evaluation.prompts import COCO_30K, COCO_SIZE, PromptList
from imagen_jax.evaluation.reference import Reference
from imagen_jax.models.dinov2 import Dinov2Config

CMMD_SIDE, CMMD_DIM = 336, 768  # of CLIP ViT-L/14-336
Checks = list[tuple[bool, str]]  # whether something departs from the protocol, and the sentence


def departures(
    metric: str,
    extractor: FeatureExtractor,
    found: Mapping[str, Any],
    run: EvaluationRun,
    preprocessing: Preprocessing,
) -> list[str]:
    """What keeps this figure from the protocol, as sentences; none where it is on it.

    Args:
        found: the figure, with how many images it is of.
    """
    checks = _of_images(found["pictures"], run, preprocessing) + _of_network(metric, extractor)
    of_reference = METRICS[metric].target == "reference"
    if of_reference or (run.prompts is not None and run.prompts.name == "coco30k"):
        checks += _of_prompts(run.prompts)
    else:
        checks += [
            (True, "the prompts are not COCO-30K's: compare only with figures of the same list")
        ]
    if of_reference:
        checks += _of_reference(run.reference)
    else:
        checks += [
            (
                run.named_by_ids is False,
                "the images are not named after the prompts' ids: each has the caption at its "
                "place in the order of the names",
            )
        ]
    subset, negatives = found.get("subset_size"), found.get("negatives")
    checks += [
        (
            subset is not None and subset < KID_SUBSET_SIZE,
            f"subsets of {subset} images, not {KID_SUBSET_SIZE}",
        ),
        (
            negatives is not None and negatives < NEGATIVES,
            f"{negatives} other captions, not {NEGATIVES}",
        ),
    ]
    return [sentence for departs, sentence in checks if departs]


def _of_images(count: int, run: EvaluationRun, preprocessing: Preprocessing) -> Checks:
    size, copies = preprocessing.size, run.request.num_images
    broken, enlarged = len(preprocessing.broken), preprocessing.counts["enlarged"]
    return [
        (count < COCO_30K, f"{count} images, not {COCO_30K}"),
        (size != COCO_SIZE, f"images of {size} pixels, not {COCO_SIZE}"),
        (copies > 1, f"{copies} images a caption, not one"),
        (broken > 0, f"{broken} images could not be read and were left out"),
        (enlarged > 0, f"{enlarged} images were smaller than {size} pixels and were enlarged"),
        (
            run.files is not None,
            "the images were given: how they were made is not known to this report",
        ),
    ]


def _of_prompts(prompts: PromptList | None) -> Checks:
    if prompts is None:
        return [(True, "the prompts of the images are not known")]
    if prompts.name != "coco30k":
        return [(True, f"the prompts are {prompts.name!r}, not COCO-30K's")]
    all_captions = prompts.origin.get("pictures") == VAL2014_IMAGES and "seed" in prompts.origin
    return [
        (len(prompts) != COCO_30K, f"{len(prompts)} prompts, not {COCO_30K}"),
        (
            not all_captions,
            "the prompts' file does not say that they were drawn, with a seed, from the captions "
            f"of all {VAL2014_IMAGES} images of val2014",
        ),
    ]


def _of_reference(reference: Reference) -> Checks:
    treatment, count = reference.about["treatment"], reference.count
    size, broken = treatment["size"], len(treatment["broken"])
    return [
        (
            not reference.about["source"].get("val2014"),
            "the references are not known to be COCO's val2014",
        ),
        (count != VAL2014_IMAGES, f"{count} references, not {VAL2014_IMAGES}"),
        (size != COCO_SIZE, f"references of {size} pixels, not {COCO_SIZE}"),
        (broken > 0, f"{broken} references could not be read and were left out"),
    ]


def _of_network(metric: str, extractor: FeatureExtractor) -> Checks:
    about, name = extractor.describe(), extractor.name
    return [
        (
            "random" in name.lower(),
            f"{name} has random weights, so this is not {NAMES[metric]}: it compares only with "
            "figures of the same weights",
        ),
        (
            metric == "cmmd" and (about["side"], about["dim"]) != (CMMD_SIDE, CMMD_DIM),
            f"{name} is not CLIP ViT-L/14 at {CMMD_SIDE} pixels, CMMD's network",
        ),
        (
            extractor.kind == "dinov2" and extractor.config != Dinov2Config(),
            f"{name} is not DINOv2 ViT-L/14 without registers at 224 pixels, FD-DINOv2's network",
        ),
    ]
