"""Images of a list of prompts, one file each: what is there already is never generated again."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.progress import image_bar
from imagen_jax.evaluation.prompts import plain_list
from imagen_jax.evaluation.report import image_settings
from imagen_jax.evaluation.shards import WHOLE, Shard
from imagen_jax.images import signing
from imagen_jax.images.image_file import save_image
from imagen_jax.images.provenance import marked, source_of
from imagen_jax.storage.json_file import read_object, write_object
from imagen_jax.storage.trees import first_difference
from imagen_jax.text.encoder import ShortenedWarning

# (prompts or labels, global index of the first, perhaps seed and negative prompt) -> images.
Generate = Callable[..., Sequence[Image.Image]]
SETTINGS_FILE = "settings.json"


def image_file(directory: Path, index: int) -> Path:
    """Where the image of this global index lies."""
    return directory / f"{index:06d}.png"


def check_directory(directory: Path, settings: dict[str, Any]) -> None:
    """ValueError where a folder holds images of other settings, which never mix; it names the first
    setting that differs.
    """
    path = directory / SETTINGS_FILE
    if not any(directory.glob("*.png")):
        return
    if not path.is_file():
        raise ValueError(f"{directory} holds images and no {SETTINGS_FILE}; give another --out.")
    try:
        found = read_object(path, "the settings of a run")
    except ValueError as error:
        raise ValueError(f"{error} Delete {directory}.") from None
    if difference := first_difference(found, settings):
        name, was, wanted = difference
        raise ValueError(
            f"{directory} holds images with {name} = {was!r}, not {wanted!r}; give another --out, "
            "or delete it."
        )


def open_directory(directory: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of images, or sees that the images there are of these settings.

    Raises ValueError as `check_directory`.
    """
    check_directory(directory, settings)
    if not any(directory.glob("*.png")):
        write_object(directory / SETTINGS_FILE, settings)


def make_generate(model: EvaluatedModel, size: int, seed: int, batch_size: int) -> Generate:
    """What generates images of prompts, or of classes for a model that reads these; `seed`: of
    calls that give none.
    """
    pipeline = model.pipeline
    reads_text = any(stage.conditioning == "text" for stage in pipeline.cascade.stages)

    def generate(
        prompts: Sequence[str], first: int, own_seed: int = seed, negative: str | None = None
    ) -> Sequence[Image.Image]:
        what = {"prompt": list(prompts)} if reads_text else {"label": list(prompts)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortenedWarning)  # one was given for all prompts
            return pipeline.generate_images(
                num_images=1,
                size=size,
                seed=own_seed,
                negative_prompt=negative,
                batch_size=batch_size,
                progress=False,
                sampling=model.sampling,
                first_index=first,
                **what,
            )

    return generate


def generate_images(
    generate: Generate,
    prompts: Sequence[str | int],
    directory: Path,
    batch_size: int,
    ranges: Iterable[range],
    what: str = "images",
) -> int:
    """Generates image i with the noise of index i as `image_file(directory, i)`; returns how many.

    A batch of which an image is missing is generated again, whole. Its images depend on nothing but
    their indices, so that a run killed half-way and started again gives the same files.

    Args:
        ranges: of the indices; batches do not cross their ends.
        what: names the bar.
    """
    batches = [
        indices[start : start + batch_size]
        for indices in ranges
        for start in range(0, len(indices), batch_size)
    ]
    missing = [
        batch
        for batch in batches
        if not all(image_file(directory, index).is_file() for index in batch)
    ]
    count = sum(map(len, missing))
    signing.credentials()  # wrong ones are an error before the work
    with image_bar(what, count) as bar:
        for batch in missing:
            images = generate(prompts[batch.start : batch.stop], batch.start)
            for index, image in zip(batch, images, strict=True):
                image = image if source_of(image) else marked(image)
                save_image(image, image_file(directory, index))
            bar.update(len(batch))
    return count


def generate_list(
    model: EvaluatedModel,
    texts: Sequence[str],
    directory: Path,
    ranges: Sequence[range],
    *,
    size: int,
    seed: int,
    batch_size: int,
    about: Mapping[str, Any] | None = None,
) -> int:
    """`generate_images` of texts that no file names; images there already must be of the same ones.

    about: what else decides the texts, which an error names rather than their fingerprint.

    Raises ValueError as `check_directory`.
    """
    prompts = plain_list(directory.name, texts).fingerprint
    open_directory(directory, image_settings(model, prompts, **(about or {}), size=size, seed=seed))
    generate = make_generate(model, size, seed, batch_size)
    return generate_images(generate, texts, directory, batch_size, ranges, directory.name)


def image_files(directory: Path, count: int, shard: Shard = WHOLE) -> list[Path]:
    """The files of images 0 ... count - 1.

    Raises ValueError where this process should have all of them and some are missing.
    """
    files = [image_file(directory, index) for index in range(count)]
    missing = [file.name for file in files if shard == WHOLE and not file.is_file()]
    if missing:
        raise ValueError(f"{directory} lacks {len(missing)} of {count}, {missing[0]} first.")
    return files
