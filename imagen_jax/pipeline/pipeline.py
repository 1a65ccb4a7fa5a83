"""What a user holds: a Pipeline, whose `.generate_images(...)` gives images."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, NoReturn

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.sample import stage_size
from imagen_jax.convert.lora import LoraFile
from imagen_jax.devices import memory
from imagen_jax.devices.compilation_cache import use_compilation_cache
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.overrides import (
    by_stage,
    is_number,
    plain,
    with_overrides,
)
from imagen_jax.diffusion.sampling import ByStage, Number, Sampling, Spacing
from imagen_jax.images import signing
from imagen_jax.images.image_list import ImageList
from imagen_jax.pipeline import model_directory, option_names
from imagen_jax.pipeline.adapters import adapted_params
from imagen_jax.pipeline.explain import plan_look
from imagen_jax.pipeline.explanation import Explanation
from imagen_jax.pipeline.generation import (
    collect,
    encode_request,
    memory_advice,
    plan_lengths,
    prepare_ahead,
    sample_cascade,
    spread,
    thread_ahead,
)
from imagen_jax.pipeline.guides import Guide, guides_in_use, with_guides
from imagen_jax.pipeline.lazy_params import LazyParams
from imagen_jax.pipeline.moderation import Moderation, Watermark, finished_images
from imagen_jax.pipeline.progress import Callback
from imagen_jax.pipeline.request import (
    AspectRatio,
    ImageInput,
    Labels,
    Request,
    Watch,
    base_size,
    check_request,
    last_stage,
    read_image,
    read_mask,
    to_binary_mask,
    to_pixels,
    upscaled_from,
)
from imagen_jax.pipeline.settings import options_of
from imagen_jax.storage import fingerprints
from imagen_jax.storage.folders import user_path

refuse_unknown = partial(option_names.refuse_unknown, fields=Sampling.__dataclass_fields__)
# Of Sampling.
OVERRIDES = ("guidance", "guidance_kind", "steps", "sampler", "spacing", "aug_level")


class Pipeline:
    """A cascade with its parameters.

    params: of each stage by its name and of "text_encoder"; `LazyParams` reads them at first use.
    mesh: the devices that the parameters are spread over; a batch of images is, too.

    May be set: `moderation`, what `read_moderation` gives; `watermark`, a function that marks
    finished images, uint8 [height, width, 3] to the same.
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
        self.moderation: Moderation | None = None
        self.watermark: Watermark | None = None
        self.guides: dict[str, Guide] = {}  # by the stage that each guides (`joining.add_guides`)
        self._without_lora: tuple[Mapping, str | None] | None = None

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.name} {stage.resolution}" for stage in self.cascade.stages)
        return f"Pipeline({self.name!r}: {stages})"

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        """What other libraries' pipelines are for."""
        raise TypeError(
            "A pipeline is not called here: use generate_images, edit, inpaint or upscale."
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of images that `generate_images` makes; the last is the default."""
        return self.cascade.sizes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of a model of classes, by number; empty where it does not know them."""
        return self.cascade.class_names

    def generate_images(
        self,
        prompt: str | Sequence[str] | None = None,
        num_images: Number = 4,
        size: Number | None = None,
        *,
        guidance: ByStage | None = None,
        steps: ByStage | None = None,
        sampler: str | Sequence[str | None] | None = None,
        spacing: Spacing | Sequence[Spacing | None] | None = None,
        seed: Number | None = None,
        negative_prompt: str | None = None,
        label: Labels | None = None,
        batch_size: Number | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        every: Number | None = None,
        finished: Callable[[ImageList], None] | None = None,
        aug_level: ByStage | None = None,
        sampling: Sequence[Sampling] | None = None,
        first_index: Number = 0,
        aspect_ratio: AspectRatio | None = None,
        guidance_kind: str | Sequence[str | None] | None = None,
        low_memory: bool = False,
        watch: Watch | None = None,
        **unknown: Any,
    ) -> ImageList:
        """Images of a prompt, `num_images` of each when there are several.

        Args:
            prompt: what the images show. None for a model without text.
            num_images: images a prompt (or a label).
            size: of the images, one of `sizes`: the stage to stop at. The largest when None.
            guidance: weight of the text, 1 is none: of the base stage, or one a stage.
            steps: of the sampler in every stage, or one number a stage.
            sampler: such as unipc (a key of SAMPLERS) in every stage, or one a stage.
            spacing: of the sampler's times in every stage, or one a stage (`Sampling`); a
                list, such as DeepFloyd IF's "fast27", says the number of steps too.
            seed: of the noise; equal seeds give equal images. A new one when None; the settings
                of the images tell which.
            negative_prompt: what guidance leads away from, instead of from no text at all.
            label: class or classes, for a model of classes: names (`class_names`) or numbers. "3"
                is the class of that name, and where there is none class number 3; 3 is always the
                number.
            batch_size: images at a time: up to 4 on a CPU, else up to 16. Less needs less memory.
                On a mesh rounded up, to as many on each of the devices that share a batch.
            progress: whether to show a bar.
            callback: called with a `Progress` every `every` steps (a tenth of all when None).
            finished: called with the images of each batch as soon as they are done; what it saves
                (`finished=lambda images: images.save(DIR)`) is there after Ctrl-C, too.
            aug_level: noise on what the super-resolution stages are given, in [0, 1], or one a
                stage: more of it invents more.
            sampling: one `Sampling` a stage, instead of the model's own.
            first_index: index of the first image. Image i has noise of its own from seed and
                index, whatever else is sampled with it.
            aspect_ratio: width to height, such as "16:9" or 1.5, with about as many pixels as the
                square of `size`; the nearest that the networks can make.
            guidance_kind: cfg, apg, cfg_zero or auto (`Sampling`): of the base stage, or one a
                stage. auto needs a second model: `load_model(..., guide=...)`.
            low_memory: lets each stage's parameters go before the next one's are read. No image is
                finished, then, before the last stage.
            watch: sees what each step starts from (`Request`), as `explain` does.

        Raises:
            ValueError: an empty prompt, a size that no stage makes, an unknown sampler and the
                like, before anything is computed.
            TypeError: an option by another library's name; the message has ours.
        """
        refuse_unknown(self.generate_images, unknown)
        options = {
            "guidance": guidance,
            "guidance_kind": guidance_kind,
            "steps": steps,
            "sampler": sampler,
            "spacing": spacing,
            "seed": seed,
            "negative_prompt": negative_prompt,
            "label": label,
            "batch_size": batch_size,
            "progress": progress,
            "callback": callback,
            "every": every,
            "finished": finished,
            "aug_level": aug_level,
            "sampling": sampling,
            "first_index": first_index,
        } | {"low_memory": low_memory, "watch": watch}
        stages, base = self._stages(size), self._base_size(aspect_ratio)
        notes = {"aspect_ratio": aspect_ratio}
        request = Request(prompt, num_images=num_images, stages=stages, size=base, notes=notes)
        return self._generate(request, options)

    def edit(
        self,
        image: ImageInput,
        prompt: str | Sequence[str],
        *,
        strength: ByStage = 0.7,
        num_images: Number = 1,
        size: Number | None = None,
        **options: Any,
    ) -> ImageList:
        """An image changed as the prompt says: image to image (SDEdit, arXiv 2108.01073).

        Args:
            image: PIL, a file's path, or uint8 [height, width, 3]; its centred square is taken.
            strength: in (0, 1], the share of the steps that are run, 1 keeps nothing. Of the base
                stage; by stage in a sequence, None where the stage upsamples what the one before it
                made and does not see the image.
            options: as of `generate_images`.

        Raises:
            ValueError: as `generate_images`; no image; a strength that leaves no step to run.
        """
        refuse_unknown(self.edit, options, self.generate_images)
        stages = self._stages(size)
        image = read_image(image)
        strengths = by_stage("strength", strength, len(self.cascade.stages), first_only=True)
        edits = [
            None if share is None else Edit(self._pixels(image, i), strength=share)
            for i, share in enumerate(strengths)
        ]
        notes = {"edit": {"strength": strengths}}
        request = Request(prompt, num_images=num_images, stages=stages, edits=edits, notes=notes)
        return self._generate(request, options)

    def inpaint(
        self,
        image: ImageInput,
        mask: ImageInput,
        prompt: str | Sequence[str],
        *,
        strength: Number = 1.0,
        resamplings: Number = 1,
        jump_length: Number = 10,
        known: str = "noised",
        mask_alpha: str | None = None,
        num_images: Number = 1,
        size: Number | None = None,
        **options: Any,
    ) -> ImageList:
        """An image regenerated where the mask is white, and kept where it is black.

        Args:
            image, mask: of one size; PIL, files' paths or arrays. The centred square is taken.
            strength: in (0, 1], less starts from what is there.
            resamplings, jump_length: RePaint's (arXiv 2201.09865): each stretch of `jump_length`
                steps is sampled `resamplings` times, for a better fit to what is kept.
            known: "noised", RePaint's, or "clean", as diffusers does with DeepFloyd IF.
            mask_alpha: what a mask that is transparent in part means. None: transparent is kept,
                and so is black. "transparent" or "opaque": that is regenerated, whatever its color.
            options: as of `generate_images`.

        Raises:
            ValueError: as `generate_images`; mask and image of different sizes, a mask that keeps
                everything, or of which it is not clear what its transparency means.
        """
        refuse_unknown(self.inpaint, options, self.generate_images)
        stages = self._stages(size)
        image = read_image(image)
        mask = read_mask(mask, image.size, mask_alpha)
        edits = [
            Edit(
                self._pixels(image, i),
                to_binary_mask(mask, (stage.resolution, stage.resolution)),
                strength,
                known,
                resamplings,
                jump_length,
            )
            for i, stage in enumerate(self.cascade.stages)
        ]
        if not any(edit.mask.any() for edit in edits):
            raise ValueError(
                "The mask keeps everything of the centred square, which is all that the model "
                "sees: what is to be regenerated must be white there."
            )
        notes = {"strength": strength, "resamplings": resamplings, "jump_length": jump_length}
        notes = {"inpaint": {**notes, "known": known}}
        request = Request(prompt, num_images=num_images, stages=stages, edits=edits, notes=notes)
        return self._generate(request, options)

    def upscale(
        self,
        image: ImageInput,
        prompt: str | Sequence[str] | None = None,
        *,
        size: Number | None = None,
        num_images: Number = 1,
        **options: Any,
    ) -> ImageList:
        """An image upsampled by the super-resolution stages, in its own shape.

        It is shrunk to what the first of them takes: the stage of the largest low resolution that
        the image's shorter side reaches.

        Args:
            image: PIL, a file's path, or uint8 [height, width, 3]; no longer than 1:8 or 8:1.
            prompt: what it shows; None for a model without text, or to which no text is an empty
                prompt (DeepFloyd IF).
            size: of the shorter side of the result, a resolution of a stage. The largest when None.
            options: as of `generate_images`.

        Raises:
            ValueError: as `generate_images`; the model has no super-resolution stage.
        """
        refuse_unknown(self.upscale, options, self.generate_images)
        stages = self.cascade.stages
        last, encoder = last_stage(self.cascade, self.name, size), self.cascade.encoder
        low = [i for i in range(last + 1) if stages[i].low_resolution is not None]
        if not low:
            up_to = "" if size is None else f" up to size {size}"
            raise ValueError(f"{self.name!r} has no super-resolution stage{up_to}.")
        if prompt is None and encoder is not None and encoder.null == "empty":
            prompt = ""
        image = read_image(image)
        reached = [i for i in low if stages[i].low_resolution <= min(image.size)]
        first = reached[-1] if reached else low[0]
        shrunk = upscaled_from(self.cascade, range(first, last + 1), image.size)
        request = Request(
            prompt,
            num_images=num_images,
            stages=range(first, last + 1),
            low_res=to_pixels(image, shrunk),
            notes={"upscale": {"from": list(shrunk), "stage": stages[first].name}},
        )
        return self._generate(request, options)

    def explain(
        self,
        prompt: str | Sequence[str],
        words: Sequence[str] | None = None,
        *,
        stage: str | None = None,
        layers: str | None = None,
        image: ImageInput | None = None,
        mask: ImageInput | None = None,
        **options: Any,
    ) -> list[Explanation]:
        """The images of a prompt, and where each of its words counts in them: maps of attention, as
        DAAM (arXiv 2210.04885) makes them.

        Args:
            words: of every prompt, or parts of it of several words; all of its words when None.
            stage: whose network is looked into; the first one's when None.
            layers: those whose names begin so, such as "mid"; "all", as DAAM has it. When None,
                those of a U-Net on the way up, where words lie on what they name; else all.
            image, mask: as of `edit` and `inpaint`, whose images are explained then.
            options: as of `generate_images`, or of those; one image a prompt without num_images.
                The images are the same as theirs.

        Raises:
            ValueError: as `generate_images`; a word that the prompt does not hold, a model or stage
                that attends to no text.
        """
        make = self.generate_images
        if image is not None:
            make = partial(self.edit, image) if mask is None else partial(self.inpaint, image, mask)
        elif mask is not None:
            raise ValueError("mask is for an image, which is not given.")
        look, options = (stage, layers), {"num_images": 1, **options}
        recorder = plan_look(self.cascade, self.name, prompt, words, look, options)
        return recorder.explanations(make(prompt, watch=recorder, **options))

    def _stages(self, size: Number | None) -> range:
        """The stages up to a size, of a model that begins with noise."""
        first = self.cascade.stages[0]
        if first.low_resolution is not None:
            raise ValueError(
                f"The model begins with stage {first.name!r}, which upsamples images of "
                f"{first.low_resolution} pixels: call upscale(...), or load it together with the "
                "stage that makes those: load_model([base, this one])."
            )
        return range(last_stage(self.cascade, self.name, size) + 1)

    def _base_size(self, aspect_ratio: AspectRatio | None) -> tuple[int, int] | None:
        """`base_size`, which the networks that start from noise can make."""
        size, guides = base_size(self.cascade, aspect_ratio), self.guides.values()
        for stage in (self.cascade.stages[0], *(guide.stage for guide in guides)):
            if size is not None and stage.low_resolution is None:
                stage_size(stage, None, size)
        return size

    def _pixels(self, image: Image.Image, position: int) -> np.ndarray:
        side = self.cascade.stages[position].resolution
        return to_pixels(image, (side, side))

    def _generate(self, request: Request, options: Mapping[str, Any]) -> ImageList:
        """The images of a request and of options as of `generate_images`: checks come first."""
        options, stages = dict(options), self.cascade.stages
        sampling = options.pop("sampling", None) or self.cascade.sampling
        if isinstance(sampling, Sampling):
            sampling = (sampling,)
        if len(sampling) != len(stages):
            raise ValueError(
                f"sampling has {len(sampling)} entries; the model has {len(stages)} stages."
            )
        sampling = with_overrides(sampling, **{name: options.pop(name, None) for name in OVERRIDES})
        notes = {"model": self.name, "fingerprint": self.fingerprint, **request.notes}
        request = replace(request, notes=notes, **{"progress": True, **options})
        request = check_request(self.cascade, self.name, request)
        if self.moderation is not None:
            self.moderation.check_prompts(request.prompt)
        signing.credentials()  # wrong ones are an error before the work
        guides = guides_in_use(self.cascade, self.guides, sampling, request)
        notes["guide"] = {name: guide.about for name, guide in guides.items()} or None
        batch_size, place = spread(request.batch_size, self.mesh)
        low_memory = request.low_memory and isinstance(self.params, LazyParams)
        request = replace(request, batch_size=batch_size, low_memory=low_memory, notes=notes)
        plan_lengths(self.cascade, sampling, request)
        use_compilation_cache()
        given = self.cascade, with_guides(self.params, guides), sampling, request
        with memory.explained(memory_advice(self.cascade, request)), thread_ahead() as thread:
            if self.mesh is None and not low_memory:
                prepare_ahead(thread, *given)
            conditions = encode_request(self.cascade, self.params, request)
            with closing(sample_cascade(*given, conditions, place)) as batches:
                size = stages[request.stages[-1]].resolution
                finish = partial(finished_images, self.moderation, self.watermark)
                given = sampling, size, self.class_names, finish
                return collect(batches, self.name, request, *given)

    def generate_again(
        self,
        settings: Mapping[str, Any],
        *,
        progress: bool = True,
        finished: Callable[[ImageList], None] | None = None,
    ) -> ImageList:
        """The image whose settings these are (`image.info["imagen_jax"]`), made again.

        Raises:
            ValueError: the settings lack something, or the model has other stages; the image was
                made of another one, which the settings do not hold.
        """
        options = options_of(settings)
        return self.generate_images(**options, progress=progress, finished=finished)

    def load_lora(
        self, path: str | os.PathLike, scale: Number = 1.0, *, stage: str | None = None
    ) -> None:
        """Add `scale` times an adapter (ours, diffusers', peft's folder) to a stage's weights.

        Several add up; one that is there already adds again, with a warning: a notebook's cell may
        have run twice. `stage`: where the file's own word, or its fit, does not tell.

        Raises:
            ValueError: the adapter does not fit; the message lists what. Nothing has changed then.
        """
        if not is_number(scale) or not isfinite(scale):
            raise ValueError(f"scale must be a finite number: {scale!r}.")
        scale, file = plain(scale), LoraFile(user_path(path))
        name, params = adapted_params(file, self.cascade, self.params, scale, stage)
        digest = fingerprints.of_files(file.files)
        if self._without_lora is not None and f"*{digest}@{name}" in self.fingerprint:
            warnings.warn(
                f"{path} was loaded before, and is added once more; unload_lora() takes all away",
                stacklevel=2,
            )
        if self._without_lora is None:
            self._without_lora = self.params, self.fingerprint
        self.params = params
        self.fingerprint = f"{self.fingerprint or self.name}+{scale:g}*{digest}@{name}"

    def unload_lora(self) -> None:
        """Take all adapters away again; without any, nothing happens."""
        if self._without_lora is not None:
            self.params, self.fingerprint = self._without_lora
            self._without_lora = None

    def save_pretrained(
        self, directory: str | os.PathLike, *, dtype: str = "bfloat16", quantize: str | None = None
    ) -> None:
        """Write a model directory, which `load_model` reads: JSON, safetensors, the tokenizer.

        Args:
            dtype: of what is not quantized.
            quantize: the kernels, as of `load_model`.
        """
        model_directory.write_model(
            user_path(directory),
            self.cascade,
            self.params,
            model_directory.Stored(dtype, quantize),
            name=self.name,
            notes=self.notes,
        )
