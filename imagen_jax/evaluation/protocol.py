"""Why a figure does not compare with published ones: every departure from the metric's protocol.

The protocol of FID-30K on COCO: 30,000 captions drawn from val2014, an image each at 256 pixels,
against all 40,504 images of val2014, centre-cropped to 256.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.data.coco import TFDS_NAME, TFDS_SPLITS, VAL2014_IMAGES
from imagen_jax.evaluation.extraction import Extractor
from imagen_jax.evaluation.measures import KID_SUBSET_SIZE, NEGATIVES, OF_CAPTIONS, OF_REFERENCE
from imagen_jax.evaluation.prompts import COCO_30K, PromptList
from imagen_jax.evaluation.reference import Reference

SIZE = 256
CMMD_SIDE, CMMD_DIM = 336, 768  # of CLIP ViT-L/14-336
VAL2014_NAME = re.compile(r"(.*/)?COCO_val2014_\d{12}\.\w+")


@dataclass(frozen=True, eq=False)
class Circumstances:
    """What a figure was obtained from.

    images: how many were measured. prompts: None where they are not known. made_here: whether the
    model made the images in this run, with all settings recorded. copies: images a prompt.
    by_order: whether each image has its caption by its place among the sorted names alone.
    """

    images: int
    size: int
    prompts: PromptList | None
    reference: Reference | None
    treatment: Mapping[str, Any]
    made_here: bool
    copies: int = 1
    by_order: bool = False


def departures(
    metric: str, extractor: Extractor, found: Mapping[str, Any], at: Circumstances
) -> list[str]:
    """What keeps this figure from the protocol, as sentences; none where it is on it."""
    reasons = _of_images(at) + _of_network(metric, extractor)
    if metric in OF_REFERENCE:
        reasons += _of_prompts(at) + _of_reference(at)
    elif at.prompts is None or at.prompts.name != "coco30k":
        reasons.append("the prompts are not COCO-30K's: compare only with figures of the same list")
    else:
        reasons += _of_prompts(at)
    if metric in OF_CAPTIONS and at.by_order:
        reasons.append(
            "the images are not named after the prompts' ids: each has the caption at its place "
            "in the order of the names"
        )
    if metric == "kid" and found["subset_size"] < KID_SUBSET_SIZE:
        reasons.append(f"subsets of {found['subset_size']} images, not {KID_SUBSET_SIZE}")
    if metric == "r_precision" and found["negatives"] < NEGATIVES:
        reasons.append(f"{found['negatives']} other captions, not {NEGATIVES}")
    return reasons


def _of_images(at: Circumstances) -> list[str]:
    reasons = []
    if at.images < COCO_30K:
        reasons.append(f"{at.images} images, not {COCO_30K}")
    if at.size != SIZE:
        reasons.append(f"images of {at.size} pixels, not {SIZE}")
    if at.copies > 1:
        reasons.append(f"{at.copies} images a caption, not one")
    if broken := at.treatment.get("broken"):
        reasons.append(f"{len(broken)} images could not be read and were left out")
    if enlarged := at.treatment.get("enlarged"):
        reasons.append(f"{enlarged} images were smaller than {at.size} pixels and were enlarged")
    if not at.made_here:
        reasons.append("the images were given: how they were made is not known to this report")
    return reasons


def _of_prompts(at: Circumstances) -> list[str]:
    if at.prompts is None:
        return ["the prompts of the images are not known"]
    if at.prompts.name != "coco30k":
        return [f"the prompts are {at.prompts.name!r}, not COCO-30K's"]
    origin, reasons = at.prompts.origin, []
    if len(at.prompts) != COCO_30K:
        reasons.append(f"{len(at.prompts)} prompts, not {COCO_30K}")
    if origin.get("pictures") != VAL2014_IMAGES or "seed" not in origin:
        reasons.append(
            f"the prompts' file does not say that they were drawn, with a seed, from the captions "
            f"of all {VAL2014_IMAGES} images of val2014"
        )
    return reasons


def _of_reference(at: Circumstances) -> list[str]:
    about, reasons = at.reference.about, []
    if not about["source"].get("val2014"):
        reasons.append("the references are not known to be COCO's val2014")
    if at.reference.count != VAL2014_IMAGES:
        reasons.append(f"{at.reference.count} references, not {VAL2014_IMAGES}")
    if about["treatment"]["size"] != SIZE:
        reasons.append(f"references of {about['treatment']['size']} pixels, not {SIZE}")
    if broken := about["treatment"]["broken"]:
        reasons.append(f"{len(broken)} references could not be read and were left out")
    return reasons


def _of_network(metric: str, extractor: Extractor) -> list[str]:
    reasons, about = [], extractor.describe()
    if is_random(extractor):
        reasons.append(
            f"{extractor.name} has random weights, so this is no {metric.upper()}: it compares "
            "only with figures of the same weights"
        )
    if metric == "cmmd" and (about["side"], about["dim"]) != (CMMD_SIDE, CMMD_DIM):
        reasons.append(
            f"{extractor.name} is not CLIP ViT-L/14 at {CMMD_SIDE} pixels, CMMD's network"
        )
    return reasons


def is_random(extractor: Extractor) -> bool:
    """Whether the network was never trained; its name then says so."""
    return "random" in extractor.name.lower()


def is_val2014(source: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a reference's source is COCO's val2014: all images named so, or TFDS's splits."""
    if source["kind"] == "tfds":
        return source["name"] == TFDS_NAME and source["split"] == TFDS_SPLITS
    return bool(names) and all(VAL2014_NAME.fullmatch(name) for name in names)
