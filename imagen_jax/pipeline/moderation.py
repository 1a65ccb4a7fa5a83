"""Moderation: prompts by lists of words, images by concepts of CLIP, as a file of the user's says.

`pipeline.moderation = read_moderation("moderation.json")`. Every decision is in the settings of the
image; what is found is printed on standard error, or is the error where it is refused.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from imagen_jax.images.image_list import ImageList
from imagen_jax.images.provenance import SETTINGS_KEY
from imagen_jax.pipeline.image_filter import Concept, ImageFilter, read_image_filter
from imagen_jax.pipeline.progress import print_beside_bars
from imagen_jax.storage import fingerprints
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import read_dataclass
from imagen_jax.text.word_list import WordList, read_word_list

Action = Literal["flag", "blank", "refuse"]
Watermark = Callable[[np.ndarray], np.ndarray]
ACTIONS: tuple[Action, ...] = ("flag", "blank", "refuse")  # from the mildest


@dataclass(frozen=True)
class PromptRules:
    """list: a file of words and phrases, beside the moderation's own file."""

    list: str
    action: Action = "flag"


@dataclass(frozen=True)
class ImageRules:
    """model: a folder with a safety checker or a CLIP model in Hugging Face's layout. concepts,
    special: names of the checker's own, or the texts to look for. adjustment: added to all cosines.
    """

    model: str
    action: Action = "flag"
    adjustment: float = 0.0
    concepts: tuple[Concept, ...] | None = None
    special: tuple[Concept, ...] | None = None


@dataclass(frozen=True)
class ModerationFile:
    """The keys of the file; one section may be left out."""

    prompts: PromptRules | None = None
    images: ImageRules | None = None

    def __post_init__(self):
        if self.prompts is None and self.images is None:
            raise ValueError("it has neither 'prompts' nor 'images'")


class Refused(ValueError):
    """What moderation refuses. others: images of the same batch that it does not."""

    def __init__(self, message: str, others: ImageList | None = None):
        super().__init__(message)
        self.others = ImageList() if others is None else others


@dataclass(frozen=True, eq=False)
class Moderation:
    """What is looked for in prompts and in images, and what is done then: "flag", only told;
    "blank", the image is black; "refuse", an error. fingerprint: of the file.
    """

    fingerprint: str
    words: WordList | None = None
    prompt_action: Action = "flag"
    image_filter: ImageFilter | None = None
    image_action: Action = "flag"

    @property
    def hides_images(self) -> bool:
        """Whether images may be held back: nobody is to see them half-made, then."""
        by_prompt = self.words is not None and self.prompt_action != "flag"
        return by_prompt or (self.image_filter is not None and self.image_action != "flag")

    def check_prompts(self, prompts: Sequence[str] | None) -> None:
        """Raises Refused for a prompt of which the file says so, before anything is sampled."""
        if self.words is None or self.prompt_action != "refuse":
            return
        for prompt in prompts or ():
            if found := self.words.found_in(prompt):
                raise Refused(f"The prompt {prompt!r} is refused by moderation: {listed(found)}.")

    def judge(self, images: ImageList) -> ImageList:
        """Images of a pipeline with the decisions in their settings, black where a rule blanks
        them. Each is judged by itself.

        Raises:
            Refused: an image is refused.
        """
        scores = [None] * len(images)
        if self.image_filter is not None:
            scores = self.image_filter.scores([np.asarray(x.convert("RGB")) for x in images])
        kept, refused = ImageList(), []
        for image, found in zip(images, scores, strict=True):
            settings = dict(image.info[SETTINGS_KEY])
            entry, done, reasons = self._decided(settings.get("prompt"), found)
            name = f"Image {settings.get('index')}"
            if reasons:
                verb = {"flag": "flagged", "blank": "blanked", "refuse": "refused"}[done]
                told = f"{name} is {verb} by moderation: {'; '.join(reasons)}."
                if done == "refuse":
                    refused.append(told)
                    continue
                print_beside_bars(told, sys.stderr)
            if done == "blank":
                image = image.copy()
                image.paste(Image.new(image.mode, image.size))
            image.info[SETTINGS_KEY] = {**settings, "moderation": entry}
            kept.append(image)
        if refused:
            raise Refused(" ".join(refused), kept)
        return kept

    def _decided(
        self, prompt: str | None, found: Any
    ) -> tuple[Mapping[str, Any], Action | None, list[str]]:
        """(the decision for the settings, what is done with the image, why)."""
        entry: dict[str, Any] = {"file": self.fingerprint}
        actions, reasons = [], []
        if self.words is not None:
            words = self.words.found_in(prompt or "")
            entry["prompt"] = {
                "list": self.words.fingerprint,
                "action": self.prompt_action,
                "found": words,
            }
            if words:
                actions.append(self.prompt_action)
                reasons.append(f"its prompt has {listed(words)}")
        if found is not None:
            checker = self.image_filter.checker
            entry["image"] = {
                "weights": self.image_filter.fingerprint,
                "action": self.image_action,
                "found": list(found.found),
                "cosines": found.cosines,
                "thresholds": _rounded(found.cosines, checker.thresholds),
                "special_found": list(found.special_found),
                "special_cosines": found.special,
                "special_thresholds": _rounded(found.special, checker.special_thresholds),
                "adjustment": self.image_filter.adjustment,
            }
            if found.found:
                actions.append(self.image_action)
                reasons.append(f"it shows {listed(found.found)}")
        done = max(actions, key=ACTIONS.index, default=None)
        return {**entry, "done": done}, done, reasons


