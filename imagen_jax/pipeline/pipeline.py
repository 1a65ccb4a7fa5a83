"""What a user holds: a Pipeline, whose `.generate_images(...)` gives images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.cascade.cascade import Callback, Cascade
from imagen_jax.cascade.sample import stage_size
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.sampling import (
    SamplingSettings,
    Spacing,
    by_stage,
    is_number,
)
from imagen_jax.images.image_list import ImageList
from imagen_jax.pipeline import model_directory
from imagen_jax.pipeline.adapters import adapted_params
from imagen_jax.pipeline.generation import Options, Work, draw
from imagen_jax.pipeline.request import (
    AspectRatio,
    ImageInput,
    base_size,
    last_stage,
    read_image,
    read_mask,
    to_binary_mask,
    to_pixels,
    upscaled_from,
)
from imagen_jax.storage.codec import from_dict


def _options(method: str, given: Mapping[str, Any]) -> Options:
    """Raises TypeError, as Python does, for what is no option; it names the nearest."""
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
            raise TypeError(f"{method}() has no option {name!r}; {hint}")
    return Options(**given)


class Pipeline:
    """A cascade with its parameters.

    params: of each stage by its name and of "text_encoder"; `LazyParams` reads them when they are
    first used. mesh: the devices that the parameters are spread over; a batch of images is, too.
    """

    def __init__(
        self,
        cascade: Cascade,
        params: Mapping,
        *,
        name: str = "unnamed",
        fingerprint: str | None = None,
        notes: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
    ):
        self.cascade = cascade
        self.params = params
        self.name = name
        self.fingerprint = fingerprint
        self.notes = dict(notes or {})
        self.mesh = mesh
        self._without_lora: tuple[Mapping, str | None] | None = None

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.name} {stage.resolution}" for stage in self.cascade.stages)
        return f"Pipeline({self.name!r}: {stages})"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of images that `generate_images` makes; the last is the default."""
        return self.cascade.sizes

    def generate_images(
        self,
        prompt: str | Sequence[str] | None = None,
        num_images: int = 4,
        size: int | None = None,
        *,
        guidance: float | Sequence[float | None] | None = None,
        steps: int | Sequence[int | None] | None = None,
        sampler: str | Sequence[str | None] | None = None,
        spacing: Spacing | Sequence[Spacing | None] | None = None,
        seed: int | None = None,
        negative_prompt: str | None = None,
        label: int | Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        every: int | None = None,
        aug_level: float | Sequence[float | None] | None = None,
        settings: Sequence[SamplingSettings] | None = None,
        first_index: int = 0,
        aspect_ratio: AspectRatio | None = None,
        low_memory: bool = False,
    ) -> ImageList:
        """Images of a prompt, `num_images` of each when there are several.

        Args:
            prompt: what to paint. None for a model without text.
            num_images: images a prompt (or a label).
            size: of the images, one of `sizes`: the stage to stop at. The largest when None.
            guidance: weight of the text, 1 is none: of the base stage, or one a stage.
            steps: of the sampler in every stage, or one number a stage.
            sampler: ddpm, ddim, dpmpp_2m or heun in every stage, or one a stage.
            spacing: of the sampler's times in every stage, or one a stage (`SamplingSettings`); a
                list, such as DeepFloyd IF's "fast27", says the number of steps too.
            seed: of the noise; equal seeds give equal images. A new one when None; the settings
                of the images tell which.
            negative_prompt: what guidance leads away from, instead of from no text at all.
            label: class or classes, for a model of classes.
            batch_size: images at a time: up to 4 on a CPU, else up to 16. Less needs less memory.
                On a mesh rounded up, to as many on each of the devices that share a batch.
            progress: whether to show a bar.
            callback: called with a `Progress` every `every` steps (a tenth of all when None).
            aug_level: noise on what the stages enlarge, in [0, 1], or one a stage: more of it
                invents more.
            settings: one `SamplingSettings` a stage, instead of the model's own.
            first_index: index of the first image. ImageInput i has noise of its own from seed and
                index, whatever else is drawn with it.
            aspect_ratio: width to height, such as "16:9" or 1.5, with about as many pixels as the
                square of `size`; the nearest that the networks can make.
            low_memory: lets each stage's parameters go before the next one's are read.

        Raises:
            ValueError: an empty prompt, a size that no stage makes, an unknown sampler and the
                like, before anything is computed.
        """
        options = Options(
            guidance=guidance,
            steps=steps,
            sampler=sampler,
            spacing=spacing,
            seed=seed,
            negative_prompt=negative_prompt,
            label=label,
            batch_size=batch_size,
            progress=progress,
            callback=callback,
            every=every,
            aug_level=aug_level,
            settings=settings,
            first_index=first_index,
            low_memory=low_memory,
        )
        positions, drawn = self._positions(size), base_size(self.cascade, aspect_ratio)
        if drawn is not None:
            stage_size(self.cascade.stages[0], None, drawn)
        work = Work(positions, size=drawn, notes={"aspect_ratio": aspect_ratio})
        return self._draw(prompt, num_images, options, work)

    def edit(
        self,
        image: ImageInput,
        prompt: str | Sequence[str],
        *,
        strength: float | Sequence[float | None] = 0.7,
        num_images: int = 1,
        size: int | None = None,
        **options: Any,
    ) -> ImageList:
        """An image changed as the prompt says: image to image (SDEdit, arXiv 2108.01073).

        Args:
            image: PIL, a file's path, or uint8 [height, width, 3]; its centred square is taken.
            strength: in (0, 1], the share of the steps that are run, 1 keeps nothing. Of the base
                stage; by stage in a sequence, None where the stage enlarges what the one before it
                made and looks at the image no more.
            options: as of `generate_images`.

        Raises:
            ValueError: as `generate_images`; no image; a strength that leaves no step to run.
        """
        how, positions = _options("edit", options), self._positions(size)
        image = read_image(image)
        strengths = by_stage("strength", strength, len(self.cascade.stages), first_only=True)
        edits = [
            None if share is None else Edit(self._pixels(image, i), strength=share)
            for i, share in enumerate(strengths)
        ]
        work = Work(positions, edits=edits, notes={"edit": {"strength": strengths}})
        return self._draw(prompt, num_images, how, work)

    def inpaint(
        self,
        image: ImageInput,
        mask: ImageInput,
        prompt: str | Sequence[str],
        *,
        strength: float = 1.0,
        resamplings: int = 1,
        jump_length: int = 10,
        known: str = "noised",
        num_images: int = 1,
        size: int | None = None,
        **options: Any,
    ) -> ImageList:
        """An image drawn anew where the mask is white, and kept where it is black.

        Args:
            image, mask: of one size; PIL, files' paths or arrays. The centred square is taken.
            strength: in (0, 1], less starts from what is there.
            resamplings, jump_length: RePaint's (arXiv 2201.09865): each stretch of `jump_length`
                steps is drawn `resamplings` times, for a better fit to what is kept.
            known: "noised", RePaint's, or "clean", as diffusers does with DeepFloyd IF.
            options: as of `generate_images`.

        Raises:
            ValueError: as `generate_images`; mask and image of different sizes, a mask that keeps
                everything.
        """
        how, positions = _options("inpaint", options), self._positions(size)
        image = read_image(image)
        flat = read_mask(mask, image.size)
        edits = [
            Edit(
                self._pixels(image, i),
                to_binary_mask(flat, (stage.resolution, stage.resolution)),
                strength,
                known,
                resamplings,
                jump_length,
            )
            for i, stage in enumerate(self.cascade.stages)
        ]
        if not any(edit.mask.any() for edit in edits):
            raise ValueError(
                "The mask keeps everything of the centred square: what is to be drawn anew must be "
                "white in it (255, or True)."
            )
        notes = {"strength": strength, "resamplings": resamplings, "jump_length": jump_length}
        work = Work(positions, edits=edits, notes={"inpaint": {**notes, "known": known}})
        return self._draw(prompt, num_images, how, work)

    def upscale(
        self,
        image: ImageInput,
        prompt: str | Sequence[str] | None = None,
        *,
        size: int | None = None,
        num_images: int = 1,
        **options: Any,
    ) -> ImageList:
        """An image enlarged by the super-resolution stages, in its own shape.

        It is shrunk to what the first of them takes: the stage of the largest low resolution that
        the image's shorter side reaches.

        Args:
            image: PIL, a file's path, or uint8 [height, width, 3]; no longer than 1:8 or 8:1.
            prompt: what it shows; None for a model without text, or to which no text is an empty
                prompt (DeepFloyd IF).
            size: of the shorter side of the result, a resolution of a stage. The largest when None.
            options: as of `generate_images`.

        Raises:
            ValueError: as `generate_images`; the model has no stage that enlarges.
        """
        how, stages, encoder = (
            _options("upscale", options),
            self.cascade.stages,
            self.cascade.encoder,
        )
        last = last_stage(self.cascade, self.name, size)
        low = [i for i in range(last + 1) if stages[i].low_resolution is not None]
        if not low:
            up_to = "" if size is None else f" up to size {size}"
            raise ValueError(f"{self.name!r} has no stage{up_to} that enlarges images.")
        if prompt is None and encoder is not None and encoder.null == "empty":
            prompt = ""
        image = read_image(image)
        reached = [i for i in low if stages[i].low_resolution <= min(image.size)]
        first = reached[-1] if reached else low[0]
        drawn = upscaled_from(self.cascade, range(first, last + 1), image.size)
        work = Work(
            range(first, last + 1),
            low_res=to_pixels(image, drawn),
            notes={"upscale": {"from": list(drawn), "stage": stages[first].name}},
        )
        return self._draw(prompt, num_images, how, work)

    def _positions(self, size: int | None) -> range:
        """The stages up to a size, of a model that begins with noise."""
        first = self.cascade.stages[0]
        if first.low_resolution is not None:
            raise ValueError(
                f"The model begins with stage {first.name!r}, which enlarges images of "
                f"{first.low_resolution} pixels: call upscale(...), or load it together with the "
                "stage that makes those: load_model([base, this one])."
            )
        return range(last_stage(self.cascade, self.name, size) + 1)

    def _pixels(self, image: Image.Image, position: int) -> np.ndarray:
        side = self.cascade.stages[position].resolution
        return to_pixels(image, (side, side))

    def _draw(
        self,
        prompt: str | Sequence[str] | None,
        num_images: int,
        options: Options,
        work: Work,
    ) -> ImageList:
        notes = {"model": self.name, "fingerprint": self.fingerprint, **work.notes}
        work = replace(work, notes=notes)
        return draw(
            self.cascade, self.params, self.name, prompt, num_images, options, work, self.mesh
        )

    def generate_again(self, settings: Mapping[str, Any], *, progress: bool = True) -> ImageList:
        """The image whose settings these are (`image.info["imagen_jax"]`), made again.

        Raises:
            ValueError: the settings lack something, or the model has other stages; the image was
                made of another one, which the settings do not hold.
        """
        for kind in ("edit", "inpaint", "upscale"):
            if kind in settings:
                raise ValueError(
                    f"The image was made by {kind}(...) of another image, which its settings "
                    "do not hold."
                )
        try:
            sampling = [
                from_dict(SamplingSettings, entry, "sampling") for entry in settings["sampling"]
            ]
            wishes = {
                "prompt": settings["prompt"],
                "size": settings["size"],
                "seed": settings["seed"],
                "first_index": settings["index"],
            }
        except (KeyError, TypeError) as error:
            raise ValueError(f"The settings of the image are not whole: {error!r}.") from None
        return self.generate_images(
            **wishes,
            num_images=1,
            negative_prompt=settings.get("negative_prompt"),
            label=settings.get("label"),
            batch_size=settings.get("batch_size"),
            settings=sampling,
            progress=progress,
            aspect_ratio=settings.get("aspect_ratio"),
        )

    def load_lora(
        self, path: str | os.PathLike, scale: float = 1.0, *, stage: str | None = None
    ) -> None:
        """Add `scale` times an adapter (safetensors, ours or diffusers') to a stage's weights.

        Several add up. `stage`: where the file's own word, or its fit, does not tell.

        Raises:
            ValueError: the adapter does not fit; the message lists what. Nothing has changed then.
        """
        if not is_number(scale) or not isfinite(scale):
            raise ValueError(f"scale must be a finite number: {scale!r}.")
        name, params = adapted_params(path, self.cascade, self.params, scale, stage)
        digest = model_directory.fingerprint([Path(path)])
        if self._without_lora is None:
            self._without_lora = self.params, self.fingerprint
        self.params = params
        self.fingerprint = f"{self.fingerprint or self.name}+{scale:g}*{digest}@{name}"

    def unload_lora(self) -> None:
        """Take all adapters away again; without any, nothing happens."""
        if self._without_lora is not None:
            self.params, self.fingerprint = self._without_lora
            self._without_lora = None

    def save_pretrained(self, directory: str | os.PathLike, *, dtype: str = "bfloat16") -> None:
        """Write a model directory, which `load_model` reads: JSON, safetensors, the tokenizer."""
        model_directory.write_model(
            directory, self.cascade, self.params, name=self.name, notes=self.notes, dtype=dtype
        )
