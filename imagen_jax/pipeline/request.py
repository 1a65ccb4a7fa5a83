"""Requests: what callers of a pipeline ask for, checked and brought into one form."""

import contextlib
import os
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, lcm, sqrt
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from imagen_jax import models
from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.sample import Moment
from imagen_jax.cascade.stage import Stage
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.overrides import is_number, is_whole, plain
from imagen_jax.diffusion.sampling import Number
from imagen_jax.images import decoding, masks
from imagen_jax.images.image_list import ImageList
from imagen_jax.images.pixels import to_float
from imagen_jax.pipeline.progress import Callback
from imagen_jax.storage.codec import nearest, require
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.trees import name_some

LARGEST_SEED = 2**32 - 1
CPU_BATCH, ACCELERATOR_BATCH = 4, 16
MAX_BATCH = 2**20  # images at a time, far above all memory: more ends XLA without a word
MAX_PIXELS = 2**26  # of an image from outside
WIDEST = 8  # an image's longer side, at most, for each pixel of the shorter
AspectRatio = str | Number | tuple[Number, ...]
Label = str | Number  # a class by name or number
Labels = Label | Sequence[Label] | np.ndarray
ImageInput = masks.ImageInput
Watch = Callable[[np.ndarray, int, Moment], None]


@dataclass(frozen=True)
class Request:
    """What a caller asks of a cascade, besides how each stage is sampled (`Sampling`).

    prompt, label: one or several, lists once checked (`check_request`), of numbers for labels; None
    for a model that reads none. negative_prompt: what guidance leads away from, None for no text.
    num_images: of each prompt or label. stages: positions in the cascade. size: (height, width) of
    the base stage, when not its resolution. low_res: [1, height, width, 3], the image that the
    first stage upsamples. edits: one a stage of the cascade, None where it samples from noise.
    seed, first_index: of the noise; image i of all has the key of index first_index + i.
    batch_size: images at a time. progress, callback, every: a bar; called with a `Progress` every
    `every` steps (a tenth of all when None). finished: called with the images of each batch once
    they are done. low_memory: lets each stage's parameters go before the next one's are read.
    watch: called before each step of each batch with the places of its images among all, how many
    of them count (a batch may be filled up), and a `Moment`. notes: for the settings in the images.
    """

    prompt: str | Sequence[str] | None = None
    label: Labels | None = None
    negative_prompt: str | None = None
    num_images: Number = 1
    stages: range = range(1)
    size: tuple[int, int] | None = None
    low_res: np.ndarray | None = None
    edits: Sequence[Edit | None] | None = None
    seed: Number | None = None
    first_index: Number = 0
    batch_size: Number | None = None
    progress: bool = False
    callback: Callback | None = None
    every: Number | None = None
    finished: Callable[[ImageList], None] | None = None
    low_memory: bool = False
    watch: Watch | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray:
        """The prompt or label of every image, by its place in the list."""
        return np.repeat(np.arange(len(self.prompt or self.label or [None])), self.num_images)

    def edit(self, position: int) -> Edit | None:
        """The edit of the stage at this position."""
        return None if self.edits is None else self.edits[position]


def check_request(cascade: Cascade, name: str, request: Request) -> Request:
    """The request with lists of prompts and labels, a seed and a batch size.

    Raises:
        ValueError: something that the model does not read, does not know or cannot do.
    """
    kinds = {stage.conditioning for stage in cascade.stages}
    for option, kind, read in (("prompt", "text", "text"), ("label", "label", "classes")):
        value = getattr(request, option)
        if value is None and kind in kinds:
            names = name_some(list(cascade.class_names)) if kind == "label" else ""
            some = f": {names}" if names else ""
            raise ValueError(f"{name!r} reads {read}: give a {option}{some}.")
        if value is not None and kind not in kinds:
            raise ValueError(f"{name!r} reads no {read}, but a {option} was given: {value!r}.")
    prompts = None if request.prompt is None else check_prompts(cascade, name, request.prompt)
    labels = None if request.label is None else class_numbers(cascade, request.label)
    if prompts and labels and len(prompts) != len(labels):
        raise ValueError(f"{len(prompts)} prompts but {len(labels)} labels.")
    negative = request.negative_prompt or ""
    require(
        (
            isinstance(negative, str),
            f"negative_prompt is one string for all images, not {negative!r}.",
        ),
        (
            cascade.encoder is not None or not str(negative).strip(),
            f"{name!r} reads no text, so no negative_prompt either.",
        ),
        (
            is_whole(request.first_index) and request.first_index >= 0,
            f"first_index must be a whole number, at least 0: {request.first_index!r}.",
        ),
    )
    for text in (negative, *(prompts or [])):
        check_text(text)
    num_images = check_count("num_images", request.num_images)
    count = num_images * len(prompts or labels or [None])
    every, batch_size = request.every, request.batch_size
    return replace(
        request,
        prompt=prompts,
        label=labels,
        negative_prompt=negative if negative.strip() else None,
        num_images=num_images,
        first_index=int(request.first_index),
        seed=check_seed(request.seed),
        every=None if every is None else check_count("every", every),
        batch_size=default_batch_size(count) if batch_size is None else check_batch(batch_size),
    )