def _rounded(names: Mapping[str, Any], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, (round(value, 4) for value in values.tolist()), strict=True))


def listed(names: Sequence[str]) -> str:
    """Some names in quotes."""
    return ", ".join(map(repr, names))


def read_moderation(file: str | os.PathLike) -> Moderation:
    """Moderation from a JSON file (`ModerationFile`); paths in it are relative to it.

    Raises:
        FileNotFoundError, ValueError: it, the list or the weights are missing, damaged or do not
            fit; keys are unknown.
    """
    path = Path(user_path(file))
    rules = read_dataclass(path, "a moderation file", ModerationFile)
    options: dict[str, Any] = {}
    try:
        if rules.prompts is not None:
            words = read_word_list(path.parent / user_path(rules.prompts.list))
            options |= {"words": words, "prompt_action": rules.prompts.action}
        if rules.images is not None:
            own = rules.images
            given = own.concepts, own.special, own.adjustment
            found = read_image_filter(path.parent / user_path(own.model), *given)
            options |= {"image_filter": found, "image_action": own.action}
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{path}: {error}") from None
    return Moderation(fingerprints.of_bytes(path.read_bytes()), **options)


def finished_images(
    moderation: Moderation | None, watermark: Watermark | None, images: ImageList
) -> ImageList:
    """Images as they are handed out: judged, then marked. Errors as of `judge` and `marked_by`."""
    try:
        images = images if moderation is None else moderation.judge(images)
    except Refused as refusal:
        if watermark is not None:
            refusal.others = marked_by(watermark, refusal.others)
        raise
    return images if watermark is None else marked_by(watermark, images)


def marked_by(watermark: Watermark, images: ImageList) -> ImageList:
    """Images whose pixels went through a function of the user's, with its name in their settings.

    Raises:
        ValueError: it gives something else than uint8 of the same shape.
    """
    for image in images:
        pixels = np.asarray(image)
        marked = np.asarray(watermark(pixels.copy()))
        if marked.dtype != np.uint8 or marked.shape != pixels.shape:
            raise ValueError(
                f"The watermark gives {marked.dtype} {list(marked.shape)}; it must be uint8 "
                f"{list(pixels.shape)}, as it is given."
            )
        image.paste(Image.fromarray(marked))
        name = getattr(watermark, "__name__", type(watermark).__name__)
        image.info[SETTINGS_KEY] = {**image.info[SETTINGS_KEY], "watermark": name}
    return images
