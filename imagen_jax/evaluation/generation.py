"""Images of a list of prompts, one file each: what is there already is never drawn again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from imagen_jax.evaluation.report import ProgressLine, write_report
from imagen_jax.images.png import save_png
from imagen_jax.storage.atomic import written_whole

# (prompts or labels, global index of the first) -> an image each.
Generate = Callable[[Sequence[str | int], int], Sequence[Image.Image]]
SETTINGS_FILE = "settings.json"


class Share(NamedTuple):
    """The part of the work that this process does: share `index` of `count`, from 0."""

    index: int = 0
    count: int = 1


ALL = Share()
LEAST_PART = 128  # images


def parts(total: int, batch_size: int, share: Share = ALL) -> list[range]:
    """The indices 0 ... total - 1 in parts of whole batches; every count-th part for a share.

    A part is generated and its features are computed by one process.
    """
    size = batch_size * -(-LEAST_PART // batch_size)
    starts = range(share.index * size, total, share.count * size)
    return [range(start, min(start + size, total)) for start in starts]


def image_file(directory: Path, index: int) -> Path:
    """Where the image of this global index lies."""
    return directory / f"{index:06d}.png"


def open_directory(directory: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of images, or sees that the one that is there is of these settings.

    Raises ValueError that names the setting which differs: images of two settings never mix.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))  # tuples as lists
    if not path.is_file():
        if any(directory.glob("*.png")):
            raise ValueError(
                f"{directory} holds images and no {SETTINGS_FILE}; give another --out."
            )
        write_report(path, settings)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete {directory}.") from None
    for name in sorted({*settings, *found}):
        if settings.get(name) != found.get(name):
            raise ValueError(
                f"{directory} holds images with {name} = {found.get(name)!r}, not "
                f"{settings.get(name)!r}; give another --out, or delete it."
            )


def generate_images(
    generate: Generate,
    prompts: Sequence[str | int],
    directory: Path,
    batch_size: int,
    share: Share = ALL,
) -> int:
    """Draws prompt i with the noise of index i into `image_file(directory, i)`; how many it drew.

    A batch of which an image is missing is drawn anew, whole; its images depend on nothing but
    their indices, so that a run killed half-way and started again gives the same files.
    """
    batches = [
        part[start : start + batch_size]
        for part in parts(len(prompts), batch_size, share)
        for start in range(0, len(part), batch_size)
    ]
    missing = [
        batch
        for batch in batches
        if not all(image_file(directory, index).is_file() for index in batch)
    ]
    count = sum(map(len, missing))
    line = ProgressLine("images", count)
    for batch in missing:
        images = generate(prompts[batch.start : batch.stop], batch.start)
        for index, image in zip(batch, images, strict=True):
            with written_whole(image_file(directory, index)) as file:
                save_png(image, file)
        line.advance(len(batch))
    return count


def image_files(directory: Path, count: int, share: Share = ALL) -> list[Path]:
    """The files of images 0 ... count - 1.

    Raises ValueError where this process should have all of them and some are missing.
    """
    files = [image_file(directory, index) for index in range(count)]
    missing = [file.name for file in files if share == ALL and not file.is_file()]
    if missing:
        raise ValueError(f"{directory} lacks {len(missing)} of {count}, {missing[0]} first.")
    return files