def check_count(name: str, value: Number) -> int:
    """The number itself; ValueError, naming it, unless it is a whole number from 1 on."""
    value = plain(value)
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1: {value!r}.")
    return int(value)


def check_batch(batch_size: Number) -> int:
    """`check_count` of images at a time, up to MAX_BATCH."""
    if (batch_size := check_count("batch_size", batch_size)) > MAX_BATCH:
        raise ValueError(f"batch_size must be {MAX_BATCH:,} or less: {batch_size:,}.")
    return batch_size


def check_seed(seed: Number | None) -> int:
    """The seed, or a new one; ValueError, naming it, unless it is in 0 ... LARGEST_SEED."""
    seed = secrets.randbelow(LARGEST_SEED + 1) if seed is None else plain(seed)
    if not is_whole(seed) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}: {seed!r}.")
    return int(seed)


def default_batch_size(count: int) -> int:
    """Images at a time: a power of two that `count` images fill, for few compiled programs."""
    most = CPU_BATCH if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
    return min(most, 1 << (count - 1).bit_length())


def check_text(prompt: str) -> None:
    """ValueError for a prompt that no file could keep: one with halves of characters in it."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The prompt {prompt!r} is not whole text: character {error.start + 1} is half of one "
            "(a lone surrogate), as text in another encoding than UTF-8 gives."
        ) from None


def check_prompts(cascade: Cascade, name: str, prompt: Any) -> list[str]:
    """One prompt or several as a list; ValueError where the model can read none, or not these."""
    if cascade.encoder is None:
        raise ValueError(
            f"{name!r} reads text, but came without a text encoder: load it together with the "
            "model that has its encoder, load_model([that one, this one]), or give embeddings to "
            "imagen_jax.cascade.sample.sample_stage."
        )
    prompts = list(prompt) if isinstance(prompt, Iterable) else [prompt]
    prompts = [prompt] if isinstance(prompt, str) else prompts
    require(
        (prompts, "The list of prompts is empty."),
        (
            all(isinstance(entry, str) for entry in prompts),
            f"A prompt must be a string, or a list of strings: {prompt!r}.",
        ),
        (
            cascade.encoder.null == "empty" or all(str(entry).strip() for entry in prompts),
            f"The prompt is empty: {prompt!r}. Say what the image shows.",
        ),
    )
    return prompts


def class_numbers(cascade: Cascade, label: Labels) -> list[int]:
    """The numbers of classes that are given by name or number, of one or several.

    Raises:
        ValueError: there are none, or the model has no class of that name or number.
    """
    single = isinstance(label, str) or not isinstance(label, Iterable)
    values = np.atleast_1d(label).tolist() if isinstance(label, np.ndarray) else label
    numbers = [_class_number(cascade, value) for value in ([label] if single else values)]
    if not numbers:
        raise ValueError("The list of labels is empty.")
    for stage in cascade.stages:
        classes = stage.network.num_classes
        wrong = [v for v in numbers if classes is not None and not 0 <= v < classes]
        if wrong:
            raise ValueError(f"label must lie in 0 ... {classes - 1}: {wrong[0]}.")
    return numbers


def _class_number(cascade: Cascade, label: Any) -> int:
    names = cascade.class_names
    if isinstance(label, str):
        name = unicodedata.normalize("NFC", label)
        if name in names:
            return names.index(name)
        if name.isdecimal() and len(name) < 10:
            return int(name)
        hint = nearest(name, names) if names else "; it knows no names: give a number"
        raise ValueError(f"The model has no class {label!r}{hint}")
    if not is_whole(label):
        raise ValueError(f"label must be the name or the number of a class, not {plain(label)!r}.")
    return int(label)


def last_stage(cascade: Cascade, name: str, size: Number | None) -> int:
    """The position of the stage that makes images of this size; the last when None."""
    if size is None:
        return len(cascade.stages) - 1
    if size not in cascade.sizes:
        known = ", ".join(map(str, cascade.sizes))
        raise ValueError(f"No stage of {name!r} makes size {size!r}; sizes: {known}.")
    return cascade.sizes.index(size)


def base_size(cascade: Cascade, aspect_ratio: AspectRatio | None) -> tuple[int, int] | None:
    """(height, width) of the base stage for an aspect ratio, width to height; None for a square.

    About as many pixels as the square has; sides that every network of the cascade can halve.
    """
    if aspect_ratio is None:
        return None
    try:
        parts = aspect_ratio.split(":") if isinstance(aspect_ratio, str) else aspect_ratio
        parts = (parts,) if is_number(parts) else parts
        width, height = (*parts, 1) if len(parts) == 1 else parts
        ratio = float(width) / float(height)
    except (TypeError, ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 1 / WIDEST <= ratio <= WIDEST:
        raise ValueError(
            f'aspect_ratio is {aspect_ratio!r}; it must be width to height, such as "16:9" or 1.5, '
            f"between 1:{WIDEST} and {WIDEST}:1."
        )
    side, step = cascade.stages[0].resolution, _common_divisor(cascade.stages)
    return _nearest(side / sqrt(ratio), step), _nearest(side * sqrt(ratio), step)


def upscaled_from(cascade: Cascade, positions: range, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) to shrink an image of `size`, (width, height), to, for these stages.

    The shorter side is the first stage's low resolution; both are what all networks can halve.

    Raises:
        ValueError: the image is too long.
    """
    if max(size) > WIDEST * min(size):
        raise ValueError(
            f"The image is {size[0]}x{size[1]}; what is upsampled must be between 1:{WIDEST} and "
            f"{WIDEST}:1."
        )
    stages = [cascade.stages[position] for position in positions]
    step, scale = _common_divisor(stages), stages[0].low_resolution / min(size)
    width, height = size
    return _nearest(height * scale, step), _nearest(width * scale, step)


