"""What a user holds: a Pipeline, whose `.generate_images(...)` gives pictures."""

import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax import __version__, model_directory
from imagen_jax import text as text_room
from imagen_jax.adapters import adapted_params
from imagen_jax.cascade import (
    TEXT_ENCODER,
    Callback,
    Cascade,
    Conditions,
    Progress,
    sample_cascade,
    sample_keys,
)
from imagen_jax.compilation_cache import use_compilation_cache
from imagen_jax.grid import to_pil, to_uint8
from imagen_jax.pictures import SETTINGS_KEY, Pictures
from imagen_jax.sampling_settings import SamplingSettings, settings_from_dict, with_overrides
from imagen_jax.typing import Params, TextEmbeddings

CPU_BATCH, ACCELERATOR_BATCH = 4, 16
LARGEST_SEED = 2**32 - 1


class Pipeline:
    """A cascade with its parameters.

    params: of each stage by its name and of "text_encoder"; `Parts` reads them when first used.
    """

    def __init__(
        self,
        cascade: Cascade,
        params: Mapping,
        *,
        name: str = "unnamed",
        fingerprint: str | None = None,
        notes: Mapping[str, Any] | None = None,
    ):
        self.cascade = cascade
        self.params = params
        self.name = name
        self.fingerprint = fingerprint
        self.notes = dict(notes or {})
        self._without_lora: tuple[Mapping, str | None] | None = None

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.name} {stage.resolution}" for stage in self.cascade.stages)
        return f"Pipeline({self.name!r}: {stages})"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of pictures that `generate_images` makes; the last is the default."""
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
        seed: int | None = None,
        negative_prompt: str | None = None,
        label: int | Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        every: int | None = None,
        settings: Sequence[SamplingSettings] | None = None,
        first_index: int = 0,
    ) -> Pictures:
        """Pictures of a prompt, `num_images` of each when there are several.

        Args:
            prompt: what to paint. None for a model without text.
            num_images: pictures a prompt (or a label).
            size: of the pictures, one of `sizes`: the stage to stop at. The largest when None.
            guidance: weight of the text, 1 is none: of the base stage, or one a stage.
            steps: of the sampler in every stage, or one number a stage.
            sampler: ddpm, ddim, dpmpp_2m or heun in every stage, or one a stage.
            seed: of the noise; equal seeds give equal pictures. A new one when None; the settings
                of the pictures tell which.
            negative_prompt: what guidance leads away from, instead of from no text at all.
            label: class or classes, for a model of classes.
            batch_size: pictures at a time: 4 on a CPU, else 16. Less needs less memory.
            progress: whether to show a bar.
            callback: called with a `Progress` every `every` steps (a tenth of all when None).
            settings: one `SamplingSettings` a stage, instead of the model's own.
            first_index: index of the first picture. Picture i has noise of its own from seed and
                index, whatever else is drawn with it.

        Raises:
            ValueError: an empty prompt, a size that no stage makes, an unknown sampler and the
                like, before anything is computed.
        """
        cascade = self.cascade
        last = self._last_stage(size)
        chosen = list(cascade.sampling if settings is None else settings)
        if len(chosen) != len(cascade.stages):
            raise ValueError(
                f"settings has {len(chosen)} entries; the model has {len(cascade.stages)} stages."
            )
        chosen = with_overrides(chosen, guidance=guidance, steps=steps, sampler=sampler)
        prompts, labels = self._subjects(prompt, label)
        negative_prompt = self._negative_prompt(negative_prompt)
        default_batch = CPU_BATCH if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
        batch_size = check_count("batch_size", batch_size or default_batch)
        check_count("num_images", num_images)
        seed = check_seed(seed)
        if first_index < 0:
            raise ValueError(f"first_index must not be negative: {first_index}.")
        if cascade.stages[0].low_resolution is not None:
            raise ValueError(
                f"The model begins with stage {cascade.stages[0].name!r}, which enlarges pictures "
                f"of {cascade.stages[0].low_resolution} pixels; load it together with the stage "
                "that makes those: load_model([base, this one])."
            )

        use_compilation_cache()
        subjects = len(prompts or labels or [None])
        rows = np.repeat(np.arange(subjects), num_images)
        conditions = self._conditions(prompts, labels, negative_prompt, rows, batch_size)
        report = callback
        bar = None
        if progress:
            bar = ProgressBar(cascade, chosen, last, len(rows), batch_size, callback)
            report = bar
        try:
            images = sample_cascade(
                cascade,
                self.params,
                sample_keys(seed, first_index + np.arange(len(rows))),
                conditions,
                settings=chosen,
                last=last,
                batch_size=batch_size,
                callback=report,
                every=every,
            )
        finally:
            if bar is not None:
                bar.close()

        common = {
            "model": self.name,
            "fingerprint": self.fingerprint,
            "version": __version__,
            "size": cascade.stages[last].resolution,
            "seed": seed,
            "negative_prompt": negative_prompt,
            "batch_size": batch_size,
            "sampling": [asdict(entry) for entry in chosen],
        }
        pictures = []
        for position, (image, row) in enumerate(zip(to_uint8(images), rows, strict=True)):
            picture = to_pil(image)
            picture.info[SETTINGS_KEY] = {
                "prompt": prompts[row] if prompts else None,
                "label": labels[row] if labels else None,
                "index": first_index + position,
                **common,
            }
            pictures.append(picture)
        captions = prompts or [str(value) for value in labels or []]
        return Pictures(pictures, [captions[row] for row in rows] if captions else None)

    def generate_again(self, settings: Mapping[str, Any], *, progress: bool = True) -> Pictures:
        """The picture whose settings these are (`picture.info["imagen_jax"]`), made again.

        Raises:
            ValueError: the settings lack something, or the model has other stages.
        """
        try:
            sampling = [settings_from_dict(entry) for entry in settings["sampling"]]
            wishes = {
                "prompt": settings["prompt"],
                "size": settings["size"],
                "seed": settings["seed"],
                "first_index": settings["index"],
            }
        except (KeyError, TypeError) as error:
            raise ValueError(f"The settings of the picture are not whole: {error!r}.") from None
        return self.generate_images(
            **wishes,
            num_images=1,
            negative_prompt=settings.get("negative_prompt"),
            label=settings.get("label"),
            batch_size=settings.get("batch_size"),
            settings=sampling,
            progress=progress,
        )

    def load_lora(
        self, path: str | os.PathLike, scale: float = 1.0, *, stage: str | None = None
    ) -> None:
        """Add `scale` times an adapter (safetensors, ours or diffusers') to a stage's weights.

        Several add up. `stage`: where the file's own word, or its fit, does not tell.

        Raises:
            ValueError: the adapter does not fit; the message lists what.
        """
        name, params = adapted_params(path, self.cascade, self.params, scale, stage)
        if self._without_lora is None:
            self._without_lora = self.params, self.fingerprint
        self.params = params
        digest = model_directory.fingerprint([Path(path)])
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

    def _last_stage(self, size: int | None) -> int:
        if size is None:
            return len(self.sizes) - 1
        if size not in self.sizes:
            known = ", ".join(map(str, self.sizes))
            raise ValueError(f"No stage of {self.name!r} makes size {size!r}; sizes: {known}.")
        return self.sizes.index(size)

    def _subjects(
        self, prompt: str | Sequence[str] | None, label: int | Sequence[int] | None
    ) -> tuple[list[str] | None, list[int] | None]:
        """Prompts and labels as lists, as far as the model's stages read any."""
        kinds = {stage.conditioning for stage in self.cascade.stages}
        if "text" in kinds:
            if prompt is None:
                raise ValueError(f"{self.name!r} paints prompts: give one.")
        elif prompt is not None:
            raise ValueError(f"{self.name!r} reads no text, but a prompt was given: {prompt!r}.")
        if "label" in kinds:
            if label is None:
                raise ValueError(f"{self.name!r} paints classes: give label=.")
        elif label is not None:
            raise ValueError(f"{self.name!r} knows no classes, but label={label!r} was given.")
        prompts = labels = None
        if prompt is not None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not prompts:
                raise ValueError("The list of prompts is empty.")
            for entry in prompts:
                if not isinstance(entry, str):
                    raise ValueError(f"A prompt must be a string: {entry!r}.")
                if not entry.strip():
                    raise ValueError(f"The prompt is empty: {entry!r}. Say what to paint.")
        if label is not None:
            labels = [label] if isinstance(label, int | np.integer) else list(label)
            labels = [int(value) for value in labels]
            if not labels:
                raise ValueError("The list of labels is empty.")
            if prompts and len(prompts) != len(labels):
                raise ValueError(f"{len(prompts)} prompts but {len(labels)} labels.")
            for stage in self.cascade.stages:
                classes = getattr(stage.network, "num_classes", None)
                wrong = [v for v in labels if classes is not None and not 0 <= v < classes]
                if stage.conditioning == "label" and wrong:
                    raise ValueError(f"label must lie in 0 ... {classes - 1}: {wrong[0]}.")
        return prompts, labels

    def _negative_prompt(self, negative_prompt: str | None) -> str | None:
        if negative_prompt is None or not negative_prompt.strip():
            return None
        if self.cascade.encoder is None:
            raise ValueError(f"{self.name!r} reads no text, so no negative_prompt either.")
        return negative_prompt

    def _conditions(
        self,
        prompts: list[str] | None,
        labels: list[int] | None,
        negative_prompt: str | None,
        rows: np.ndarray,
        batch_size: int,
    ) -> Conditions:
        """What each picture is made of: row i of the result belongs to subject rows[i]."""
        text = null = None
        if prompts:
            encoder = self.cascade.encoder
            asked = [*prompts, negative_prompt] if negative_prompt else prompts
            encoded = encode_prompts(encoder, self.params[TEXT_ENCODER], asked, batch_size)
            text = jax.tree.map(lambda x: x[rows], encoded)
            null = text_room.null_text(1, encoder.max_length, encoder.config.d_model)
            if negative_prompt:
                null = jax.tree.map(lambda x: x[-1:], encoded)
        label = None if labels is None else np.asarray(labels, np.int32)[rows]
        return Conditions(text=text, null=null, label=label)


def encode_prompts(
    encoder: text_room.TextEncoder, params: Params, prompts: Sequence[str], batch_size: int
) -> TextEmbeddings:
    """Embeddings on the host, encoded `batch_size` at a time: one program for any number."""
    done = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        filled = part + [""] * (batch_size - len(part))
        encoded = text_room.encode(encoder, params, filled)
        done.append(jax.tree.map(lambda x: np.asarray(x)[: len(part)], encoded))  # noqa: B023
    return jax.tree.map(lambda *parts: np.concatenate(parts), *done)


def check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1: {value!r}.")
    return int(value)


def check_seed(seed: int | None) -> int:
    """The seed, or a new one."""
    if seed is None:
        return secrets.randbelow(LARGEST_SEED + 1)
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}: {seed!r}.")
    return int(seed)


class ProgressBar:
    """A bar over all steps of all batches at all stages; passes what it sees on to a callback."""

    def __init__(
        self,
        cascade: Cascade,
        settings: Sequence[SamplingSettings],
        last: int,
        samples: int,
        batch_size: int,
        callback: Callback | None,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm

        batches = -(-samples // batch_size)
        total = batches * sum(entry.steps for entry in settings[: last + 1])
        self.bar = tqdm(total=total, unit="step", desc=cascade.stages[0].name)
        self.callback = callback
        self.before: tuple[str, int, int] = ("", 0, 0)

    def __call__(self, progress: Progress) -> None:
        stage, first, step = self.before
        same = (stage, first) == (progress.stage.name, progress.first)
        self.bar.set_description(progress.stage.name, refresh=False)
        self.bar.update(progress.step - (step if same else 0))
        self.before = (progress.stage.name, progress.first, progress.step)
        if self.callback is not None:
            self.callback(progress)

    def close(self) -> None:
        self.bar.close()
