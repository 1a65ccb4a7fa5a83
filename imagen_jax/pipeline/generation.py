"""Drawing what a caller asked for: checks first, then the cascade, then images that carry their
settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import __version__
from imagen_jax.cascade.cascade import (
    TEXT_ENCODER,
    Callback,
    Cascade,
    Conditions,
    sample_cascade,
    sample_keys,
)
from imagen_jax.cascade.sample import plan_steps
from imagen_jax.devices.compilation_cache import use_compilation_cache
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.sampling import SamplingSettings, Spacing, with_overrides
from imagen_jax.images.image_list import ImageList
from imagen_jax.images.pixels import to_pil, to_uint8
from imagen_jax.images.png import SETTINGS_KEY
from imagen_jax.pipeline.lazy_params import LazyParams
from imagen_jax.pipeline.progress import ProgressBar
from imagen_jax.pipeline.request import Subjects, check_count, check_seed, read_subjects
from imagen_jax.text import encoder as text_room
from imagen_jax.typing import Params, TextEmbeddings

CPU_BATCH, ACCELERATOR_BATCH = 4, 16


@dataclass(frozen=True)
class Options:
    """How to draw: the keyword arguments that all of a pipeline's methods take."""

    guidance: float | Sequence[float | None] | None = None
    steps: int | Sequence[int | None] | None = None
    sampler: str | Sequence[str | None] | None = None
    spacing: Spacing | Sequence[Spacing | None] | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    label: int | Sequence[int] | None = None
    batch_size: int | None = None
    progress: bool = True
    callback: Callback | None = None
    every: int | None = None
    aug_level: float | Sequence[float | None] | None = None
    settings: Sequence[SamplingSettings] | None = None
    first_index: int = 0
    low_memory: bool = False