def _common_divisor(stages: Sequence[Stage]) -> int:
    """What must divide the sides of the first stage's input, for all networks to halve theirs."""
    step, factor = 1, 1
    for stage in stages:
        factor *= stage.resolution // (stage.low_resolution or stage.resolution)
        reduction = models.reduction(stage.network)
        step = lcm(step, reduction // gcd(reduction, factor))
    return step


def _nearest(length: float, step: int) -> int:
    return max(round(length / step), 1) * step


def read_image(image: ImageInput) -> Image.Image:
    """A caller's image as upright RGB: PIL, a file's path, or an array uint8 [height, width, 3].

    What is transparent becomes white.
    """
    with _named("image", image):
        if isinstance(image, str | os.PathLike):
            return decoding.read(user_path(image), MAX_PIXELS)
        if isinstance(image, Image.Image):
            return Image.fromarray(decoding.to_rgb(image))
        if not hasattr(image, "__array__"):
            raise ValueError(f"it must be PIL, a path or an array, not {type(image).__name__}")
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
            raise ValueError(
                f"as an array it must be uint8 [height, width, 3], not {pixels.dtype} "
                f"{list(pixels.shape)}"
            )
        return Image.fromarray(pixels)


def read_mask(mask: ImageInput, size: tuple[int, int], alpha: str | None = None) -> Image.Image:
    """A mask of an image of this size, (width, height): white where to sample (`images.masks`)."""
    with _named("mask", mask):
        is_path = isinstance(mask, str | os.PathLike)
        found = masks.read_mask(user_path(mask) if is_path else mask, alpha, MAX_PIXELS)
    if found.size != size:
        raise ValueError(
            f"The mask is {found.width}x{found.height}, the image {size[0]}x{size[1]}: "
            "they must be of one size."
        )
    return found


@contextlib.contextmanager
def _named(what: str, given: ImageInput) -> Iterator[None]:
    """Errors name the file once, and say whether the image or the mask is at fault."""
    name = f"{what} {user_path(given)}" if isinstance(given, str | os.PathLike) else what
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {name}.") from None
    except OSError as error:
        raise ValueError(f"The {name} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise ValueError(f"The {name} cannot be used: {error}.") from None


def to_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """[1, height, width, 3] in [-1, 1]: the largest centred part of this shape, resized."""
    fitted = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    return to_float(np.asarray(fitted))[None]


def to_binary_mask(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """[1, height, width, 1] of 0 and 1, cut and resized as `to_pixels` does."""
    fitted = ImageOps.fit(mask, size[::-1], Image.Resampling.BOX)
    return (np.asarray(fitted, np.float32)[None, ..., None] >= 127.5).astype(np.float32)