@dataclass(frozen=True)
class Work:
    """What to draw: the stages, what they start from, and notes for the images' settings."""

    positions: range
    size: tuple[int, int] | None = None
    low_res: np.ndarray | None = None
    edits: Sequence[Edit | None] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def draw(
    cascade: Cascade,
    params: Mapping,
    name: str,
    prompt: str | Sequence[str] | None,
    num_images: int,
    options: Options,
    work: Work,
    mesh: Mesh | None = None,
) -> ImageList:
    """Checks what was asked for, draws it, and writes the settings into the images."""
    settings = choose_settings(cascade, options)
    subjects = read_subjects(cascade, name, prompt, options.label, options.negative_prompt)
    count = subjects.count * check_count("num_images", num_images)
    if options.every is not None:
        check_count("every", options.every)
    batch_size, place = spread(choose_batch(options.batch_size, count), mesh)
    seed = check_seed(options.seed)
    if options.first_index < 0:
        raise ValueError(f"first_index must not be negative: {options.first_index}.")
    edits = work.edits or [None] * len(cascade.stages)
    steps = 0
    for i in work.positions:  # a spacing or a strength that does not fit is found here
        _, begin, end = plan_steps(cascade.stages[i], settings[i], edits[i])
        steps += end - begin

    use_compilation_cache()
    rows = np.repeat(np.arange(subjects.count), num_images)
    release = None
    if options.low_memory and isinstance(params, LazyParams):
        release = params.free
    conditions = encode_subjects(cascade, params, subjects, rows, batch_size)
    if release is not None and cascade.encoder is not None:
        release(TEXT_ENCODER)
    if work.low_res is not None:
        conditions = conditions._replace(low_res=np.repeat(work.low_res, len(rows), 0))
    report, bar = options.callback, None
    if options.progress:
        batches = -(-len(rows) // batch_size)
        first = cascade.stages[work.positions[0]].name
        bar = ProgressBar(first, batches * steps, options.callback)
        report = bar
    try:
        images = sample_cascade(
            cascade,
            params,
            sample_keys(seed, options.first_index + np.arange(len(rows))),
            conditions,
            settings=settings,
            edits=edits,
            size=work.size,
            first=work.positions[0],
            last=work.positions[-1],
            batch_size=batch_size,
            callback=report,
            every=options.every,
            release=release,
            place=place,
        )
    finally:
        if bar is not None:
            bar.close()
    spoilt = int(np.sum(~np.isfinite(images).all(axis=(1, 2, 3))))
    if spoilt:
        raise ValueError(
            f"{spoilt} of {len(images)} images of {name!r} are no finite numbers: parameters, or "
            "an adapter's, are not finite or too large."
        )
    common = {
        "version": __version__,
        "size": cascade.stages[work.positions[-1]].resolution,
        "seed": seed,
        "negative_prompt": subjects.negative_prompt,
        "batch_size": batch_size,
        "sampling": [asdict(entry) for entry in settings],
        **{name: value for name, value in work.notes.items() if value is not None},
    }
    return with_settings(images, subjects, rows, options.first_index, common)


def choose_batch(asked: int | None, count: int) -> int:
    """Images at a time: as asked, else a power of two that `count` fill, for few programs."""
    if asked is not None:
        return check_count("batch_size", asked)
    most = CPU_BATCH if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
    return min(most, 1 << (count - 1).bit_length())


def spread(batch_size: int, mesh: Mesh | None) -> tuple[int, Callable[[Any], Any] | None]:
    """(batch size, what puts a batch's rows there) on a mesh: each device draws as many rows."""
    if mesh is None:
        return batch_size, None
    # Imported here: without a mesh nothing of training is needed.
    from imagen_jax.devices.sharding import batch_parts, batch_sharding

    parts, sharding = batch_parts(mesh), batch_sharding(mesh)
    return -(-batch_size // parts) * parts, lambda rows: jax.device_put(rows, sharding)


def choose_settings(cascade: Cascade, options: Options) -> tuple[SamplingSettings, ...]:
    """The settings of every stage after a caller's wishes."""
    chosen = list(options.settings or cascade.sampling)
    if len(chosen) != len(cascade.stages):
        raise ValueError(
            f"settings has {len(chosen)} entries; the model has {len(cascade.stages)} stages."
        )
    return with_overrides(
        chosen,
        guidance=options.guidance,
        steps=options.steps,
        sampler=options.sampler,
        spacing=options.spacing,
        aug_level=options.aug_level,
    )


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


def encode_subjects(
    cascade: Cascade, params: Mapping, subjects: Subjects, rows: np.ndarray, batch_size: int
) -> Conditions:
    """What each image is made of: row i of the result belongs to subject rows[i]."""
    text = null = None
    if subjects.prompts:
        encoder, negative = cascade.encoder, subjects.negative_prompt
        asked = list(subjects.prompts)
        if negative or encoder.null == "empty":
            asked.append(negative or "")
        encoded = encode_prompts(encoder, params[TEXT_ENCODER], asked, batch_size)
        text = jax.tree.map(lambda x: x[rows], encoded)
        if len(asked) > len(subjects.prompts):
            null = jax.tree.map(lambda x: x[-1:], encoded)
        else:
            null = text_room.unconditional(encoder, params[TEXT_ENCODER])
    label = None if subjects.labels is None else np.asarray(subjects.labels, np.int32)[rows]
    return Conditions(text=text, null=null, label=label)


def with_settings(
    arrays: np.ndarray,
    subjects: Subjects,
    rows: np.ndarray,
    first_index: int,
    common: Mapping[str, Any],
) -> ImageList:
    """Images that carry what makes each of them again."""
    prompts, labels = subjects.prompts, subjects.labels
    images = []
    for position, (array, row) in enumerate(zip(to_uint8(arrays), rows, strict=True)):
        image = to_pil(array)
        image.info[SETTINGS_KEY] = {
            "prompt": prompts[row] if prompts else None,
            "label": labels[row] if labels else None,
            "index": first_index + position,
            **common,
        }
        images.append(image)
    captions = prompts or [str(value) for value in labels or []]
    return ImageList(images, [captions[row] for row in rows] if captions else None)
